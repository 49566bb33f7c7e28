"""What an earlier batch offered and was not taken is not offered again: weeks of a growing folder, on a line and in clouds."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from lines import content_hash, no_progress, pool, rows

from datapool.core.base import Base
from datapool.core.lineage import Parameters, Version
from datapool.core.plan import make_plan
from datapool.core.recorded_rows import SEEN
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.selection import evaluation
from datapool.selection.offer import Offer, is_ranking_of, make_offer, not_taken, offered_again_from, rank_offer
from datapool.selection.ranking import RankingConfig
from datapool.selection.sampling import Sampled, filename_lists, sample
from datapool.selection.summary import describe_offered_again, summarize

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def settings(**changes: object) -> Params:
    """The settings of params.yaml with raw distances and no limit, changed; ``a__b`` is the key a.b."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["method"] = "coreset"
    for key, value in {"normalize_embeddings": False, **changes}.items():
        *parents, name = key.split("__")
        section = content
        for part in parents:
            section = section[part]
        section[name] = value
    return Params.model_validate(content)


def stop_at(min_distance: float = -1, n_samples: float = -1, **changes: object) -> Params:
    return settings(stopping_condition__min_distance=min_distance, stopping_condition__n_samples=n_samples, **changes)


class Week(NamedTuple):
    """What came out of a batch, and the pool after it."""

    offer: Offer
    was_ranked_again: bool
    sampled: Sampled
    recorded: pd.DataFrame
    metrics: evaluation.Metrics
    after: Base

    def picks(self) -> list[str]:
        return self.sampled.picks.table.filename.tolist()

    def kinds(self) -> dict[str, str]:
        return dict(zip(self.sampled.removed.filename, self.sampled.removed.kind, strict=True))

    def reason(self, filename: str) -> str:
        removed = self.sampled.removed
        return removed.reason[removed.filename == filename].item()


def new_pool(base: EmbeddedTable | None = None) -> Base:
    start = pool({}) if base is None else base
    return Base("p", "", [], None, start, None, pd.DataFrame({key: [] for key in SEEN}).astype(SEEN))


def week(folder: EmbeddedTable, base: Base, params: Params) -> Week:
    """Do what rank, sample and merge do with a folder of images."""
    is_new = ~folder.table.content_hash.isin(base.rows.table.content_hash).to_numpy()
    candidates = EmbeddedTable(folder.table[is_new].reset_index(drop=True), folder.embeddings[is_new])
    protected = rows({})
    plan = make_plan(params.method, params.stopping_condition.n_samples, params.ranking.n_clusters)
    offer = make_offer(candidates, base, params, min_distance=None)
    limits = {"n_samples": -1, "min_distance": -1.0, "progress": no_progress}
    config = RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
    ranked, around = rank_offer(offer, base.rows, protected, config, **limits)

    stop = params.stopping_condition
    offer = make_offer(candidates, base, params, min_distance=offered_again_from(stop.min_distance, plan))
    config = RankingConfig.from_params(params, plan, offer.candidates.table, base.rows.table)
    is_same = is_ranking_of(ranked, offer)
    if not is_same:
        ranked, around = rank_offer(
            offer, base.rows, protected, config, n_samples=0, min_distance=-1.0, progress=no_progress
        )
    images = folder.table.assign(status="ok", reason="")
    sampled = sample(images, offer.candidates, base.rows, ranked, stop, config, progress=no_progress)
    picks = sampled.picks
    compared = evaluation.compare_with_random(offer.candidates, picks.table.filename, around, config)
    metrics = evaluation.compute_metrics(
        images,
        offer.candidates,
        base.rows,
        sampled,
        compared,
        around,
        config,
        min_distance=stop.min_distance,
        offered_again=offer.n_again,
    )
    recorded = not_taken(sampled.removed, offer)
    if not len(picks.table):  # no version
        return Week(offer, not is_same, sampled, recorded, metrics, base)
    number = len(base.versions) + 1
    version = Version(
        version=number,
        batch=f"batch {number}",
        rows=len(base.rows.table) + len(picks.table),
        new=len(picks.table),
        datapool_sha256="0" * 64,
        samples_sha256="0" * 64,
        checkpoint_sha256=None,
        parameters=Parameters(
            method=params.method,
            stopping_condition=stop.model_dump(),
            normalize_embeddings=params.normalize_embeddings,
            append_weak_labels=params.append_weak_labels,
        ),
    )
    added = picks.table[["filename", "content_hash", "weak_label"]].assign(version=number)
    after = base._replace(
        versions=[*base.versions, version],
        rows=EmbeddedTable(
            pd.concat([base.rows.table, added], ignore_index=True),
            np.concatenate([base.rows.embeddings.reshape(-1, picks.embeddings.shape[1]), picks.embeddings]),
        ),
        seen=pd.concat([base.seen, recorded.assign(version=number)], ignore_index=True),
    )
    return Week(offer, not is_same, sampled, recorded, metrics, after)


# The pool is {0}. First comes d (10), then b (5); then a (1) is 1 from the pool, c (7) is 2 from b.
LINE = {"a": 1, "b": 5, "c": 7, "d": 10}
TWO = {"n_samples": 2}
AT_3 = {"min_distance": 3}
"""Both pick d and b."""


def first_week(condition: dict[str, float]) -> Week:
    return week(rows(LINE), new_pool(pool({"zero": 0})), stop_at(**condition))


def test_what_was_not_taken_is_recorded_by_hash_with_fate_and_distance():
    for condition, fate in ((AT_3, "covered"), (TWO, "beyond n_samples")):
        first = first_week(condition)

        assert first.picks() == ["d", "b"]
        assert first.recorded.to_dict("list") == {
            "content_hash": [content_hash("a"), content_hash("c")],
            "fate": [fate, fate],
            "distance": [1.0, 2.0],
        }


def test_what_was_passed_over_stays_so_after_an_image_has_left_unless_that_image_was_the_reason():
    first = first_week(TWO)
    # b has left the pool: nothing is picked in its place. a came after n_samples before; c was covered by b.
    removed = first.sampled.removed.replace({"kind": {"beyond n_samples": "not considered"}})
    passed_over = pd.DataFrame({"content_hash": [content_hash("a")], "fate": ["beyond n_samples"]})

    recorded = not_taken(removed, first.offer, passed_over)
    assert recorded.to_dict("list") == {
        "content_hash": [content_hash("a")],
        "fate": ["beyond n_samples"],
        "distance": [1.0],
    }
    assert not len(not_taken(removed, first.offer, passed_over[:0]))


def test_of_a_folder_that_grew_only_what_is_new_is_offered():
    # e (20) is new. Without a memory, n_samples 2 would pick e, and then c, which lies 2 from b.
    second = week(rows({**LINE, "e": 20}), first_week(TWO).after, stop_at(**TWO))

    assert second.picks() == ["e"]
    assert second.kinds() == {"a": "seen", "b": "known", "c": "seen", "d": "known"}
    assert second.reason("c") == (
        "offered with version 1 and not taken (beyond n_samples, at distance 2): datapool.remember_rejected"
    )
    assert filename_lists(second.after.rows, second.sampled)["removed_filenames"] == ["a", "c"]
    assert not second.was_ranked_again


def test_what_is_not_offered_counts_as_neither_candidate_nor_covered():
    second = week(rows({**LINE, "e": 20, "f": 19}), first_week(TWO).after, stop_at(n_samples=1))
    numbers = second.metrics

    assert (numbers.images, numbers.known, numbers.seen_before, numbers.candidates) == (6, 2, 2, 2)
    assert (numbers.picked, numbers.covered, numbers.beyond_limit, numbers.offered_again) == (1, 0, 1, 0)
    # f lies 1 from the pick e; a and c, 1 and 2 from the pool, count no more.
    assert (numbers.covering_radius, numbers.witness, numbers.evaluated) == (1.0, "f", 2)
    assert summarize(numbers) == (
        "picked 1 of 2 candidates (2 more are in the pool already, 2 more were offered before and not taken): the pool grows "
        "from 3 to 4 images; every candidate lies within 1 of it"
    )


def test_a_share_of_the_candidates_is_a_share_of_those_that_are_offered():
    second = week(rows({**LINE, "e": 20, "f": 30}), first_week(TWO).after, stop_at(n_samples=0.5))

    assert second.picks() == ["f"]


def test_a_batch_of_images_that_were_all_offered_before_says_so():
    second = week(rows(LINE), first_week(TWO).after, stop_at(**TWO))

    assert second.picks() == []
    assert summarize(second.metrics) == (
        "nothing to pick: of 4 images 2 in the pool already, 2 offered before and not taken; datapool.remember_rejected: "
        "false offers them again; the pool stays as it is"
    )


def test_what_a_limit_left_over_is_not_offered_again():
    first = first_week({"n_samples": 1})
    second = week(rows({**LINE, "e": 20}), first.after, stop_at(n_samples=3))

    assert first.recorded.fate.tolist() == ["beyond n_samples"] * 3
    assert second.picks() == ["e"]


@pytest.mark.parametrize(
    ("rule", "fate"), [({"rules__balance": {"x": 1}}, "balance"), ({"rules__sequence_gap": 5}, "sequence_gap")]
)
def test_what_a_rule_left_out_is_not_offered_again(rule, fate):
    folder = rows({"cam/001.png": 5, "cam/003.png": 9}, "xx")
    first = week(folder, new_pool(pool({"zero": 0})), stop_at(n_samples=2, **rule))
    second = week(folder, first.after, stop_at(n_samples=2))

    assert first.recorded.fate.tolist() == [fate]
    assert second.picks() == []
    assert second.kinds() == {"cam/001.png": "seen", "cam/003.png": "known"}


def test_false_offers_everything_again_and_says_so():
    params = stop_at(**TWO, datapool__remember_rejected=False)
    second = week(rows({**LINE, "e": 20}), first_week(TWO).after, params)

    assert second.picks() == ["e", "c"]
    assert (second.metrics.candidates, second.metrics.offered_again, second.metrics.seen_before) == (3, 2, 0)
    assert describe_offered_again(second.metrics, remember_rejected=False) == (
        "candidates that were offered before and not taken, and are tried again: 2 (datapool.remember_rejected is false)"
    )


def test_a_smaller_threshold_tries_again_what_lies_at_least_as_far():
    # At 2, c (2 from b) is tried again and taken; a (1 from the pool) is still covered.
    second = week(rows({**LINE, "e": 20}), first_week(AT_3).after, stop_at(min_distance=2))

    assert second.was_ranked_again
    assert second.picks() == ["e", "c"]
    assert second.kinds() == {"a": "seen", "b": "known", "d": "known"}
    assert second.metrics.offered_again == 1
    assert describe_offered_again(second.metrics, remember_rejected=True) == (
        "candidates that were offered before and not taken, and are tried again: 1 (min_distance is smaller, distances are "
        "taken in another way, or images have left the pool since)"
    )


def test_no_threshold_is_the_smallest():
    second = week(rows(LINE), first_week(AT_3).after, stop_at(n_samples=9))

    assert second.picks() == ["c", "a"]


def test_a_threshold_tries_nothing_again_of_a_version_without_one():
    second = week(rows({**LINE, "e": 20}), first_week(TWO).after, stop_at(min_distance=1))

    assert second.picks() == ["e"]


def test_a_method_without_threshold_tries_nothing_again():
    # ``random`` takes no min_distance, so that it is -1 does not mean that the user wants a smaller one.
    second = week(rows({**LINE, "e": 20}), first_week(AT_3).after, stop_at(n_samples=9, method="random"))

    assert second.picks() == ["e"]


def test_a_larger_threshold_tries_nothing_again():
    second = week(rows({**LINE, "e": 20}), first_week(AT_3).after, stop_at(min_distance=4))

    assert second.picks() == ["e"]
    assert not second.was_ranked_again


def test_what_was_tried_again_and_left_over_is_recorded_again_and_then_left_alone():
    first = first_week(AT_3)
    second = week(rows({**LINE, "e": 20}), first.after, stop_at(min_distance=2, n_samples=1))
    third = week(rows({**LINE, "e": 20, "f": 40}), second.after, stop_at(min_distance=2))

    assert second.picks() == ["e"]
    assert second.recorded.to_dict("list") == {
        "content_hash": [content_hash("c")],
        "fate": ["beyond n_samples"],
        "distance": [2.0],
    }
    assert third.picks() == ["f"]
    assert third.reason("c").startswith("offered with version 2 and not taken (beyond n_samples, at distance 2)")


def test_distances_that_were_taken_in_another_way_hold_nothing_back():
    # With weak labels appended, an image of another label is farther than it was.
    folder = rows({**LINE, "e": 20}, "xxyxx")
    second = week(folder, first_week(AT_3).after, stop_at(min_distance=3, append_weak_labels=True))

    assert second.kinds() == {"a": "covered", "b": "known", "c": "covered", "d": "known"}
    assert second.metrics.offered_again == 2


def test_what_is_recorded_already_is_not_recorded_again():
    params = stop_at(n_samples=1, datapool__remember_rejected=False)
    second = week(rows({**LINE, "e": 20, "f": 21}), first_week(TWO).after, params)

    assert second.picks() == ["f"]
    assert sorted(second.kinds()) == ["a", "b", "c", "d", "e"]
    assert second.recorded.content_hash.tolist() == [content_hash("e")]


def test_of_a_growing_folder_none_of_last_weeks_rejects_is_picked():
    rng = np.random.default_rng(7)
    points = rng.normal(size=(205, 8)).astype(np.float32)
    names = [f"{i:03d}.jpg" for i in range(205)]
    everything = EmbeddedTable(rows(dict.fromkeys(names, 0.0)).table, points)
    last_week = EmbeddedTable(everything.table[:200], points[:200])
    first = week(last_week, new_pool(), stop_at(n_samples=10))
    remembered = week(everything, first.after, stop_at(n_samples=10))
    forgotten = week(everything, first.after, stop_at(n_samples=10, datapool__remember_rejected=False))

    assert sorted(remembered.picks()) == names[200:]
    assert len(set(forgotten.picks()) - set(names[200:])) >= 5


@pytest.mark.parametrize("seed", range(12))
def test_with_a_threshold_alone_the_picks_are_those_of_offering_everything(seed):
    # Five weeks of a folder that grows, with a threshold that goes up and down.
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(120, 2)).astype(np.float32)
    if seed % 3 == 0:
        points = rng.integers(0, 9, (120, 2)).astype(np.float32)  # a lattice: ties, and distances at the threshold
    table = rows({f"{i:03d}.jpg": 0.0 for i in range(120)}).table
    folders = [EmbeddedTable(table[:n], points[:n]) for n in (40, 60, 80, 100, 120)]
    thresholds = rng.choice([0.0, 0.2, 0.4, 1.0, 2.0], 5) if seed % 2 else [1.0] * 5
    with_memory, without, n_seen = new_pool(), new_pool(), 0
    for folder, threshold in zip(folders, thresholds, strict=True):
        remembered = week(folder, with_memory, stop_at(float(threshold)))
        forgotten = week(folder, without, stop_at(float(threshold), datapool__remember_rejected=False))
        assert remembered.sampled.picks.table.equals(forgotten.sampled.picks.table)
        with_memory, without = remembered.after, forgotten.after
        n_seen += remembered.metrics.seen_before
        images = remembered.metrics
        assert images.images == sum(
            (images.known, images.seen_before, images.picked, images.covered, images.beyond_limit)
        )

    assert n_seen > 0 or seed % 2
    assert with_memory.rows.embeddings.tobytes() == without.rows.embeddings.tobytes()

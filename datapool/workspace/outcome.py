"""Read what a batch brought, and describe it in two lines: what it was, what is proposed, and what wants an eye."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from datapool.core.errors import counted
from datapool.core.json_files import read_json
from datapool.core.lineage import week_of
from datapool.core.metrics import Metrics, read_metrics
from datapool.core.outputs import Outputs
from datapool.core.schema import Params
from datapool.core.tables import read_csv
from datapool.images.formats import ON_DEMAND

TO_LABEL = "sampled_filenames_excluding_datapool.txt"
"""The list of the picks, in the folder of the lists."""


class Outcome(NamedTuple):
    """What came of a batch."""

    week: str
    """The batch's name: the last part of input_dir."""
    input_dir: str
    """As in params.yaml."""
    pool: str
    version: int
    """The latest version of the pool; 0 for none."""
    is_new: bool
    """Whether that version is not in the last commit."""
    images: int
    damaged: int
    copies: int
    known: int
    """Images that the pool had already."""
    excluded: int
    seen_before: int
    """Images that an earlier batch offered and that were not taken."""
    outside_where: int
    """Images that do not fulfill rules.where."""
    low_quality: int
    """Images that ``quality.drop`` holds back."""
    near_duplicates: int
    """Images that ``remove_near_duplicates`` holds back."""
    offered_again: int
    """Images that an earlier batch offered and that this one offers again, since an image has left the pool or a setting is
    another one."""
    candidates: int
    """The images among which to choose: the new ones, which are the rest, and those offered again."""
    share_covered: float | None
    """Share of the candidates that the pool covered before; None without a pool or candidates."""
    week_before: str | None
    """The name of the batch before, if it is recorded."""
    share_covered_before: float | None
    """The same share of that batch."""
    proposed: int
    """How many candidates were picked."""
    is_limited: bool
    """Whether n_samples left candidates out."""
    fewer: int | None
    """A round number of picks below ``proposed``; None if there is none, or no threshold picks as many."""
    fewer_min_distance: float | None
    """The min_distance that picks so many."""
    look: list[str]
    """What wants an eye, such as "1 image with two labels"."""
    report: str
    """Path of the page."""
    to_label: str
    """Path of the list of the picks."""

    def lines(self) -> list[str]:
        """Return the outcome as text: what the batch was, and what is proposed."""
        return [self._batch_line(), self._choice_line()]

    def facts(self) -> dict[str, Any]:
        """Return the outcome as one JSON object."""
        return self._asdict()

    def _batch_line(self) -> str:
        kinds = (
            (self.damaged, "damaged"),
            (self.copies, "copy" if self.copies == 1 else "copies"),
            (self.known, "known"),
            (self.excluded, "excluded"),
            (self.seen_before, "offered before"),
            (self.outside_where, "outside of rules.where"),
            (self.low_quality, "of no use"),
            (self.near_duplicates, "near-duplicate" if self.near_duplicates == 1 else "near-duplicates"),
        )
        again = [f"{self.offered_again} offered again"] * bool(self.offered_again)
        new = f"{self.candidates - self.offered_again} new"
        parts = ", ".join([*(f"{count} {kind}" for count, kind in kinds if count), *again, new])
        line = f"{self.week}: {counted(self.images, 'image')}: {parts}"
        if self.share_covered is None:
            return line
        before = (
            f" ({self.week_before}: {self.share_covered_before:.0%})" if self.share_covered_before is not None else ""
        )
        which = "these" if self.offered_again else "the new ones"
        return f"{line}; the pool covered {self.share_covered:.0%} of {which} already{before}"

    def _choice_line(self) -> str:
        if not self.proposed:
            why = "none of its new images is proposed" if self.candidates else "it has no new image"
            sentence = f"nothing new: {why}; pool {self.pool!r} stays as it is"
        elif not self.is_new:
            sentence = (
                f"nothing new: version {self.version} of pool {self.pool!r} has its {self.proposed} picks already"
            )
        else:
            sentence = f"{self.proposed} proposed{', as many as n_samples allows' * self.is_limited}"
            if self.fewer:
                sentence += f"; {self.fewer} would be min_distance {self.fewer_min_distance:g}"
        return f"{sentence}. Look: {', '.join(self.look)}" if self.look else sentence


def read_outcome(params: Params, n_versions: int, *, is_new: bool) -> Outcome:
    """Read what the last run wrote.

    Args:
        params: Those of the run.
        n_versions: How many versions the pool has.
        is_new: Whether the latest one is not in the last commit.

    Raises:
        DatapoolError: If a file is missing or cannot be read.
    """
    outputs = Outputs(params.output_dir)
    metrics, page = read_metrics(outputs.numbers), read_json(outputs.report_facts)
    earlier = page["weeks"][:-1]  # the last one is this batch
    before = earlier[-1] if earlier else {"week": None, "share_covered_by_pool": None}
    fewer = _fewer(read_csv(outputs.selection_curve), metrics, params)
    return Outcome(
        week=week_of(params.input_dir),
        input_dir=params.input_dir,
        pool=params.datapool.name,
        version=n_versions,
        is_new=is_new,
        images=metrics.images,
        damaged=metrics.corrupt,
        copies=metrics.duplicates,
        known=metrics.known,
        excluded=metrics.excluded,
        seen_before=metrics.seen_before,
        outside_where=metrics.outside_where,
        low_quality=metrics.low_quality,
        near_duplicates=metrics.near_duplicates,
        offered_again=metrics.offered_again,
        candidates=metrics.candidates,
        share_covered=metrics.share_covered_by_pool if metrics.pool_before else None,
        week_before=before["week"],
        share_covered_before=before["share_covered_by_pool"],
        proposed=metrics.picked,
        is_limited=metrics.beyond_limit > 0,
        fewer=fewer[0] if fewer else None,
        fewer_min_distance=fewer[1] if fewer else None,
        look=_what_wants_an_eye(page["attention"], page["skipped"]["not_images"]),
        report=str(outputs.report),
        to_label=str(outputs.filenames / TO_LABEL),
    )


def _fewer(curve: pd.DataFrame, metrics: Metrics, params: Params) -> tuple[int, float] | None:
    """Return a round number of picks below that of the run, and the min_distance that picks as many."""
    is_cut_of_curve = metrics.kept is None and not metrics.not_considered and not metrics.offered_again
    if params.method_in_use != "coreset" or not is_cut_of_curve:
        return None
    n = round_number_below(metrics.picked)
    threshold = threshold_for(curve, n) if n else None
    return None if n is None or threshold is None else (n, threshold)


def round_number_below(count: int) -> int | None:
    """Return the largest of 5, 10, 20, 50, 100, 200, … below a count.

    >>> round_number_below(125), round_number_below(100), round_number_below(5)
    (100, 50, None)
    """
    steps = [digit * 10**power for power in range(len(str(count))) for digit in (1, 2, 5)]
    return max((step for step in steps if 5 <= step < count), default=None)


def threshold_for(curve: pd.DataFrame, n: int) -> float | None:
    """Return the shortest decimal number that, as min_distance, picks exactly n images.

    Args:
        curve: step (from 1) and distance of the ranking, as ``selection_curve.csv`` has them; distances do not increase.
        n: How many.

    Returns:
        None if no number does: the next distance is the same, or the ranking does not reach so far.

    >>> curve = pd.DataFrame({"step": [2, 3, 4], "distance": [0.5, 0.367, 0.352]})
    >>> threshold_for(curve, 3), threshold_for(curve, 2)
    (0.36, 0.5)
    """
    at = dict(zip(curve.step.tolist(), curve.distance.tolist(), strict=True))
    low, high = at.get(n + 1), at.get(n)
    if low is None or high is None or low >= high:
        return None
    for digits in range(1, 17):
        number = round(math.floor(high * 10**digits) / 10**digits, digits)
        if low < number <= high:
            return number
    return high


_WORDS = {
    "label_conflicts": "with two labels",
    "little_used": "in little of their range of values",
    "light": "too bright",
    "low_information": "nearly blank",
    "blurry": "blurred",
    "odd_aspect_ratio": "of an odd shape",
    "odd_size": "of an odd size",
}
"""What is said of images that want an eye, where the key of report.json does not say it."""


def _what_wants_an_eye(attention: Mapping[str, Any], not_images: Mapping[str, int]) -> list[str]:
    """Return how many images of each kind of that title the page shows, without those that are not offered, and how many
    images were not read.
    """
    found = []
    for key, finding in attention.items():
        n, words = finding["images"] - finding.get("not_offered", 0), _WORDS.get(key, key.replace("_", " "))
        if n and key != "corrupt":  # the first line has these, and those that are not offered
            found.append(f"{counted(n, 'image')} {words}" if words.startswith(("with", "in ")) else f"{n} {words}")
    return found + [f"{count} {ending} not read" for ending, count in not_images.items() if ending in ON_DEMAND]

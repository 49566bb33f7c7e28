"""The slider is exact: any beginning of the order is what a run with that many picks, or that min_distance, takes."""

import numpy as np
import pandas as pd
import pytest
from report_runs import config_of, draw, no_progress, parameters, run_on

from datapool.core.schema import StoppingCondition
from datapool.core.tables import EmbeddedTable
from datapool.report.order import make_order
from datapool.selection import ranking as ordering
from datapool.selection import sampling

pytestmark = pytest.mark.slow

N = 12


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_run(seed: int, **changes):
    """Run on twelve images at random places of a coarse grid, so that some distances are equal."""
    rng = np.random.default_rng(seed)
    for i in range(N):
        draw(f"{'ab'[i % 2]}/{i:02}.png", (i, 10 * i, 0))
    places = {f"{'ab'[i % 2]}/{i:02}.png": tuple(rng.integers(0, 5, 2).astype(float)) for i in range(N)}
    params = parameters(**changes)
    return run_on(places, params), params


def picks_of(inputs, params, *, n_samples: int = -1, min_distance: float = -1.0) -> list[str]:
    """Return what the stages rank and sample take with another stopping condition."""
    how = config_of(params)
    candidates, base = inputs.candidates, inputs.base.rows
    no_images = EmbeddedTable(candidates.table.iloc[:0], candidates.embeddings[:0])
    vectors = how.vectors(candidates, base)
    ranked = ordering.rank(
        candidates, base, no_images, vectors, how, n_samples=-1, min_distance=-1, progress=no_progress
    )
    stop = StoppingCondition(
        n_samples=n_samples, min_distance=min_distance, n_samples_includes_datapool=False, min_gain=-1.0
    )
    taken = sampling.sample(inputs.images, candidates, base, ranked, stop, how, progress=no_progress)
    return taken.picks.table.filename.tolist()


def order_of(inputs, params):
    return make_order(
        inputs.picks.table, inputs.ranking, len(inputs.ranking), inputs.removed, inputs.base.versions, inputs.metrics, params
    )  # fmt: skip


ONE_PER_LABEL = {
    "balance": 3, "sequence_gap": None, "protected": None, "protected_distance": 0.1, "exclude": None,
}  # fmt: skip
BY_NUMBER = {"n_samples": 4, "min_distance": -1.0, "n_samples_includes_datapool": False}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rules": ONE_PER_LABEL}, {"method": "random", "stopping_condition": BY_NUMBER}],
    ids=["coreset", "balance", "random"],
)
def test_any_beginning_of_the_order_is_what_a_run_with_that_number_takes(seed, changes):
    inputs, params = a_run(seed, **changes)

    order = order_of(inputs, params)

    assert order.table.filename.tolist()[: order.taken] == inputs.picks.table.filename.tolist()
    assert len(order.table) == (6 if changes.get("rules") else N)
    for k in range(1, len(order.table) + 1):
        assert picks_of(inputs, params, n_samples=k) == order.table.filename.tolist()[:k]


@pytest.mark.slow
def test_a_min_distance_takes_all_before_the_first_that_is_nearer():
    inputs, params = a_run(0)

    table = order_of(inputs, params).table

    for threshold in (0.0, 0.5, 1.0, 1.2, 2.0, 3.0, 9.0):
        nearer = np.flatnonzero(table.distance.to_numpy() < threshold)  # not NaN, the first of the pool
        k = int(nearer[0]) if len(nearer) else N
        assert picks_of(inputs, params, min_distance=threshold) == table.filename.tolist()[:k], threshold


def test_a_choice_that_went_on_after_the_ranking_is_the_order():
    inputs, params = a_run(0)
    short = inputs._replace(ranking=inputs.ranking.head(2))

    order = order_of(short, params)

    assert order.table.filename.tolist() == inputs.picks.table.filename.tolist()
    assert not order.is_fixed


def test_images_of_earlier_batches_come_back_below_the_smaller_of_their_distance_and_threshold():
    inputs, params = a_run(0)
    version = inputs.versions[0]
    stop = {"n_samples": -1, "min_distance": 0.7, "n_samples_includes_datapool": False}
    earlier = version.model_copy(
        update={"parameters": version.parameters.model_copy(update={"stopping_condition": stop})}
    )
    seen = pd.DataFrame({"filename": ["x", "y"], "kind": "seen", "reason": "", "nearest": "", "distance": [0.4, 3.0]})

    order = make_order(
        inputs.picks.table,
        inputs.ranking,
        len(inputs.ranking),
        pd.concat([inputs.removed, seen]),
        [earlier],
        inputs.metrics,
        params,
    )

    # y was left at 3 by its number, not its distance: it was below no threshold of 3, only of 0.7.
    assert order.again == 0.7
    assert (order.table.distance.to_numpy()[order.taken :] > 0.7).all()

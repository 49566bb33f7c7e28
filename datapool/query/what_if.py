"""Compute what other values of ``stopping_condition.min_distance`` would pick from the last batch. Runs no stage."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from datapool.core.base import read_base
from datapool.core.columns import with_columns, with_pool_columns
from datapool.core.errors import DatapoolError, short_repr
from datapool.core.levels import resolve
from datapool.core.lineage import read_embedding_space
from datapool.core.outputs import Outputs
from datapool.core.params import check_params, check_setting, read_params
from datapool.core.plan import Plan, make_plan, read_plan
from datapool.core.progress import Progress
from datapool.core.schema import Params, StoppingCondition
from datapool.core.tables import read_arrays, read_rows, read_table
from datapool.images.batch import mark_excluded
from datapool.selection.choosing import choose
from datapool.selection.evaluation_sample import EvaluationSample
from datapool.selection.ranking import Ranked, read_trace
from datapool.workspace.states import state_here

_BEFORE_SAMPLE = ("scan", "open", "train", "embed", "rank")


class Choice(NamedTuple):
    """What the stage ``sample`` would choose with another ``min_distance``."""

    min_distance: float
    level: str | None
    """The level that was asked for; None for a number."""
    picked: int
    """Images that would be added."""
    limited_by: str | None
    """What ends the choice before ``min_distance`` does: a key of stopping_condition, such as "n_samples"; None for
    nothing."""
    candidates: int
    """Images that would be offered."""
    share_covered: float | None
    """Share of the candidates closer than ``min_distance`` to the pool before the batch, estimated on the evaluation sample;
    None without candidates."""
    covering_radius: float | None
    """Largest distance from a candidate to its nearest image of the pool and the picks; None without either."""


def what_if(min_distances: Sequence[float | str], *, progress: Progress) -> list[Choice]:
    """Return the choices of some values of ``min_distance``, with all other settings of params.yaml, in their order.

    They are those of `dvc exp run -S stopping_condition.min_distance=…`: computed by the functions of the stage ``sample``
    from the files that ``rank`` has written for it.

    Args:
        min_distances: Numbers or levels. Each may end the selection earlier or later than the one in params.yaml.
        progress: Called for one part of the work after another.

    Raises:
        DatapoolError: If a value cannot be a min_distance of these settings, the batch was not ranked, or params.yaml has
            changed since in a way that would run more than ``sample``.
    """
    asked = [_with(min_distance) for min_distance in min_distances]
    _require_ranking(asked[0])
    outputs = Outputs(asked[0].output_dir)
    space = read_embedding_space(outputs.space)
    every = [resolve(params, space) for params in asked]
    base, columns = read_base(outputs.base), read_table(outputs.columns, as_stored=True)
    base = base._replace(rows=with_pool_columns(base, every[0]))
    candidates = with_columns(read_rows(outputs.embeddings), columns, every[0])
    images = mark_excluded(read_table(outputs.images), base.excluded)
    ranked = Ranked(read_table(outputs.ranking), read_trace(outputs.trace), read_table(outputs.excluded))
    sample = EvaluationSample(**read_arrays(outputs.evaluation_sample))
    plan = _require_plan(every[0], outputs)
    choices = []
    for params in every:
        stop = params.stopping_condition
        chosen = choose(
            images,
            candidates,
            base,
            ranked,
            sample,
            params,
            plan,
            read_protected=lambda: read_rows(outputs.protected),
            progress=progress,
        )
        to_pool, radius = chosen.evaluation_sample.to_pool, chosen.sampled.covering_radius
        choices.append(
            Choice(
                stop.threshold,
                stop.level,
                len(chosen.sampled.picks.table),
                _limit(stop) if (chosen.sampled.removed.kind == "beyond n_samples").any() else None,
                len(chosen.offer.candidates.table),
                float((to_pool < stop.threshold).mean()) if len(to_pool) else None,
                radius if math.isfinite(radius) else None,
            )
        )
    return choices


def _with(min_distance: float | str) -> Params:
    """Return the settings of params.yaml with another ``min_distance``."""
    check_setting("stopping_condition.min_distance", min_distance)  # so that no message says that params.yaml has it
    content = read_params()
    stop = content.get("stopping_condition")
    if isinstance(stop, dict):
        stop["min_distance"] = min_distance
    return check_params(content)


def _limit(stop: StoppingCondition) -> str:
    """Return the keys besides ``min_distance`` that may end a choice."""
    keys = {"n_samples": stop.n_samples != -1, "min_gain": stop.min_gain > 0}
    return " or ".join(key for key, is_active in keys.items() if is_active)


def _require_plan(params: Params, outputs: Outputs) -> Plan:
    """Return the plan of params.yaml, which no ``min_distance`` changes; refuse one that is not that of the ranking."""
    plan = make_plan(params.method, params.stopping_condition.n_samples, params.ranking.n_clusters)
    if plan != read_plan(outputs.plan):
        raise DatapoolError(
            "params.yaml: method, n_clusters or n_samples has changed since rank has run, so the ranking here is "
            "another one; run `dvc repro` first, or set it back"
        )
    return plan


def _require_ranking(params: Params) -> None:
    """Refuse if ``rank`` has not run, or would run again with params.yaml as it is."""
    ranking = Outputs(params.output_dir).ranking
    if not ranking.exists():
        raise DatapoolError(
            f"{ranking} is not here: no batch was ranked; `dvc repro` ranks one, `dvc checkout` restores what was committed"
        )
    state = state_here()
    for stage in _BEFORE_SAMPLE:
        for key, value in state.parameters_of(stage).items():
            now = state.parameters.get(key)
            if str(now) != str(value):  # YAML 1.1, by which dvc.lock is read, takes 3e-05 for a text
                raise DatapoolError(
                    f"params.yaml: {key} is {short_repr(now)}, but stage {stage} has run with {short_repr(value)}, so the "
                    "ranking here is another one; run `dvc repro` first, or set it back"
                )

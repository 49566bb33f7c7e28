"""Runs by hand for the tests of the report: images of one color, embeddings in the plane, and no model."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.lineage import EmbeddingSpace, Offered, Parameters, Provenance, read_lineage
from datapool.core.params import load_params
from datapool.core.schema import Params
from datapool.core.tables import EmbeddedTable
from datapool.images import batch
from datapool.pool.merge import merge
from datapool.pool.open import open_base
from datapool.report.facts import ReportInputs
from datapool.selection import evaluation, sampling
from datapool.selection import ranking as ordering
from datapool.selection.evaluation_sample import measure_sample
from datapool.selection.held_back import offer_of

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 160, 20), (20, 20, 220), (230, 230, 20)
ROOT = Path(__file__).parents[2]


def no_progress(*_):
    pass


@cache
def params_of_the_project() -> dict[str, Any]:
    return load_params(ROOT / "params.yaml").model_dump()


def parameters(**changes) -> Params:
    content = params_of_the_project()
    stop = {**content["stopping_condition"], "min_distance": 1.0}
    changes = {"input_dir": "week", "normalize_embeddings": False, "method": "coreset", **changes}
    changes["stopping_condition"] = {**stop, **changes.get("stopping_condition", {})}
    if "rules" in changes:
        changes["rules"] = {**content["rules"], **changes["rules"]}
    return Params.model_validate({**content, **changes})


def paint(**colors: tuple[int, int, int]) -> None:
    """Write a picture week/NAME.png for each color, wider than high."""
    for name, color in colors.items():
        draw(f"{name}.png", color)


def draw(name: str, color: tuple[int, int, int], folder: str = "week") -> None:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 200), color).save(path)


def config_of(params: Params) -> ordering.RankingConfig:
    """Return how the runs here rank: by raw distances, without scores."""
    return ordering.RankingConfig(
        params.method_in_use,
        normalize=False,
        append_weak_labels=False,
        seed=1,
        n_clusters=1,
        power=2.0,
        scores=None,
        rules=params.rules,
    )


def run_on(places: dict[str, tuple[float, float]], params: Params, *, lineage: str = "datapools.json") -> ReportInputs:
    """Scan the batch, pick and merge, with the embedding of each image given by hand."""
    Path(params.input_dir).mkdir(exist_ok=True)
    found = batch.scan(
        Path(params.input_dir),
        filename_prefix="",
        relevant=None,
        check="strict",
        max_pixels=MAX_PIXELS,
        remove_duplicates=True,
        gif=False,
        progress=no_progress,
    )
    base, _ = open_base(Path("pools"), Path(lineage), "demo", found.images, base_version=None)
    table = batch.candidates(found.images, base.rows.table)[["filename", "content_hash", "weak_label"]]
    candidates = EmbeddedTable(
        table, np.array([places[name] for name in table.filename], dtype=np.float32).reshape(-1, 2)
    )
    offered = offer_of(candidates, base, found.images, found.quality, params, progress=no_progress)
    how = config_of(params)
    no_images = EmbeddedTable(table.iloc[:0], candidates.embeddings[:0])
    vectors = ordering.distance_vectors(candidates, base.rows, normalize=False, append_weak_labels=False)
    ranking = ordering.rank(
        candidates, base.rows, no_images, vectors, how, n_samples=-1, min_distance=-1, progress=no_progress
    )
    stop = params.stopping_condition
    sampled = sampling.sample(found.images, candidates, base.rows, ranking, stop, how, progress=no_progress)
    around = measure_sample(*vectors, seed=1)
    compared = evaluation.compare_with_random(candidates, sampled.picks.table.filename, around, how)
    metrics = evaluation.compute_metrics(
        found.images, candidates, base.rows, sampled, compared, around, how, min_distance=stop.min_distance
    )
    space = EmbeddingSpace(id="f00d", backbone="resnet18", dimension=2, input_size=8, origin="ImageNet weights")
    provenance = Provenance(
        embedding_space=space,
        covering_radius=metrics.covering_radius,
        parameters=Parameters(method=params.method, stopping_condition=stop.model_dump()),
        offered=Offered(
            input_dir=params.input_dir,
            filename_prefix="",
            images=metrics.images,
            corrupt=metrics.corrupt,
            duplicates=metrics.duplicates,
            known=metrics.known,
            candidates=metrics.candidates,
            share_covered_by_pool=metrics.share_covered_by_pool,
        ),
    )
    merge(Path("pools"), Path(lineage), base, sampled.picks, None, keep_history=True, provenance=provenance)
    return ReportInputs(
        images=found.images,
        quality=found.quality,
        skipped=found.skipped,
        base=base,
        candidates=candidates,
        embedding_space=space,
        near_duplicates=offered.near_duplicates,
        ranking=ranking.table,
        coverage=compared.curve,
        picks=sampled.picks,
        removed=sampled.removed,
        metrics=metrics,
        versions=read_lineage(Path(lineage)).get("demo", []),
    )

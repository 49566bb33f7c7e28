"""Take the model that a pool has: check that params ask for no other one, and try to train a better one if they say so.

torch takes seconds to import, so it is imported only when a model is needed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from datapool.core import atomic
from datapool.core.base import Base
from datapool.core.errors import DatapoolError
from datapool.core.levels import ENOUGH
from datapool.core.lineage import EmbeddingSpace, Version, embedding_space_of
from datapool.core.schema import Lightly, Params
from datapool.training.job import IN_HELPER, Job, ProvidedModel, with_levels, write_no_model

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel
    from datapool.training.gated import Trained

FEWEST_TO_MEASURE = 50
"""Of fewer images, ``training.gate.held_back`` takes none."""


def own_model(base: Base, path: Path, job: Job) -> ProvidedModel:
    """Provide the model of a pool for another batch: unchanged, for embeddings of two models cannot be compared.

    With ``enable_training: always`` it is trained on the images as well. What is better by images that had no part in that
    becomes the candidate, to which the user may migrate the pool.

    Args:
        base: The pool.
        path: Its model.
        job: The batch.

    Raises:
        DatapoolError: As ``provide_model``.
    """
    files, params = job.files, job.params
    space = _own_space(base, path, params)
    trained = _train_again(path, job) if params.training == "always" else None
    if trained and not trained.result.is_main_process:
        return IN_HELPER
    recorded = space.levels.images if space.levels else 0
    if recorded < ENOUGH <= len(job.images):  # once there are levels, they stay as they are
        from datapool.model.embedding_model import load_checkpoint

        space = with_levels(space, load_checkpoint(path), job)
    atomic.copy_file(path, files.best)
    atomic.copy_file(path, files.last)
    if trained and trained.is_better:
        from datapool.model.embedding_model import save_checkpoint

        save_checkpoint(trained.result.best, files.candidate)
    else:
        write_no_model(files.candidate)
    return ProvidedModel(space, trained.result.step_losses if trained else (), _notes(base.pool, trained, job))


def _train_again(path: Path, job: Job) -> "Trained | None":
    """Train the model of a file on the images; None if too few could be held back to measure the result by."""
    if len(job.images) < FEWEST_TO_MEASURE:
        return None
    from datapool.model.embedding_model import load_checkpoint
    from datapool.training.gated import train_and_measure

    return train_and_measure(load_checkpoint(path), job, has_start=True)


def _notes(pool: str, trained: "Trained | None", job: Job) -> list[str]:
    has_one = f"pool {pool!r} has its model already"
    if job.params.training != "always":
        return [f"{has_one}: it is used as it is, training is skipped"]
    if trained is None:
        return [
            f"{has_one}: it is used as it is, for {len(job.images)} new images are too few to train another one and to "
            f"compare both; that takes {FEWEST_TO_MEASURE}"
        ]
    figures = trained.measured.figures if trained.measured else ""
    verdict = f"candidate: no better than the pool's model ({figures})"
    if trained.is_better:
        verdict = (
            f"candidate: better than the pool's model ({figures}). The pool keeps its own, for embeddings of two models "
            f"cannot be compared; `datapool migrate --checkpoint {job.files.candidate} --check` tells what another one "
            "would change"
        )
    return [f"{has_one}, which embeds this batch; a candidate was trained from it", *trained.notes, verdict]


def _own_space(base: Base, path: Path, params: Params) -> EmbeddingSpace:
    """Return the embedding space of the base, after checking that params ask for no other model."""
    recorded = embedding_space_of(base.pool, base.made_by)
    if base.standing and base.standing.version.embedding_space:
        # A version that is made again keeps its levels, which the versions before it may lack.
        recorded = recorded.with_levels(base.standing.version.embedding_space.levels)
    if _is_recorded_model(path, base.made_by[-1], recorded, params):
        return recorded
    from datapool.model.embedding_model import embedding_space_id, load_checkpoint

    model = load_checkpoint(path)
    if embedding_space_id(model) != recorded.id:
        raise DatapoolError(
            f"{path}: is not the model of pool {base.pool!r} that the lineage records; "
            "`dvc repro --force --single-item open` takes it from the pool again"
        )
    require_same_settings(
        model,
        params.lightly,
        source=f"the checkpoint of pool {base.pool!r}",
        remedy="or set another datapool.name to begin a pool with that",
    )
    if params.checkpoint:
        given = embedding_space_id(load_checkpoint(Path(params.checkpoint)))
        if given not in (recorded.id, recorded.start):
            raise DatapoolError(
                f"params.yaml: checkpoint {params.checkpoint} is model {given[:12]}, but pool {base.pool!r} was made with "
                f"model {str(recorded.id)[:12]}, and embeddings of two models cannot be compared; set checkpoint: null, or "
                "set another datapool.name"
            )
    return recorded


def _is_recorded_model(path: Path, version: Version, space: EmbeddingSpace, params: Params) -> bool:
    """Return whether a checkpoint is surely the recorded model, and params ask for it by the recorded values.

    The file is the one that the lineage records with that space, so the model need not be built to know it. Where this
    returns False, the model decides: a name may be spelled in another way.
    """
    lightly = params.lightly
    asked = (lightly.model.name, lightly.model.num_ftrs, lightly.collate.input_size)
    has_layers = lightly.model.layers in ("auto", space.layers or "last")  # auto: whatever the pool has
    files = [path, *([Path(params.checkpoint)] if params.checkpoint else [])]
    return (
        has_layers
        and asked == (space.backbone, space.dimension, space.input_size)
        and all(atomic.sha256(file) == version.checkpoint_sha256 for file in files)
    )


def require_same_settings(model: "EmbeddingModel", lightly: Lightly, *, source: str, remedy: str) -> None:
    """Refuse params that describe another model than this one.

    Args:
        model: The model of a checkpoint.
        lightly: The settings.
        source: Of the model, for the message.
        remedy: What the user can do besides changing the setting, for the message.
    """
    from datapool.model.backbones import find_backbone
    from datapool.model.layers import shown
    from datapool.model.lightly_resnet import is_docker_name

    # Settings of Lightly's Docker say "resnet-18" for Lightly's own ResNet; find_backbone finds torchvision's for it.
    is_same = is_docker_name(lightly.model.name, model.backbone_name)
    backbone = model.backbone_name if is_same else find_backbone(lightly.model.name).name
    layers = shown(model.layers) if lightly.model.layers == "auto" else shown(lightly.model.layers)
    for key, setting, actual in (
        ("lightly.model.name", backbone, model.backbone_name),
        ("lightly.model.layers", layers, shown(model.layers)),
        ("lightly.model.num_ftrs", lightly.model.num_ftrs, model.dimension),
        ("lightly.collate.input_size", lightly.collate.input_size, model.preprocessing.input_size),
    ):
        if setting != actual:
            raise DatapoolError(
                f"params.yaml: {key} is {setting}, but {source} has {actual}; set {key}: {actual}, {remedy}"
            )

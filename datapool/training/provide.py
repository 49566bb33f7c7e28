"""Provide the model of a pool, its own once it has one, else a new one that is trained, given or pretrained; use it.

Knows checkpoints, params and the base; nothing of how a model is built, trained or applied. torch is imported when a
model is needed, not before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datapool.core import atomic
from datapool.core.base import Base
from datapool.core.embeddings_csv import csv_dimension
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, embedding_space_of
from datapool.core.progress import Progress
from datapool.core.schema import Lightly, Params
from datapool.images.decode import ImageFile

if TYPE_CHECKING:
    from datapool.model.embedding_model import EmbeddingModel
    from datapool.training.simclr import StepLoss, TrainingResult

_PCA_IMAGES = 2000  # images that the embedding head of a pretrained backbone is fitted to


class ProvidedModel(NamedTuple):
    """What embeds this batch."""

    space: EmbeddingSpace | None
    """The embedding space, for the lineage; its id is None if there is nothing to train on and no pool. None in a helper
    process of training on several devices."""
    losses: "Sequence[StepLoss]"
    """One a training step; empty without training."""
    notes: list[str]
    """Sentences that the user should read."""
    is_main_process: bool
    """False in the helper processes of training on several devices, which wrote nothing and must end."""


def provide_model(
    base: Base,
    images: Sequence[ImageFile],
    params: Params,
    *,
    checkpoint: Path,
    last: Path,
    scratch_dir: Path,
    progress: Progress,
) -> ProvidedModel:
    """Write the checkpoint that embeds this batch.

    A base with a checkpoint is embedded by it, unchanged. For a pool that begins, the model is ``params.checkpoint``, or a
    backbone with pretrained weights and a head fitted to the images, or a random backbone; then it is trained on the
    images if ``enable_training``. Without training a random backbone is refused.

    Args:
        base: The pool before this batch.
        images: The candidates.
        params: ``checkpoint``, ``embeddings``, ``enable_training``, ``seed`` and ``lightly`` count.
        checkpoint: File to write: the best model, or the words "no model".
        last: File to write: the model after the last epoch; the best if nothing was trained.
        scratch_dir: Where an interrupted training is kept, to go on from.
        progress: Of the training.

    Raises:
        DatapoolError: If params ask for another model than the base has (both are named), for random weights, or for a
            checkpoint or csv that cannot be used.
    """
    if params.embeddings:
        return _no_model(_csv_space(base, Path(params.embeddings)), checkpoint, last)
    if base.versions and not base.checkpoint:
        raise DatapoolError(
            f"pool {base.pool!r} was made from an embeddings csv and has no model; give the csv of this batch as "
            "embeddings, or another datapool.name"
        )
    if base.checkpoint:
        space = _own_space(base, base.checkpoint, params)
        atomic.copy_file(base.checkpoint, checkpoint)
        atomic.copy_file(base.checkpoint, last)
        notes = [f"pool {base.pool!r} has its model already: it is used as it is, training is skipped"]
        return ProvidedModel(space, (), notes, is_main_process=True)
    if not images:
        dimension = params.lightly.model.num_ftrs
        space = EmbeddingSpace(id=None, backbone=None, dimension=dimension, input_size=None, origin=None)
        return _no_model(space, checkpoint, last)
    return _new_model(images, params, checkpoint=checkpoint, last=last, scratch_dir=scratch_dir, progress=progress)


def _no_model(space: EmbeddingSpace, checkpoint: Path, last: Path) -> ProvidedModel:
    for path in (checkpoint, last):
        atomic.write_bytes(path, b"no model\n")  # DVC wants its outputs to exist
    return ProvidedModel(space, (), [], is_main_process=True)


def _csv_space(base: Base, path: Path) -> EmbeddingSpace:
    dimension = csv_dimension(path)
    space = EmbeddingSpace(
        id=f"csv-{dimension}", backbone=None, dimension=dimension, input_size=None, origin="embeddings csv"
    )
    if base.versions:
        held = embedding_space_of(base.pool, base.versions)
        if held.id != space.id:
            raise DatapoolError(
                f"{path}: has embeddings of {dimension} dimensions of unknown origin, but those of pool {base.pool!r} are "
                f"{_describe(held)}; set embeddings: null to use the pool's own model, or give another datapool.name"
            )
    return space


def _own_space(base: Base, path: Path, params: Params) -> EmbeddingSpace:
    """The space of the base, after checking that params ask for no other."""
    from datapool.model.embedding_model import embedding_space_id, load_checkpoint

    held = embedding_space_of(base.pool, base.versions)
    model = load_checkpoint(path)
    if embedding_space_id(model) != held.id:
        raise DatapoolError(
            f"{path}: is not the model of pool {base.pool!r} that the lineage records; "
            "`dvc repro --force --single-item open` takes it from the pool again"
        )
    where = f"the checkpoint of pool {base.pool!r}"
    _check_asked_for(model, params.lightly, where, way_out="or give another datapool.name to begin a pool with that")
    if params.checkpoint:
        given = embedding_space_id(load_checkpoint(Path(params.checkpoint)))
        if given not in (held.id, held.start):
            raise DatapoolError(
                f"params.yaml: checkpoint {params.checkpoint} is model {given[:12]}, but pool {base.pool!r} was made with "
                f"model {str(held.id)[:12]}, and embeddings of two models cannot be compared; set checkpoint: null, or give "
                "another datapool.name"
            )
    return held


def _check_asked_for(model: "EmbeddingModel", lightly: Lightly, where: str, *, way_out: str) -> None:
    from datapool.model.backbones import find_backbone
    from datapool.model.lightly_resnet import is_docker_name

    # As users of Lightly's Docker have it in their settings: "resnet-18".
    is_same = is_docker_name(lightly.model.name, model.backbone_name)
    name = model.backbone_name if is_same else find_backbone(lightly.model.name).name
    for key, asked, held in (
        ("lightly.model.name", name, model.backbone_name),
        ("lightly.model.num_ftrs", lightly.model.num_ftrs, model.dimension),
        ("lightly.collate.input_size", lightly.collate.input_size, model.preprocessing.input_size),
    ):
        if asked != held:
            raise DatapoolError(f"params.yaml: {key} is {asked}, but {where} has {held}; set {key}: {held}, {way_out}")


def _new_model(
    images: Sequence[ImageFile],
    params: Params,
    *,
    checkpoint: Path,
    last: Path,
    scratch_dir: Path,
    progress: Progress,
) -> ProvidedModel:
    from datapool.model.embedding_model import embedding_space_id, save_checkpoint

    start, origin = _start(images, params)
    best = after_last = start
    losses: Sequence[StepLoss] = ()
    notes = [f"new model: {start.backbone_name} with {start.dimension} dimensions, {origin}"]
    if params.enable_training and (len(images) > 1 or origin == "random weights"):
        result = _train(start, images, params, scratch_dir, progress)
        if not result.is_main_process:
            return ProvidedModel(None, (), [], is_main_process=False)
        best, after_last, losses = result.best, result.last, result.step_losses
        origin += f", trained on {len(images)} images for {params.lightly.trainer.max_epochs} epochs"
        notes.append(
            f"trained on {len(images)} images; mean loss {result.epoch_losses[0]:.3f} in the first epoch, "
            f"{min(result.epoch_losses):.3f} in epoch {result.best_epoch + 1}, which is taken; spread {result.spread:.2g}"
        )
        if result.collapsed:
            notes.append(
                f"WARNING: the model has collapsed: it gives all images nearly the same embedding (spread "
                f"{result.spread:.2g}), so distances mean little. Lower lightly.optimizer.lr, train longer or on more "
                "images, or set lightly.model.pretrained: true and enable_training: false"
            )
    elif params.enable_training:
        notes.append("one image only, which SimCLR has nothing to contrast with: the model is used without training")
    save_checkpoint(best, checkpoint)
    save_checkpoint(after_last, last)
    space = EmbeddingSpace(
        id=embedding_space_id(best),
        start=embedding_space_id(start),
        backbone=best.backbone_name,
        dimension=best.dimension,
        input_size=best.preprocessing.input_size,
        origin=origin,
    )
    return ProvidedModel(space, losses, notes, is_main_process=True)


def _start(images: Sequence[ImageFile], params: Params) -> "tuple[EmbeddingModel, str]":
    """The model before training, and where its weights come from."""
    from datapool.model.embedding import backbone_features
    from datapool.model.embedding_model import build_model, fit_head, load_checkpoint

    wanted = params.lightly.model
    if params.checkpoint:
        model = load_checkpoint(Path(params.checkpoint))
        _check_asked_for(model, params.lightly, f"checkpoint {params.checkpoint}", way_out="or give another checkpoint")
        return model, "weights of a given checkpoint"
    trained = wanted.pretrained or wanted.weights is not None
    if not trained and not params.enable_training:
        raise DatapoolError(
            "params.yaml: enable_training is false, and there is no checkpoint, no lightly.model.weights and "
            "lightly.model.pretrained is false, so only random weights are left, which tell nothing; set one of them"
        )
    model = build_model(
        wanted.name,
        dimension=wanted.num_ftrs,
        input_size=params.lightly.collate.input_size,
        pretrained=wanted.pretrained,
        weights=Path(wanted.weights) if wanted.weights else None,
        seed=params.seed,
    )
    if not trained:
        return model, "random weights"
    every = -(-len(images) // _PCA_IMAGES)
    features = backbone_features(
        model,
        images[::every],
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        progress=None,
    )
    origin = "weights of a given file" if wanted.weights else "ImageNet weights"
    return fit_head(model, features, seed=params.seed), origin


def _train(
    model: "EmbeddingModel",
    images: Sequence[ImageFile],
    params: Params,
    scratch_dir: Path,
    progress: Progress,
) -> "TrainingResult":
    from datapool.training.simclr import TrainerSettings, train_simclr
    from datapool.training.views import Augmentation

    return train_simclr(
        model,
        images,
        augmentation=Augmentation(**params.lightly.collate.model_dump(exclude={"input_size"})),
        trainer=TrainerSettings(**params.lightly.trainer.model_dump()),
        out_dim=params.lightly.model.out_dim,
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        lr=params.lightly.optimizer.lr,
        weight_decay=params.lightly.optimizer.weight_decay,
        temperature=params.lightly.criterion.temperature,
        seed=params.seed,
        scratch_dir=scratch_dir,
        progress=progress,
    )


def _describe(space: EmbeddingSpace) -> str:
    if space.backbone is None:
        return f"of {space.dimension} dimensions from a csv"
    return f"of {space.dimension} dimensions by {space.backbone} (model {str(space.id)[:12]})"

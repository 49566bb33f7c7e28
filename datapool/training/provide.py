"""Provide the model of a pool: its own if it has one, else a new one that is given, pretrained or trained.

torch takes seconds to import, so it is imported only when a model is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from datapool.core import atomic
from datapool.core.base import Base
from datapool.core.errors import DatapoolError
from datapool.core.levels import ENOUGH
from datapool.core.lineage import EmbeddingSpace, Measured, Version, embedding_space_of
from datapool.core.progress import Progress
from datapool.core.row_cache import RowCache
from datapool.core.schema import Lightly, Params
from datapool.images.decode import ImageFile
from datapool.images.squares import SquareStore
from datapool.training.given_embeddings import given_space

if TYPE_CHECKING:
    import numpy as np

    from datapool.model.checkpoint_file import Decoding
    from datapool.model.embedding_model import EmbeddingModel
    from datapool.training.fitted_head import FittedHead
    from datapool.training.simclr import StepLoss, TrainingResult

_RANDOM_WEIGHTS = "random weights"


class ProvidedModel(NamedTuple):
    """The model that embeds this batch; its checkpoint has been written."""

    space: EmbeddingSpace | None
    """The embedding space, for the lineage. Its id is None if there is neither a pool nor an image to train on. None in a
    helper process of training on several devices, which wrote nothing and must end."""
    losses: "Sequence[StepLoss]"
    """One per training step; empty without training."""
    notes: list[str]
    """Sentences for the user."""


def provide_model(
    base: Base,
    images: Sequence[ImageFile],
    params: Params,
    *,
    checkpoint: Path,
    last: Path,
    scratch_dir: Path,
    cache_dir: Path,
    progress: Progress,
    labels: Sequence[str] | None = None,
    hashes: "np.ndarray | None" = None,
    squares: SquareStore | None = None,
) -> ProvidedModel:
    """Write the checkpoint that embeds this batch.

    The model of the base is used unchanged, if it has one. For a new pool the model is ``params.checkpoint``, or a
    backbone with pretrained weights and a head fitted to the images, or a random backbone; then it is trained on the
    images if ``enable_training``. A random backbone without training is refused. What was fitted or trained is kept if it
    is better than what was before, by images that had no part in it; see ``training.gate``. The levels of
    ``min_distance`` are calibrated in a new space, and in one that has none yet.

    Args:
        base: The pool before this batch.
        images: The candidates.
        params: ``checkpoint``, ``embeddings``, ``embeddings_model``, ``enable_training``, ``seed`` and ``lightly`` are used.
        checkpoint: File to write: the best model, or the words "no model".
        last: File to write: the model after the last epoch; the best if nothing was trained.
        scratch_dir: Keeps the state of an interrupted training, from which the next call continues.
        cache_dir: Where ``embed_candidates`` keeps embeddings. Those that follow from fitting a head are written to it.
        progress: Of the training.
        labels: The weak label of each image, by which models are compared besides; None for none.
        hashes: The perceptual hash of each image, by which levels are calibrated; uint64, 0 where unknown, None for none.
        squares: What scan has kept of the images; those that are there are read only to be edited or trained on. Never
            changes a result.

    Raises:
        DatapoolError: If params ask for another model than that of the base (the message names both), for random weights
            without training, or for a checkpoint or csv that cannot be used.
    """
    if params.embeddings:
        given = given_space(base, Path(params.embeddings), model=params.embeddings_model)
        return _no_model(given.space, checkpoint, last)._replace(notes=given.notes)
    if base.made_by and not base.checkpoint:
        raise DatapoolError(
            f"pool {base.pool!r} was made from an embeddings csv and has no model; set embeddings to a csv of this "
            "batch, or set another datapool.name"
        )
    if base.checkpoint:
        space = _own_space(base, base.checkpoint, params)
        if _needs_levels(space, images):
            from datapool.model.embedding_model import load_checkpoint

            model = load_checkpoint(base.checkpoint)
            space = _with_levels(space, model, images, hashes, params, RowCache(cache_dir), squares)
        atomic.copy_file(base.checkpoint, checkpoint)
        atomic.copy_file(base.checkpoint, last)
        notes = [f"pool {base.pool!r} has its model already: it is used as it is, training is skipped"]
        return ProvidedModel(space, (), notes)
    if not images:
        dimension = params.lightly.model.num_ftrs
        space = EmbeddingSpace(id=None, backbone=None, dimension=dimension, input_size=None, origin=None)
        return _no_model(space, checkpoint, last)
    return _new_model(
        images,
        params,
        decode="full" if base.decodes_in_full else "scaled",
        checkpoint=checkpoint,
        last=last,
        scratch_dir=scratch_dir,
        cache=RowCache(cache_dir),
        progress=progress,
        labels=labels,
        hashes=hashes,
        early=base.early_space,
        squares=squares,
    )


def _needs_levels(space: EmbeddingSpace, images: Sequence[ImageFile]) -> bool:
    """Return whether these images calibrate the levels of a recorded space: once there are, they stay as they are."""
    recorded = space.levels.images if space.levels else 0
    return recorded < ENOUGH <= len(images)


def _with_levels(
    space: EmbeddingSpace,
    model: "EmbeddingModel",
    images: Sequence[ImageFile],
    hashes: "np.ndarray | None",
    params: Params,
    cache: RowCache,
    squares: SquareStore | None,
) -> EmbeddingSpace:
    """Return the space with the levels of ``min_distance`` that these images show."""
    from datapool.training.calibrate_levels import calibrate

    levels = calibrate(
        model,
        images,
        hashes=hashes,
        cache=cache,
        batch_size=params.lightly.loader.batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=params.lightly.trainer.accelerator,
        squares=squares,
    )
    return space.with_levels(levels)


def _no_model(space: EmbeddingSpace, checkpoint: Path, last: Path) -> ProvidedModel:
    for path in (checkpoint, last):
        atomic.write_bytes(path, b"no model\n")  # DVC requires every output of a stage to exist
    return ProvidedModel(space, (), [])


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
    _require_same_settings(
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


def _require_same_settings(model: "EmbeddingModel", lightly: Lightly, *, source: str, remedy: str) -> None:
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


def _new_model(
    images: Sequence[ImageFile],
    params: Params,
    *,
    decode: "Decoding",
    checkpoint: Path,
    last: Path,
    scratch_dir: Path,
    cache: RowCache,
    progress: Progress,
    labels: Sequence[str] | None,
    hashes: "np.ndarray | None",
    early: EmbeddingSpace | None,
    squares: SquareStore | None,
) -> ProvidedModel:
    """Make the model of a new pool, and write its checkpoints."""
    from datapool.model.embedding_model import embedding_space_id, save_checkpoint
    from datapool.model.layers import shown

    start, origin, measured = _initial_model(images, params, cache, squares, decode=decode, labels=labels)
    best = after_last_epoch = start
    losses: Sequence[StepLoss] = ()
    layers = "" if start.layers is None else f" of layers {shown(start.layers)}"
    notes = [
        f"new model: {start.backbone_name} with {start.dimension} dimensions{layers}, {origin}",
        *(each.summary for each in measured),
    ]
    # One image cannot be contrasted. Random weights are useless untrained, so then train_simclr refuses it.
    if params.enable_training and (len(images) > 1 or origin == _RANDOM_WEIGHTS):
        # Random weights are no model to go back to. A pool of an early release that is made anew keeps its bytes.
        has_start = origin != _RANDOM_WEIGHTS and decode != "full"
        trained = _train(start, images, labels, params, has_start=has_start, scratch_dir=scratch_dir, progress=progress)
        if not trained.result.is_main_process:
            return ProvidedModel(None, (), [])
        best, after_last_epoch, losses = trained.best, trained.result.last, trained.result.step_losses
        origin += f", {trained.origin}"
        measured += trained.measured
        notes += trained.notes
    elif params.enable_training:
        notes.append("the batch has one image, and SimCLR needs two or more: the model is used without training")
    save_checkpoint(best, checkpoint)
    save_checkpoint(after_last_epoch, last)
    space = EmbeddingSpace(
        id=embedding_space_id(best),
        start=embedding_space_id(start),
        backbone=best.backbone_name,
        dimension=best.dimension,
        input_size=best.preprocessing.input_size,
        origin=origin,
    )
    of_later_releases: dict[str, object] = {}
    if best.layers is not None:
        of_later_releases["layers"] = list(best.layers)
    if best.preprocessing.decode != "full":
        of_later_releases["decode"] = best.preprocessing.decode
    if measured:
        of_later_releases["measured"] = [each.model_dump() for each in measured]
    space = EmbeddingSpace.model_validate(space.model_dump() | of_later_releases)
    if early is not None and early.id == space.id:
        space = space.with_levels(early.levels)
    else:
        space = _with_levels(space, best, images, hashes, params, cache, squares)
    return ProvidedModel(space, losses, notes)


def _training_notes(result: "TrainingResult", *, n_images: int) -> list[str]:
    notes = [
        f"trained on {n_images} images; mean loss {result.epoch_losses[0]:.3f} in the first epoch, "
        f"{min(result.epoch_losses):.3f} in epoch {result.best_epoch + 1}, the best; spread {result.spread:.2g}"
    ]
    if result.collapsed:
        notes.append(
            f"WARNING: the model has collapsed: all images have nearly the same embedding (spread {result.spread:.2g}), so "
            "distances mean little. Lower lightly.optimizer.lr, train longer or on more images, or set "
            "lightly.model.pretrained: true and enable_training: false"
        )
    return notes


def _initial_model(
    images: Sequence[ImageFile],
    params: Params,
    cache: RowCache,
    squares: SquareStore | None,
    *,
    decode: "Decoding",
    labels: Sequence[str] | None,
) -> "tuple[EmbeddingModel, str, list[Measured]]":
    """Return the model before training, the origin of its weights for the lineage, and how its head was judged."""
    from datapool.model.embedding_model import build_model, load_checkpoint

    if params.checkpoint:
        model = load_checkpoint(Path(params.checkpoint))
        _require_same_settings(
            model, params.lightly, source=f"checkpoint {params.checkpoint}", remedy="or set another checkpoint"
        )
        return model, "weights of a given checkpoint", []
    settings = params.lightly.model
    has_trained_weights = settings.pretrained or settings.weights is not None
    if not has_trained_weights and not params.enable_training:
        raise DatapoolError(
            "params.yaml: enable_training is false, and there is no checkpoint, no lightly.model.weights and "
            "lightly.model.pretrained is false, so only random weights are left, and their embeddings mean nothing; set "
            "one of them"
        )
    model = build_model(
        settings.name,
        dimension=settings.num_ftrs,
        input_size=params.lightly.collate.input_size,
        pretrained=settings.pretrained,
        weights=Path(settings.weights) if settings.weights else None,
        seed=params.seed,
        layers=_layers(settings.layers, has_trained_weights=has_trained_weights),
        decode=decode,
    )
    if not has_trained_weights:
        return model, _RANDOM_WEIGHTS, []
    fitted = _with_fitted_head(model, images, params, cache, squares, labels=labels)
    return fitted.model, model.origin, [fitted.measured] if fitted.measured else []


def _layers(
    setting: Literal["auto", "last"] | list[int | Literal["last"]], *, has_trained_weights: bool
) -> list[int | Literal["last"]] | Literal["auto"] | None:
    """Return ``lightly.model.layers`` as ``build_model`` takes it."""
    # What a random backbone learns is in its last features: training looks at nothing else.
    if setting == "last" or (setting == "auto" and not has_trained_weights):
        return None
    return setting


def _with_fitted_head(
    model: "EmbeddingModel",
    images: Sequence[ImageFile],
    params: Params,
    cache: RowCache,
    squares: SquareStore | None,
    *,
    labels: Sequence[str] | None,
) -> "FittedHead":
    """Return the model with a head that is fitted to the images.

    Without a training, the embeddings of these images are known now, and embed need not read them again.
    """
    from datapool.model.embedding import keep_embeddings
    from datapool.training.fitted_head import fit_to_images

    batch_size, accelerator = params.lightly.loader.batch_size, params.lightly.trainer.accelerator
    fitted = fit_to_images(
        model,
        images,
        labels=labels,
        seed=params.seed,
        with_edits=model.preprocessing.decode != "full",  # made anew, a pool of an early release keeps its bytes
        batch_size=batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=accelerator,
        squares=squares,
    )
    if not params.enable_training:
        keep_embeddings(
            fitted.model, fitted.images, fitted.features, cache=cache, batch_size=batch_size, accelerator=accelerator
        )
    return fitted


class _Trained(NamedTuple):
    """The outcome of a training."""

    result: "TrainingResult"
    best: "EmbeddingModel"
    """The model to use: the start, if that was better."""
    origin: str
    """A clause for the lineage."""
    measured: list[Measured]
    notes: list[str]


def _train(
    start: "EmbeddingModel",
    images: Sequence[ImageFile],
    labels: Sequence[str] | None,
    params: Params,
    *,
    has_start: bool,
    scratch_dir: Path,
    progress: Progress,
) -> _Trained:
    """Train a model. Where there is a start to go back to, some images are held back to measure which one is better."""
    from datapool.training.gate import compare, held_back
    from datapool.training.simclr import TrainerSettings, train_simclr
    from datapool.training.views import Augmentation

    tested: list[int] = held_back(len(images)).tolist() if has_start else []
    to_train_on = [images[row] for row in sorted(set(range(len(images))) - set(tested))]
    batch_size, trainer = params.lightly.loader.batch_size, params.lightly.trainer
    result = train_simclr(
        start,
        to_train_on,
        augmentation=Augmentation(**params.lightly.collate.model_dump(exclude={"input_size"})),
        trainer=TrainerSettings(**trainer.model_dump()),
        out_dim=params.lightly.model.out_dim,
        batch_size=batch_size,
        num_workers=params.lightly.loader.num_workers,
        lr=params.lightly.optimizer.lr,
        weight_decay=params.lightly.optimizer.weight_decay,
        temperature=params.lightly.criterion.temperature,
        seed=params.seed,
        scratch_dir=scratch_dir,
        progress=progress,
        keeps_statistics=has_start,
    )
    origin = f"trained on {len(to_train_on)} images for {trainer.max_epochs} epochs"
    notes = _training_notes(result, n_images=len(to_train_on))
    if not tested or not result.is_main_process:
        return _Trained(result, result.best, origin, [], notes)
    measured = compare(
        start,
        result.best,
        [images[row] for row in tested],
        [labels[row] for row in tested] if labels else None,
        batch_size=batch_size,
        accelerator=trainer.accelerator,
    )
    if measured.kept:
        return _Trained(result, result.best, origin, [measured], [*notes, measured.summary])
    return _Trained(result, start, f"not {origin}, which made it no better", [measured], [*notes, measured.summary])

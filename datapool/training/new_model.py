"""Make the model of a new pool: a given one, a pretrained one whose head fits the batch, or one that is trained on it.

torch takes seconds to import, so it is imported only when a model is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, Measured
from datapool.training.job import IN_HELPER, Job, ProvidedModel, with_levels, write_no_model
from datapool.training.own_model import require_same_settings

if TYPE_CHECKING:
    from datapool.model.checkpoint_file import Decoding
    from datapool.model.embedding_model import EmbeddingModel
    from datapool.training.fitted_head import FittedHead
    from datapool.training.self_supervised import StepLoss

_RANDOM_WEIGHTS = "random weights"


def new_model(job: Job, *, decode: "Decoding", early: EmbeddingSpace | None) -> ProvidedModel:
    """Make the model of a new pool, and write its checkpoints.

    Args:
        job: The first batch of the pool, of one image or more.
        decode: How JPEG files are decoded: at full size for a pool that an early release began.
        early: The space of the version that is made anew, if an early release made it: in the same one its levels stay.

    Raises:
        DatapoolError: As ``provide_model``.
    """
    from datapool.model.embedding_model import embedding_space_id, save_checkpoint
    from datapool.model.layers import shown

    start, origin, measured = _initial_model(job, decode=decode)
    params = job.params
    is_wanted = params.training != "never"
    best = after_last_epoch = start
    losses: Sequence[StepLoss] = ()
    layers = "" if start.layers is None else f" of layers {shown(start.layers)}"
    notes = [
        f"new model: {start.backbone_name} with {start.dimension} dimensions{layers}, {origin}",
        *(each.summary for each in measured),
    ]
    # One image cannot be told apart from others. Random weights are useless untrained, so then the training refuses it.
    if is_wanted and (len(job.images) > 1 or origin == _RANDOM_WEIGHTS):
        from datapool.training.gated import train_and_measure

        # Random weights are no model to go back to. A pool of an early release that is made anew keeps its bytes.
        has_start = origin != _RANDOM_WEIGHTS and decode != "full"
        trained = train_and_measure(start, job, has_start=has_start)
        if not trained.result.is_main_process:
            return IN_HELPER
        after_last_epoch, losses = trained.result.last, trained.result.step_losses
        if trained.is_better:
            best, origin = trained.result.best, f"{origin}, {trained.origin}"
        else:
            origin += f", not {trained.origin}, which made it no better"
        notes += trained.notes
        if trained.measured:
            measured.append(trained.measured)
            notes.append(trained.measured.summary)
    elif is_wanted:
        notes.append("the batch has one image, and training needs two or more: the model is used without training")
    save_checkpoint(best, job.files.best)
    save_checkpoint(after_last_epoch, job.files.last)
    write_no_model(job.files.candidate)
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
    is_early = early is not None and early.id == space.id
    space = space.with_levels(early.levels) if early and is_early else with_levels(space, best, job)
    return ProvidedModel(space, losses, notes)


def _initial_model(job: Job, *, decode: "Decoding") -> "tuple[EmbeddingModel, str, list[Measured]]":
    """Return the model before training, the origin of its weights for the lineage, and how its head was judged."""
    from datapool.model.embedding_model import build_model, load_checkpoint

    params = job.params
    if params.checkpoint:
        model = load_checkpoint(Path(params.checkpoint))
        require_same_settings(
            model, params.lightly, source=f"checkpoint {params.checkpoint}", remedy="or set another checkpoint"
        )
        return model, "weights of a given checkpoint", []
    settings = params.lightly.model
    has_trained_weights = settings.pretrained or settings.weights is not None
    if not has_trained_weights and params.training == "never":
        raise DatapoolError(
            "params.yaml: enable_training is never, and there is no checkpoint, no lightly.model.weights and "
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
    fitted = _with_fitted_head(model, job)
    return fitted.model, model.origin, [fitted.measured] if fitted.measured else []


def _layers(
    setting: Literal["auto", "last"] | list[int | Literal["last"]], *, has_trained_weights: bool
) -> list[int | Literal["last"]] | Literal["auto"] | None:
    """Return ``lightly.model.layers`` as ``build_model`` takes it."""
    # What a random backbone learns is in its last features: training looks at nothing else.
    if setting == "last" or (setting == "auto" and not has_trained_weights):
        return None
    return setting


def _with_fitted_head(model: "EmbeddingModel", job: Job) -> "FittedHead":
    """Return the model with a head that is fitted to the images.

    Without a training, the embeddings of these images are known now, and embed need not read them again.
    """
    from datapool.model.embedding import keep_embeddings
    from datapool.training.fitted_head import fit_to_images

    params = job.params
    batch_size, accelerator = params.lightly.loader.batch_size, params.lightly.trainer.accelerator
    fitted = fit_to_images(
        model,
        job.images,
        labels=job.labels,
        seed=params.seed,
        with_edits=model.preprocessing.decode != "full",  # made anew, a pool of an early release keeps its bytes
        batch_size=batch_size,
        num_workers=params.lightly.loader.num_workers,
        accelerator=accelerator,
        squares=job.squares,
    )
    if params.training == "never":
        keep_embeddings(
            fitted.model,
            fitted.images,
            fitted.features,
            cache=job.cache,
            batch_size=batch_size,
            accelerator=accelerator,
        )
    return fitted

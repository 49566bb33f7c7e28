"""Find the weights of a backbone among those of a file, whatever the training program called them."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError, short_repr
from datapool.model.weights import first_few

State = Mapping[str, Tensor]
"""Weights by their names."""

Convert = Callable[[State, nn.Module], State]
"""Turn the weights of another release, program or input size into those of this module; may raise anything."""

_CLASSIFIERS = {"fc", "classifier", "head", "heads", "head_dist"}
_COUNTER = "num_batches_tracked"  # changes no embedding, and older files have none
_PREFIXES = 50  # at most so many are tried: a file of unknown origin may have thousands

# Self-supervised training keeps two copies of a backbone. The papers of DINO and its successors evaluate the teacher;
# those of MoCo and BYOL the network that was trained, not its moving average.
_TAKEN_LAST = {"student", "ema", "momentum", "target", "k"}  # "k" as in MoCo's encoder_k

# The weights that belong to places in an image: only these may be resampled.
_POSITIONS = re.compile("pos|bias_table|attention_bias")


class Match(NamedTuple):
    """The weights of a backbone in a file."""

    state: dict[str, Tensor]
    """By the names of the backbone; a counter of batches may be missing."""
    note: str
    """What the user should know of the choice; may be empty."""


def match_weights(module: nn.Module, state: State, *, convert: Convert | None, name: str, source: str) -> Match:
    """Return the weights of a backbone among those of a file.

    The names in the file may have a prefix; may be numbers, as in ``nn.Sequential(*children)``; or may be those of an
    original release that ``convert`` knows. Weights of other modules are ignored. If several copies fit, the teacher's is
    taken, else one that is no moving average, else the one with the shortest prefix.

    Args:
        module: The backbone.
        state: All weights of the file.
        convert: Tried if the names or the position embeddings differ.
        name: The backbone's name, for the message.
        source: The file, for the message.

    Raises:
        DatapoolError: If the file has no weights, or those of another network.
    """
    if not state:
        raise DatapoolError(
            f"{source}: no weights are found in it; give a file of a state dict, as `torch.save(model.state_dict(), ...)` "
            "writes it"
        )
    own = module.state_dict()
    parts = {prefix: _below(prefix, state) for prefix in _prefixes(own, state)}
    fitting = {prefix: found for prefix, part in parts.items() if (found := _fit(module, own, part, convert))}
    if not fitting:
        raise DatapoolError(
            f"{source}: weights do not fit lightly.model.name {name}: {_difference(own, list(parts.values()))}; name the "
            "backbone that they were made for"
        )
    taken = next(iter(fitting))
    found = fitting[taken]
    others = [prefix for prefix in fitting if not _is_within(prefix, taken)]
    notes = [f"its {_shown(taken)}, not its {' or '.join(map(_shown, others[:3]))}"] if others else []
    if any(key in found and found[key].shape != parts[taken].get(key, found[key]).shape for key in own):
        notes.append("position embeddings resampled to this input size")
    return Match({key: found[key] for key in own if key in found}, "; ".join(notes))


def _shown(prefix: str) -> str:
    return short_repr(prefix.removesuffix("."))


def _is_within(prefix: str, other: str) -> bool:
    return prefix.startswith(other) or other.startswith(prefix)


def _below(prefix: str, state: State) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _prefixes(own: State, state: State) -> list[str]:
    """Return the prefixes below which a file may have the weights of ``own``, the best first."""
    counts: dict[str, int] = {}
    for key in state:
        parts = key.split(".")
        for n in range(len(parts)):
            prefix = ".".join([*parts[:n], ""])
            counts[prefix] = counts.get(prefix, 0) + 1
    enough = len(_without_counters(own)) / 2  # a conversion may join some weights
    return sorted((prefix for prefix, n in counts.items() if n >= enough or not prefix), key=_preference)[:_PREFIXES]


def _preference(prefix: str) -> tuple[int, int]:
    words = set(re.split("[._]", prefix))
    return 0 if "teacher" in words else 2 if words & _TAKEN_LAST else 1, len(prefix)


def _fit(module: nn.Module, own: State, theirs: State, convert: Convert | None) -> State | None:
    """Return the weights of ``own`` among ``theirs``, by the names of ``own``; None if they are those of another network."""
    for candidate in (theirs, _with_names_for_numbers(own, theirs)):
        if candidate is not None and not _missing(own, candidate) and not _surplus(own, candidate):
            return candidate
    if convert is None or not theirs:
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            converted = convert(dict(theirs), module)
    except Exception:  # noqa: BLE001  timm's conversions meet names and shapes that they do not expect
        return None
    is_fitting = not _missing(own, converted) and not _surplus(own, converted) and not _is_resampled(own, theirs)
    return converted if is_fitting else None


def _is_resampled(own: State, theirs: State) -> bool:
    """Return whether a conversion must have resampled other weights than position embeddings.

    timm resamples the kernels of patches as well. They would then be those of a network that nobody trained.
    """
    shapes = {key: value.shape for key, value in own.items() if not _POSITIONS.search(key)}
    return any(
        value.ndim == len(shapes[key]) == 4 and value.shape != shapes[key]
        for name, value in theirs.items()
        for key in _endings(name)
        if key in shapes
    )


def _endings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[n:]) for n in range(len(parts)))


def _with_names_for_numbers(own: State, theirs: State) -> dict[str, Tensor] | None:
    """Return ``theirs`` with the names of ``own`` for the numbers with which its keys begin; None if that cannot be.

    ``nn.Sequential(*list(resnet.children())[:-1])`` numbers the parts of a network in their order. So the shapes of both are
    compared in their order; the names within a part are kept.
    """
    numbered = {key: value for key, value in theirs.items() if key.split(".")[0].isdecimal()}
    names: dict[str, str] = {}
    pairs = zip(_without_counters(own).items(), _without_counters(numbered).items(), strict=False)
    for (our_key, ours), (their_key, value) in pairs:
        our_part, their_part = our_key.split(".")[0], their_key.split(".")[0]
        if ours.shape != value.shape or names.setdefault(their_part, our_part) != our_part:
            return None
    if len(set(names.values())) < len(names):
        return None
    return {
        names[part] + dot + rest: value
        for key, value in numbered.items()
        for part, dot, rest in [key.partition(".")]
        if part in names
    }


def _without_counters(state: State) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(_COUNTER)}


def _missing(own: State, theirs: State) -> list[str]:
    """Return the keys of ``own`` that ``theirs`` lacks or has in another shape; a counter of batches may be missing."""
    shapes = {key: value.shape for key, value in theirs.items() if isinstance(value, Tensor)}
    return [key for key, value in _without_counters(own).items() if shapes.get(key) != value.shape]


def _surplus(own: State, theirs: State) -> list[str]:
    """Return the keys of ``theirs`` by which it is a deeper network: ResNet-34 has all the weights of ResNet-18 and more.

    The weights of a classifier are not surplus: the backbone is used without its own.
    """
    parts = {key.split(".")[0] for key in own} - _CLASSIFIERS
    return [key for key in theirs if key not in own and key.split(".")[0] in parts]


def _difference(own: State, parts: list[dict[str, Tensor]]) -> str:
    """Describe how the part of a file that comes nearest to ``own`` differs from it."""
    named = [
        part for original in parts for part in (original, _with_names_for_numbers(own, original)) if part is not None
    ]
    nearest = min(named, key=lambda part: (len(_missing(own, part)), -len(part)))
    missing, surplus = _missing(own, nearest), _surplus(own, nearest)
    if missing:
        return (
            f"{len(missing)} of {len(_without_counters(own))} are missing or of another shape "
            f"({first_few(missing)}); the file has {len(nearest)}, such as {first_few([key[:60] for key in nearest])}"
        )
    return f"{len(surplus)} too many ({first_few(surplus)})"

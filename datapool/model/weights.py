"""Read files of weights that nobody vouches for: nothing in them is executed, and nothing half read is used.

Knows file formats and the fields of our own checkpoints; nothing of how a model is built from them.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard, cast, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError

CHECKPOINT_KIND = "datapool checkpoint"
CHECKPOINT_FORMAT = 1

Resize = Literal["squash bicubic", "squash bilinear"]

_FIELDS = ("backbone", "dimension", "input_size", "mean", "std", "state_dict")
_WRAPPERS = 10  # dictionaries around the weights; one may hold itself
_LARGEST_INPUT = 2048  # of a checkpoint that is not trusted, so that it cannot ask for all the memory

# Whose objects, and what else in them, a checkpoint of Lightning may name.
_TRAINING_PROGRAMS = ("pytorch_lightning", "lightning", "lightning_fabric", "lightly", "omegaconf")
_PLAIN_TYPES = (
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "tuple")),
)

# What torch raises on files that are damaged or no weights at all. Code in a pickle is an UnpicklingError.
_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ImportError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointFields:
    """What one of our checkpoints holds."""

    backbone: str
    dimension: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize
    state_dict: dict[str, Tensor]


def checkpoint_fields(path: Path, content: object) -> CheckpointFields:
    """Check the fields of a checkpoint before anything is built from them."""
    if not isinstance(content, dict) or content.get("kind") != CHECKPOINT_KIND:
        raise DatapoolError(
            f"{path}: is no checkpoint of datapool; to start from weights of another program set lightly.model.weights"
        )
    if content.get("format") != CHECKPOINT_FORMAT:
        raise DatapoolError(
            f"{path}: is a checkpoint of format {content.get('format')!r}, this datapool reads {CHECKPOINT_FORMAT}; use the "
            "datapool that wrote it, or a newer one"
        )
    backbone, dimension, input_size, mean, std, state = (content.get(field) for field in _FIELDS)
    resize = content.get("resize", "squash bicubic")  # which is not written
    if not (
        content.keys() - {"resize"} == {"kind", "format", *_FIELDS}
        and isinstance(resize, str)
        and resize in get_args(Resize)
        and isinstance(backbone, str)
        and type(dimension) is int  # a bool is an int as well
        and dimension >= 1
        and type(input_size) is int
        and 1 <= input_size <= _LARGEST_INPUT
        and _is_triple(mean)
        and _is_triple(std)
        and min(std) > 0
        and isinstance(state, dict)
        and all(isinstance(key, str) and _is_plain(value) for key, value in state.items())
    ):
        raise DatapoolError(
            f"{path}: its fields are not those of a datapool checkpoint ({some(sorted(map(str, content)))}); fetch or "
            "write it again"
        )
    how = cast(Resize, resize)
    return CheckpointFields(backbone, dimension, input_size, triple(mean), triple(std), how, state)


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Say whether a value is a tensor with all its numbers; a sparse one, or one without data, is not what we save."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_nested)


def _is_triple(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, float) and np.isfinite(v) for v in value)


def triple(values: Sequence[float]) -> tuple[float, float, float]:
    """Say to the type checker that there are three."""
    first, second, third = values
    return first, second, third


def read_weights(path: Path) -> object:
    """Load a .safetensors file, or any that ``read_torch_file`` takes.

    Raises:
        DatapoolError: If the file is missing, damaged or holds code.
    """
    if path.suffix != ".safetensors":
        return read_torch_file(path, zip_only=False)
    _check_is_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *_LOAD_ERRORS) as error:
        raise DatapoolError(f"{path}: is no complete safetensors file ({one_line(error)}); fetch it again") from error


def read_torch_file(path: Path, *, zip_only: bool) -> object:
    """Load plain types and tensors to the CPU; nothing in the file is executed."""
    _check_is_file(path)
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give read permission") from error
    if is_zip:
        _check_zip(path)
    elif zip_only:
        raise DatapoolError(f"{path}: is not a checkpoint (it is no zip file of torch.save); give another file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"it holds a Python object, {forbidden[1]}, and is not executed; save tensors and plain types only"
            if forbidden
            else "it asks for more memory than there is; free memory, or fetch it again"
            if isinstance(error, MemoryError)
            else "torch finds no tensors and plain types in it; fetch it again or give another file"
        )
        raise DatapoolError(f"{path}: is not a file of weights: {why}") from error


class OpaqueObject:
    """Stands for an object of a program that trained: nothing of its class is run, only what it held is there."""

    state: object = None

    def __new__(cls, *_: object) -> Self:
        """Take any arguments, and do nothing with them."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Take any arguments, and do nothing with them."""

    def __setstate__(self, state: object) -> None:
        """Keep what the object held."""
        self.state = state


def read_lightning_file(path: Path) -> object:
    """Load a checkpoint of Lightning: as ``read_torch_file``, but objects of its own classes become ``OpaqueObject``.

    Older releases put classes beside the weights (as names of callbacks), and settings of omegaconf. None is looked up by
    its name, let alone run: in this file the name means ``OpaqueObject``. Every other object is refused.

    Raises:
        DatapoolError: As ``read_torch_file``.
    """
    _check_is_file(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _LOAD_ERRORS:  # which reading it will say better
        names = []
    known = [name for name in names if name.split(".")[0] in _TRAINING_PROGRAMS or name in _PLAIN_TYPES]
    stand_ins: list[Any] = [(dict if name.endswith("AttributeDict") else OpaqueObject, name) for name in known]
    with torch.serialization.safe_globals(stand_ins):
        return read_torch_file(path, zip_only=True)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "is not there"
        raise DatapoolError(f"{path}: {what}; a file of weights should be (perhaps `dvc pull` is due)")
    if path.stat().st_size == 0:
        raise DatapoolError(f"{path}: is an empty file; a file of weights should be there, fetch it again")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression: what inflates is no checkpoint, and might fill the memory.
            entries = archive.infolist()
            is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise DatapoolError(
                    f"{path}: is a packed file, which no checkpoint is; fetch it again, or do not use it"
                )
            damaged = archive.testzip()
    except _LOAD_ERRORS as error:
        raise DatapoolError(f"{path}: is not complete (its end is missing or damaged); fetch it again") from error
    if damaged is not None:
        raise DatapoolError(f"{path}: is damaged (checksum of {damaged}); fetch it again")


def check_finite(module: nn.Module, *, source: str) -> None:
    """Refuse weights that are NaN or infinite; ``source`` is for the message."""
    bad = [key for key, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise DatapoolError(f"{source}: weights are not finite ({some(bad)}); train or fetch them again")


def find_state_dict(content: object) -> dict[str, Tensor]:
    """Unwrap the dictionaries that training programs put around the weights."""
    for _ in range(_WRAPPERS):
        if not isinstance(content, dict):
            break
        wrapped = (content.get(key) for key in ("state_dict", "model_state_dict", "model"))
        inner = next((value for value in wrapped if isinstance(value, dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and _is_plain(value)}


def some(keys: list[str]) -> str:
    """Show the first few of many names."""
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")


def one_line(error: BaseException) -> str:
    """Show an error of another library within a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__

"""Read untrusted files of weights: no code in them is executed, and a damaged file is refused before it is used."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, Self, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError

_WRAPPERS = 10  # dictionaries around the weights; a limit, for a dictionary may contain itself

# Lightning's checkpoints may name classes of these packages, and these plain types.
_TRAINING_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightly", "omegaconf")
_PLAIN_TYPES = (
    "typing.Any",
    "collections.defaultdict",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "tuple")),
)

# What torch raises for files that are damaged or hold no weights. For code in a pickle it raises UnpicklingError.
_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ImportError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_weights(path: Path) -> object:
    """Read a .safetensors file, or any file that ``read_torch_file`` reads.

    Raises:
        DatapoolError: If the file is missing or damaged, or holds code.
    """
    if path.suffix != ".safetensors":
        return read_torch_file(path, zip_only=False)
    _require_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *_LOAD_ERRORS) as error:
        raise DatapoolError(
            f"{path}: is not a complete safetensors file ({one_line(error)}); fetch it again"
        ) from error


def read_torch_file(path: Path, *, zip_only: bool) -> object:
    """Read plain types and tensors that ``torch.save`` wrote, to the CPU. Nothing in the file is executed.

    Args:
        path: The file.
        zip_only: Refuse files of torch before 1.6, which are bare pickles and have no checksums.

    Raises:
        DatapoolError: If the file is missing or damaged, or holds code.
    """
    _require_file(path)
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give read permission") from error
    if is_zip:
        _require_sound_zip(path)
    elif zip_only:
        raise DatapoolError(f"{path}: is not a checkpoint (it is not a zip file of torch.save); give another file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise DatapoolError(f"{path}: is not a file of weights: {_why_not_loaded(error)}") from error


def _why_not_loaded(error: Exception) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds a Python object, {found[1]}, and is not executed; save tensors and plain types only"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is; free memory, or fetch it again"
    return "torch finds no tensors and plain types in it; fetch it again or give another file"


class OpaqueObject:
    """Stands for an object of a training program. Its class is never imported; only its attributes are kept."""

    state: object = None

    def __new__(cls, *_: object) -> Self:
        """Accept any arguments and ignore them."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Accept any arguments and ignore them."""

    def __setstate__(self, state: object) -> None:
        """Keep the attributes of the object."""
        self.state = state


def read_lightning_file(path: Path) -> object:
    """Read a checkpoint of Lightning as ``read_torch_file`` does, but with its objects as ``OpaqueObject``.

    Older releases store classes beside the weights (as names of callbacks), and omegaconf settings. Such a name is never
    looked up, and its class never run: while this file is read, the name means ``OpaqueObject``. All other objects are
    refused.

    Raises:
        DatapoolError: As ``read_torch_file``.
    """
    _require_file(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _LOAD_ERRORS:  # read_torch_file raises the better error
        names = []
    known = [name for name in names if name.split(".")[0] in _TRAINING_PACKAGES or name in _PLAIN_TYPES]
    stand_ins: list[Any] = [(dict if name.endswith("AttributeDict") else OpaqueObject, name) for name in known]
    with torch.serialization.safe_globals(stand_ins):
        return read_torch_file(path, zip_only=True)


def find_state_dict(content: object) -> dict[str, Tensor]:
    """Return the weights inside the dictionaries that training programs put around them; {} if there are none."""
    if not isinstance(content, dict):
        return {}
    for _ in range(_WRAPPERS):
        wrapped = (content.get(key) for key in ("state_dict", "model_state_dict", "model"))
        inner = next((value for value in wrapped if isinstance(value, dict)), None)
        if inner is None:
            break
        content = inner
    return {key: value for key, value in content.items() if isinstance(key, str) and is_dense(value)}


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor that stores all its numbers: not sparse, not nested, not without data."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_nested)


def require_finite(module: nn.Module, *, source: str) -> None:
    """Refuse a module with weights that are NaN or infinite.

    Args:
        module: The module.
        source: Where its weights come from, for the message.
    """
    bad = [key for key, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise DatapoolError(f"{source}: weights are not finite ({first_few(bad)}); train or fetch them again")


def first_few(keys: list[str]) -> str:
    """Return the first five of many names, for a message.

    >>> first_few(["a", "b"])
    'a, b'
    """
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")


def one_line(error: BaseException) -> str:
    """Return the message of another library's error as one line of 160 characters at most."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "is not there"
        raise DatapoolError(f"{path}: {what}; it should be a file of weights (perhaps `dvc pull` is due)")
    if path.stat().st_size == 0:
        raise DatapoolError(f"{path}: is an empty file; it should be a file of weights, fetch it again")


def _require_sound_zip(path: Path) -> None:
    """Refuse a zip file that would grow when it is unpacked, or whose checksums are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression. A compressed or overlapping entry could fill the memory.
            entries = archive.infolist()
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise DatapoolError(
                    f"{path}: is a compressed zip file, which no checkpoint is; fetch it again, or do not use it"
                )
            damaged = archive.testzip()
    except _LOAD_ERRORS as error:
        raise DatapoolError(f"{path}: is not complete (its end is missing or damaged); fetch it again") from error
    if damaged is not None:
        raise DatapoolError(f"{path}: is damaged (checksum of {damaged}); fetch it again")

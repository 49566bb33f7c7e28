"""Read untrusted files of weights: no code in them is executed, and a damaged file is refused before it is used."""

import _compat_pickle
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError
from datapool.core.outputs import NO_MODEL

_WRAPPERS = 10  # dictionaries around the weights; a limit, for a dictionary may contain itself

_NESTING = 30  # dictionaries and modules within each other

# Training programs store objects beside the weights: settings, callbacks, whole modules. Objects of their own packages are
# stood in for. Python's standard library (also by its names in Python 2), torch and numpy have functions that run code, so
# of these only the following names are.
_GUARDED_PACKAGES = {"torch", "numpy", *sys.stdlib_module_names, *_compat_pickle.IMPORT_MAPPING}
_PLAIN_NAMES = (
    "typing.Any", "collections.defaultdict", "argparse.Namespace", "types.SimpleNamespace", "functools.partial",
    "datetime.datetime", "datetime.timedelta", "uuid.UUID",
    *(f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "bool", "tuple")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
_PLAIN_PACKAGES = ("torch.nn.", "torch._C._nn.", "torch.optim.")

# What torch raises for files that are damaged or hold no weights. For code in a pickle it raises UnpicklingError.
LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ImportError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_weights(path: Path) -> object:
    """Read a .safetensors file, or a file of ``torch.save``, as ``read_training_file`` does.

    Raises:
        DatapoolError: If the file is missing or damaged, or holds code.
    """
    if path.suffix != ".safetensors":
        return read_training_file(path, zip_only=False)
    _require_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *LOAD_ERRORS) as error:
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
    require_sound_file(path, zip_only=zip_only)
    return _load(path)


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise DatapoolError(f"{path}: is not a file of weights: {_why_not_loaded(error)}") from error


def _why_not_loaded(error: Exception) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds a Python object, {found[1]}, and is not executed; save model.state_dict() alone"
    if re.search("Can only (append|extend|SETITEM|build|create)", str(error)):
        return "it holds Python objects that are not read, for that would run code; save the state_dict() alone"
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


def read_training_file(path: Path, *, zip_only: bool) -> object:
    """Read a file of a training program as ``read_torch_file`` does, but with its objects as ``OpaqueObject``.

    Such files have settings, names of callbacks or whole modules beside the weights. The name of a class is never looked
    up, and the class never run: while this file is read, the name means ``OpaqueObject``, or a dictionary. Functions of
    torch and of Python's standard library are refused, as are all objects in files of torch before 1.6.

    Raises:
        DatapoolError: As ``read_torch_file``.
    """
    if not require_sound_file(path, zip_only=zip_only):
        return _load(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except LOAD_ERRORS:  # _load raises the better error
        names = []
    stand_ins: list[Any] = [(_stand_in(name), name) for name in names if _is_harmless(name)]
    with torch.serialization.safe_globals(stand_ins):
        return _load(path)


def _is_harmless(name: str) -> bool:
    """Return whether an object of this class may be stood in for; otherwise the file is refused."""
    is_plain = name in _PLAIN_NAMES or name.startswith(_PLAIN_PACKAGES)
    return is_plain or name.partition(".")[0] not in _GUARDED_PACKAGES


def _stand_in(name: str) -> type:
    # torch sets items of an exact OrderedDict only. Kinds of dictionaries end in such names: AttributeDict, EasyDict.
    return OrderedDict if name.endswith(("Dict", "CfgNode")) else OpaqueObject


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


def named_tensors(content: object) -> dict[str, Tensor]:
    """Return all tensors in dictionaries within dictionaries, each under its keys joined by dots, in the order of the file.

    A whole module, of which ``read_training_file`` has kept the attributes, has the names of its state dict.

    >>> list(named_tensors({"teacher": {"conv.weight": torch.zeros(1)}, "epoch": 3}))
    ['teacher.conv.weight']
    """
    return dict(_walk(content, "", depth=_NESTING, seen=set()))


def _walk(value: object, name: str, *, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if is_dense(value):
        if name:
            yield name, value
    elif depth and id(value) not in seen:  # a dictionary may contain itself
        seen.add(id(value))
        for key, inner in _children(value):
            yield from _walk(inner, f"{name}.{key}" if name else key, depth=depth - 1, seen=seen)


def _children(value: object) -> Iterator[tuple[str, object]]:
    parts = [value]
    if isinstance(value, OpaqueObject) and isinstance(value.state, dict):
        parts = [value.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
    for part in parts:
        if isinstance(part, dict):
            yield from ((key, inner) for key, inner in part.items() if isinstance(key, str))


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


def require_sound_file(path: Path, *, zip_only: bool) -> bool:
    """Refuse what is no file of ``torch.save``, or a damaged one. Return whether it is a zip file."""
    _require_file(path)
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise DatapoolError(f"{path}: cannot be read ({error.strerror}); give read permission") from error
    if is_zip:
        _require_sound_zip(path)
    elif path.stat().st_size == len(NO_MODEL) and path.read_bytes() == NO_MODEL:
        raise DatapoolError(f"{path}: has no model, for the run that wrote it found none; give another file")
    elif zip_only:
        raise DatapoolError(f"{path}: is not a checkpoint (it is not a zip file of torch.save); give another file")
    return is_zip


def _require_sound_zip(path: Path) -> None:
    """Refuse a zip file that would grow when it is unpacked, or whose checksums are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression. A compressed or overlapping entry could fill the memory.
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise DatapoolError(
                    f"{path}: is a TorchScript program, which is not executed; save the state_dict() of its module"
                )
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise DatapoolError(
                    f"{path}: is a compressed zip file, which no checkpoint is; fetch it again, or do not use it"
                )
            damaged = archive.testzip()
    except LOAD_ERRORS as error:
        raise DatapoolError(f"{path}: is not complete (its end is missing or damaged); fetch it again") from error
    if damaged is not None:
        raise DatapoolError(f"{path}: is damaged (checksum of {damaged}); fetch it again")

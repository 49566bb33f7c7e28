"""Read the objects of a store, such as S3, by fsspec, which finds credentials and endpoint as other programs do."""

import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from datapool.core.errors import DatapoolError
from datapool.core.schema import as_dvc_writes, is_url

_BUFFER = 8 * 2**20  # bytes that are read at once where a file is read from its beginning to its end
_SHOWN = 300  # characters of a store's message

logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns at each object that it may not ask what kind a bucket is


@dataclass(frozen=True)
class ObjectPath:
    """The URL of an object, or of a folder of objects: a prefix. It does what a Path does for a file."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, path: str) -> "ObjectPath":
        return ObjectPath(f"{self.url.rstrip('/')}/{path}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return PurePosixPath(self.url).suffix

    def with_name(self, name: str) -> "ObjectPath":
        """Return the URL with another last part."""
        return ObjectPath(f"{self.url.rpartition('/')[0]}/{name}")

    def absolute(self) -> "ObjectPath":
        """Return it itself."""
        return self

    def read_bytes(self) -> bytes:
        """Return the bytes of the object.

        Raises:
            OSError: If there is no such object.
            DatapoolError: If the store does not answer or refuses: that is no damage of an image.
        """
        with _explained(self.url):
            fs, path = _opened(self.url)
            return fs.cat_file(path)

    def open(self, mode: str = "rb", buffering: int = _BUFFER) -> BinaryIO:
        """Return the object as a file of which parts are read; errors as for ``read_bytes``, also while it is read."""
        if 0 < state_of(self)[1] <= buffering:
            return io.BytesIO(self.read_bytes())
        raw: Any = _Raw(self)
        return raw if buffering == 0 else io.BufferedReader(raw, buffering)


class _Raw(io.RawIOBase):
    """An object of which ranges are read."""

    def __init__(self, file: ObjectPath) -> None:
        self._file, self._at, self._is_lost = file, 0, False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: -1}[whence]
        self._at = (state_of(self._file)[1] if start < 0 else start) + offset
        return self._at

    def readinto(self, into: Any) -> int:  # noqa: ANN401  a buffer
        if self._is_lost:
            return 0  # FFmpeg goes on reading after an error, and PyAV would print each further one
        end = min(self._at + len(into), state_of(self._file)[1])
        if end <= self._at:
            return 0
        try:
            with _explained(self._file.url):
                fs, path = _opened(self._file.url)
                data = fs.cat_file(path, start=self._at, end=end)
        except DatapoolError:
            self._is_lost = True
            raise
        into[: len(data)] = data
        self._at += len(data)
        return len(data)


Folder = Path | ObjectPath
"""Where the images of a batch are."""


def folder_of(name: str) -> Folder:
    """Return the folder that a text such as ``input_dir`` names: on a disk, or in a store."""
    return ObjectPath(as_dvc_writes(name).rstrip("/")) if is_url(name) else Path(name)


def list_objects(folder: ObjectPath) -> Iterator[tuple[str, int]]:
    """Yield the path below a folder and the size in bytes of each object, sorted; without those that stand for a folder.

    Raises:
        DatapoolError: If the store does not answer or refuses, or an object has a name that is no path, such as "a//b.jpg".
    """
    _state.cache_clear()
    _names_in.cache_clear()
    with _explained(folder.url):
        fs, root = _opened(folder.url)
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
    for key, info in sorted(found.items()):
        path = key[len(root) :].removeprefix("/")
        if not path or path.endswith("/"):
            continue
        if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
            raise DatapoolError(f"{folder}: the object {path!r} has a name that is no path of a file; rename it")
        yield path, info["size"]


def state_of(file: Folder) -> tuple[object, int]:
    """Return what changes when a file does, and its size in bytes. Of an object it is asked for once per listing.

    Raises:
        OSError: If it is not there, or is a FIFO or a device, which may block forever when it is opened.
        DatapoolError: If the store does not answer or refuses.
    """
    if isinstance(file, ObjectPath):
        return _state(file.url)
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(None, "not a regular file", str(file))
    return found.st_mtime_ns, found.st_size


def is_file(file: Folder) -> bool:
    """Return whether a file or an object is there; False if that cannot be found out on a disk."""
    if isinstance(file, Path):
        return os.path.isfile(file)  # noqa: PTH113  is_file raises if a name is too long
    try:
        return bool(_state(file.url))
    except OSError:
        return False


def is_listed(file: Folder) -> bool:
    """Return the same by one listing of the folder of an object, for many names there that may be none of objects."""
    if isinstance(file, Path):
        return is_file(file)
    try:
        return file.name in _names_in(file.url.rpartition("/")[0])
    except OSError:
        return False


@lru_cache(maxsize=64)
def _names_in(url: str) -> frozenset[str]:
    """Return the names of the objects in a folder, and of the folders there."""
    with _explained(url):
        fs, path = _opened(url)
        fs.invalidate_cache()
        return frozenset(key.rstrip("/").rpartition("/")[2] for key in fs.ls(path, detail=False))


@lru_cache(maxsize=4096)
def _state(url: str) -> tuple[object, int]:
    with _explained(url):
        fs, path = _opened(url)
        info = fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(url)
        return str(info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created")), info[
            "size"
        ]


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path there."""
    scheme, _, path = url.partition("://")
    if scheme == "azure":
        return _azure(os.getpid()), path
    import fsspec

    # Otherwise s3fs reads an object in parts at the same time, and asks for its size first.
    options = {"max_concurrency": 1} if scheme == "s3" else {}
    return fsspec.core.url_to_fs(url, **options)


@lru_cache(maxsize=1)
def _azure(process: int) -> Any:  # noqa: ANN401  of a package that may be absent
    """Return the file system that DVC has: it knows AZURE_STORAGE_ACCOUNT and ~/.azure, by which fsspec finds nothing."""
    from dvc_azure import AzureFileSystem

    return AzureFileSystem().fs


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a store raises into an error of ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise OSError(None, "no such object", url) from error
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise DatapoolError(
            f"{url}: the package that reads {scheme}:// is not installed; `pip install 'dvc-datapool[{scheme}]'`"
        ) from error
    except Exception as error:
        what = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
        raise DatapoolError(
            f"{url}: cannot be read ({what}); check its name, the credentials, the endpoint and the network, then run again"
        ) from error

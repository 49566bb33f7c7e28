"""Find the images in a tar file, such as a shard of a WebDataset, and read one of them without the others before it."""

import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from datapool.core.errors import short_repr
from datapool.images.contents import content_of
from datapool.images.formats import MAX_BYTES, SUFFIXES
from datapool.images.objects import Folder
from datapool.images.parts import Part

_BLOCK = 512  # bytes: every member begins at a multiple of this, and two blocks of zeros are the end
_NOT_A_FILE = -1  # the length of a link or a device


class Contents(NamedTuple):
    """What a file has that holds images."""

    parts: dict[str, tuple[int, int]]
    """Where the image of each name is, in the unit of the format. A name is a path without a dot in front or ".."."""
    others: Counter[str]
    """How many other members there are, by the ending of their names in lower case."""
    damage: str = ""
    """Why it could not be read to its end, or lacks some; "" if all is found. The same in every run."""
    twice: str = ""
    """The first name that several of its images have; "" if each has its own."""
    is_of_images: bool = False
    """Whether each part is an image whatever its name ends in."""


@dataclass(frozen=True)
class TarMember(Part):
    """The place of an image in a tar file."""

    offset: int
    """Bytes before it in the file."""
    size: int
    """Bytes of the image; -1 of a member that is no file."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: If they cannot be read, or the member is no file.
        """
        if self.size == _NOT_A_FILE:
            raise OSError(None, "a link in a tar file, or no file", str(self.path))
        if self.size > MAX_BYTES:
            raise OSError(None, f"larger than {MAX_BYTES} bytes", str(self.path))
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_tar(file: Folder) -> Contents:
    """Find the images in a tar file by the endings of their names. Damage is a result: what is before it is found.

    In a part, the numbers are the bytes before the image and its own; a hard link has those of the file that it leads to.
    """
    found = Contents({}, Counter())
    try:
        with file.open("rb") as data:
            return _read(data, found)
    except OSError as error:
        return found._replace(damage=f"cannot be read ({error.strerror})")


def _read(data: BinaryIO, found: Contents) -> Contents:
    size, last, unsafe, twice = data.seek(0, os.SEEK_END), "", "", ""
    data.seek(0)
    try:
        with tarfile.open(fileobj=data, mode="r:") as tar:
            begins = -1
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if member.offset <= begins or member.size < 0 or member.offset_data + member.size > size:
                    return found._replace(damage=_cut_off(last), twice=twice)
                begins = member.offset
                if member.isdir():
                    continue
                last = member.name
                ending = PurePosixPath(last).suffix.lower()
                if ending not in SUFFIXES:
                    found.others[ending] += 1
                elif (name := safe_name_in(last)) is None:
                    unsafe = unsafe or last
                elif name in found.parts:
                    twice = twice or name
                else:
                    found.parts[name] = _where(member, found)
            end = tar.offset
        damage = _damage_at(data, end, last)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):
        data.seek(0)
        what = content_of(data.read(_BLOCK)).name or "no known format"
        damage = _cut_off(last) if last or what == "a tar archive" else f"not a tar file: {what}"
    if unsafe and not damage:
        damage = f"has names that lead out of it (such as {short_repr(unsafe)}; left out)"
    return found._replace(damage=damage, twice=twice)


def _where(member: tarfile.TarInfo, found: Contents) -> tuple[int, int]:
    if member.islnk():
        return found.parts.get(safe_name_in(member.linkname) or "", (0, _NOT_A_FILE))
    return (member.offset_data, member.size if member.isreg() and not member.issparse() else _NOT_A_FILE)


def safe_name_in(name: str) -> str | None:
    """Return a name as a path below a folder; None if it leads out of it, or to the folder itself.

    >>> safe_name_in("./cat//a.jpg"), safe_name_in("/cat/a.jpg"), safe_name_in("../a.jpg")
    ('cat/a.jpg', 'cat/a.jpg', None)
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or "\0" in name else "/".join(parts) or None


def _damage_at(data: BinaryIO, end: int, last: str) -> str:
    """Return the damage where tarfile has found no further member: only zeros may follow, and there must be some."""
    data.seek(end)
    if not data.read(_BLOCK):
        return _cut_off(last)
    data.seek(end)
    while block := data.read(2**20):
        if block.strip(b"\0"):
            return f"damaged: the tar file cannot be read to its end ({_after(last)})"
    return ""


def _cut_off(last: str) -> str:
    return f"damaged: the tar file is cut off ({_after(last)})"


def _after(last: str) -> str:
    return f"at or after {short_repr(last)}; the images before are used" if last else "no image could be read"

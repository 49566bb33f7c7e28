"""The images of an export: what is known of each, and how its file gets to its place in the export."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datapool.core.errors import DatapoolError, short_repr
from datapool.export.options import Placement
from datapool.images.size import Size, size_of


@dataclass(frozen=True)
class ExportedImage:
    """An image of an export."""

    filename: str
    """Its name in the pool."""
    path: Path
    """Its file, as it was found."""
    content_hash: str
    weak_label: str
    """"" for an image that was in no folder."""
    labels: Sequence[str]
    """Its classes, if they came back from labeling."""
    version: int
    """The version that added it."""
    week: str
    """What that version is called."""
    rank: int | None
    """None for an image that was not picked."""
    distance: float | None
    """To its nearest neighbor when it was picked; None for the first image of a pool."""
    nearest: str
    """Filename of that neighbor; "" for the first image of a pool."""
    split: str
    """"" if it has none."""
    fate: str
    """"picked", or why it was left out."""
    embedding: Sequence[float]

    @property
    def name(self) -> str:
        """Its filename as a path below a folder: without "./" in front."""
        return str(PurePosixPath(self.filename))

    def facts(self) -> dict[str, object]:
        """Return what is known of the image, for the files of other tools; without what is not known."""
        facts = {
            "filename": self.filename, "content_hash": self.content_hash, "weak_label": self.weak_label,
            "labels": list(self.labels), "version": self.version, "week": self.week, "rank": self.rank,
            "distance": self.distance, "nearest": self.nearest, "split": self.split, "fate": self.fate,
        }  # fmt: skip
        return {key: value for key, value in facts.items() if value not in (None, "", [])}

    def tags(self) -> list[str]:
        """Return its week, its version, its fate and its split, for tools that filter images by tags."""
        tags = [self.week, f"version {self.version}", self.fate, self.split]
        return [tag for tag in dict.fromkeys(tags) if tag]

    def size(self, *, max_pixels: int) -> Size:
        """Return its width and height.

        Raises:
            DatapoolError: If it cannot be read.
        """
        size = size_of(self.path, max_pixels=max_pixels)
        if size is None:
            raise DatapoolError(
                f"{self.path}: its width and height cannot be read; export it `--to files` or `--to csv`, which need none"
            )
        return size


def require_inside(name: str) -> None:
    """Check that a name stays below the folder that it is put into.

    Raises:
        DatapoolError: If it leads out of it.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise DatapoolError(
            f"the filename {short_repr(name)} leads out of a folder, so its image is not exported; `--to csv` needs no files"
        )


def place(image: Path, name: str, folder: Path, how: Placement) -> Path:
    """Put the file of an image into a folder under a name.

    Raises:
        DatapoolError: If the name leads out of the folder or is taken, or the file system refuses.
    """
    require_inside(name)
    target = folder / name
    if os.path.lexists(target):
        raise DatapoolError(
            f"two images would get the name {short_repr(name)} on this file system; export to another one"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if how is Placement.HARDLINK:
            os.link(image.resolve(), target)
        elif how is Placement.SYMLINK:
            target.symlink_to(image.resolve())
        else:
            shutil.copyfile(image, target)
    except OSError as error:
        remedy = "free some space" if how is Placement.COPY else "use `--files copy`"
        raise DatapoolError(f"{image}: cannot be put into the export ({error.strerror}); {remedy}") from error
    return target

"""What is exported and how: what the writer of each format gets, and what it returns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datapool.core.progress import Progress
from datapool.export.images import ExportedImage, place
from datapool.export.options import Placement


@dataclass(frozen=True)
class Job:
    """An export of images, for the writer of its format."""

    name: str
    """The last part of the export's path."""
    images: Sequence[ExportedImage]
    """In the order of the pool: version by version, best first."""
    classes: Sequence[str]
    """At least one; see ``Chosen.classes``."""
    files: Placement
    neighbors: Mapping[str, Path | None]
    """The files of nearest neighbors, by the filename of the neighbor; None for a file that was not found.
    A neighbor that left the pool is missing."""
    url_prefix: str
    """What stands before the names of images in the tasks of Label Studio; "" for the local files of the export."""
    embedding_space: str
    """What names the space of the embeddings: only those of one name can be compared."""
    max_pixels: int
    """An image that states more is not decoded."""
    progress: Progress

    @property
    def has_no_files(self) -> bool:
        """Whether the export names the files where they are, and holds none."""
        return self.files is Placement.NONE

    def place(self, image: ExportedImage, folder: Path, name: str = "") -> None:
        """Put the file of an image into a folder, under a name or its own; see ``images.place``."""
        place(image.path, name or image.filename, folder, self.files)


class Written(NamedTuple):
    """What a writer has written."""

    files: list[str]
    """The place of each image: a path below the export's folder; where the file was, if it was not put into the export."""
    notes: list[str]
    """Sentences for the user."""


def write_json(path: Path, content: object) -> None:
    """Write JSON as readable text; make the folder of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file with a line each; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

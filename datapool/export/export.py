"""Write an export whole or not at all: find the files of its images, write it beside its place, and move it there."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json
from datapool.core.label_files import image_keys
from datapool.core.progress import Progress
from datapool.core.recorded_rows import PICKED
from datapool.export.choice import Chosen, space_of
from datapool.export.images import ExportedImage
from datapool.export.job import Job, Written, write_json
from datapool.export.labeling import write_cvat, write_label_studio
from datapool.export.options import Format, Placement
from datapool.export.tables import write_csv, write_parquet
from datapool.export.training import write_coco, write_files, write_webdataset, write_yolo
from datapool.export.viewing import write_fiftyone, write_lightly_studio
from datapool.images.batch import ROOT_LABEL
from datapool.images.objects import Folder
from datapool.images.places import Place, as_files, file_of
from datapool.pool.image_files import find_image_files, require_image_files

EXPORTS = Path("exports")
"""The folder of a workspace for exports that get no other place. git ignores what is in it."""

RECORD = "export.json"
"""The file in the folder of an export that says what it is. Only a folder with it is overwritten."""


_TABLES: dict[Format, Callable[[Path, Chosen], None]] = {Format.CSV: write_csv, Format.PARQUET: write_parquet}
"""The formats that are one file and need no image."""

_FOLDERS: dict[Format, Callable[[Path, Job], Written]] = {
    Format.FILES: write_files,
    Format.WEBDATASET: write_webdataset,
    Format.COCO: write_coco,
    Format.YOLO: write_yolo,
    Format.LABEL_STUDIO: write_label_studio,
    Format.CVAT: write_cvat,
    Format.FIFTYONE: write_fiftyone,
    Format.LIGHTLY_STUDIO: write_lightly_studio,
}

_PLACEMENTS = {
    Format.CSV: {Placement.NONE},
    Format.PARQUET: {Placement.NONE},
    Format.WEBDATASET: {Placement.COPY},
    Format.YOLO: {Placement.COPY, Placement.HARDLINK, Placement.SYMLINK},
    Format.CVAT: {Placement.COPY},
    Format.LIGHTLY_STUDIO: {Placement.COPY, Placement.HARDLINK, Placement.SYMLINK},
}
"""How the files of images can get into an export; in any way for other formats."""


class Exported(NamedTuple):
    """An export that was written."""

    output: Path
    n_images: int
    notes: list[str]
    """Sentences for the user."""


def default_output(chosen: Chosen, to: Format) -> Path:
    """Return the place of an export that gets no other one, below the workspace."""
    name = f"{chosen.pool}-{'all-' * chosen.is_whole}v{chosen.version.version}"
    return EXPORTS / (f"{name}.{to}" if to in _TABLES else f"{name}-{to}")


def write_export(
    chosen: Chosen,
    *,
    to: Format,
    output: Path | None,
    overwrite: bool,
    files: Placement | None,
    folders: Sequence[Folder],
    url_prefix: str,
    max_pixels: int,
    progress: Progress,
) -> Exported:
    """Write images of a pool for another program.

    Args:
        chosen: The images.
        to: The format.
        output: The file or folder to write; None for ``default_output``.
        overwrite: Replace a file, or a folder that is an export.
        files: How the files of the images get there; None for the usual way of the format.
        folders: Where to look for the images first.
        url_prefix: What stands before the names of images in the tasks of Label Studio; "" for its local files.
        max_pixels: An image that states more is not decoded.
        progress: Called after each image.

    Raises:
        DatapoolError: If an image is not found or has other content, the output exists, or a file cannot be placed. Nothing
            is written then.
    """
    allowed = _PLACEMENTS.get(to, set(Placement))
    if files is not None and files not in allowed:
        possible = " or ".join(each for each in Placement if each in allowed)
        raise DatapoolError(f"--files {files} is not possible with --to {to}, only {possible}")
    if url_prefix and to is not Format.LABEL_STUDIO:
        raise DatapoolError(f"--url-prefix is for --to label-studio, not for --to {to}; leave it out")
    if to is Format.LABEL_STUDIO and files is Placement.NONE and not url_prefix:
        raise DatapoolError(
            "--files none leaves the tasks of Label Studio without images; --url-prefix says where it finds them"
        )
    target = output or default_output(chosen, to)
    _require_free(target, to, overwrite=overwrite)
    if to in _TABLES:
        with _in_place_of(target) as part:
            _TABLES[to](part, chosen)
        return Exported(target, len(chosen.table), [])
    how = files or Placement.COPY
    images, neighbors = _find_images(chosen, folders, with_neighbors=to is Format.CVAT, progress=progress)
    only_named = bool(url_prefix) and how is Placement.NONE  # the tasks have the address of each image, not its file
    with _as_files([*images, *filter(None, neighbors.values())], how, only_named=only_named) as files_of:
        job = Job(
            name=target.name,
            images=_exported(chosen, [files_of[image] for image in images]),
            classes=chosen.classes or ["object"],
            files=how,
            neighbors={name: files_of[neighbor] if neighbor else None for name, neighbor in neighbors.items()},
            url_prefix=url_prefix,
            embedding_space=space_of(chosen.version),
            max_pixels=max_pixels,
            progress=progress,
        )
        if how in (Placement.SYMLINK, Placement.NONE):
            _refuse_inside(target, job.images)
        with _in_place_of(target) as part:
            part.mkdir(parents=True)
            written = _FOLDERS[to](part, job)
            write_csv(part / "datapool.csv", chosen, files=written.files)
            write_json(part / RECORD, {"pool": chosen.pool, "images": str(chosen), "count": len(images), "format": to})
    return Exported(target, len(images), written.notes)


def _find_images(
    chosen: Chosen, folders: Sequence[Folder], *, with_neighbors: bool, progress: Progress
) -> tuple[list[Place], dict[str, Place | None]]:
    """Return where the images are, and where their nearest neighbors are, as ``Job.neighbors``.

    Raises:
        DatapoolError: If an image is not found.
    """
    table = chosen.table
    located = find_image_files(table, chosen.versions, folders=folders, progress=progress)
    remedy = (
        "bring them back (`dvc checkout` or `dvc pull`, if DVC tracks the batch), or name the folder that has them by "
        "`--images FOLDER`; nothing was written"
    )
    places = require_image_files(table.filename.tolist(), located, remedy=remedy)
    if not with_neighbors:
        return places, {}
    wanted = set(table.nearest)
    rows = chosen.pool_rows[chosen.pool_rows.filename.isin(wanted)]
    found = find_image_files(rows, chosen.versions, folders=folders, progress=progress)
    return places, {name: place.path for name, place in zip(rows.filename, found, strict=True)}


@contextmanager
def _as_files(places: Sequence[Place], how: Placement, *, only_named: bool) -> Iterator[dict[Place, Path]]:
    """Yield a file for each image. Until the end of the block, there are files of images that are a part of another file.

    With ``only_named`` there are none: nothing reads the files.

    Raises:
        DatapoolError: If there are such images, and the export would point to their files; or one cannot be written.
    """
    part = next((place for place in places if not isinstance(place, Path)), None)
    if part is None:
        yield as_files(places, Path())
        return
    if only_named:
        yield {place: Path(str(place)) for place in places}
        return
    if how in (Placement.SYMLINK, Placement.NONE):
        what = "in a store" if file_of(part) == part else f"a part of {file_of(part)}"
        raise DatapoolError(
            f"{part} is no file of its own, but {what}, so the export cannot point to it; use `--files copy`"
        )
    with TemporaryDirectory(dir=atomic.scratch("export")) as folder:
        try:
            files = as_files(places, Path(folder))
        except OSError as error:
            raise DatapoolError(
                f"{error.filename}: cannot be written ({error.strerror}); {atomic.remedy(error)}"
            ) from error
        yield files


def _exported(chosen: Chosen, files: Sequence[Path]) -> list[ExportedImage]:
    """Return the images with their files."""
    table = chosen.table
    texts = table.assign(split=table.get("split", ""), fate=table.get("fate", PICKED))
    return [
        ExportedImage(
            filename=row.filename,
            path=path,
            content_hash=row.content_hash,
            weak_label="" if row.weak_label == ROOT_LABEL else row.weak_label,
            labels=chosen.labels.get(key, []),
            version=int(row.version),
            week=row.week,
            rank=None if pd.isna(row.rank) else int(row.rank),
            distance=None if pd.isna(row.distance) else float(row.distance),
            nearest=row.nearest,
            split=row.split,
            fate=row.fate,
            embedding=embedding,
        )
        for row, key, path, embedding in zip(
            texts.itertuples(), image_keys(table), files, chosen.embeddings, strict=True
        )
    ]


def _require_free(target: Path, to: Format, *, overwrite: bool) -> None:
    """Refuse a place that is taken, unless it is an export and may be replaced.

    Raises:
        DatapoolError: Says what is there.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise DatapoolError(f"{target} exists; `--overwrite` replaces it, `--output` names another place")
    if to in _TABLES:
        if not target.is_file():
            raise DatapoolError(
                f"{target} is no file, so --overwrite does not replace it; name another place by `--output`"
            )
    elif target.is_symlink() or "format" not in (read_json(target / RECORD) if (target / RECORD).is_file() else {}):
        raise DatapoolError(
            f"{target} is not the folder of an export (it has no {RECORD}), so --overwrite does not replace it; name "
            "another place by `--output`"
        )


def _refuse_inside(target: Path, images: Sequence[ExportedImage]) -> None:
    """Refuse images that lie in the export that is replaced, and to which the new one would only point.

    Raises:
        DatapoolError: Names the first.
    """
    inside = [image.path for image in images if image.path.resolve().is_relative_to(target.resolve())]
    if inside:
        raise DatapoolError(
            f"{inside[0]} lies in the export that would be replaced, and the new one would only point to it; use `--files "
            "copy`, or name another place by `--output`"
        )


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target``. At the end of the block, what was written there takes its place.

    If the block raises, nothing has changed. What an earlier export left there when it was killed is removed.
    """
    part, old = (target.with_name(f".{target.name}.{ending}") for ending in ("part", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent == EXPORTS and not (EXPORTS / ".gitignore").exists():
        (EXPORTS / ".gitignore").write_text("# Exports are copies: git does not track them.\n*\n")
    _remove(part)
    try:
        yield part
        if target.is_dir():
            _remove(old)
            target.rename(old)
        part.replace(target)
    finally:
        _remove(part)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Write images for programs that train: a folder, WebDataset's shards, COCO, YOLO."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml

from datapool.core.errors import DatapoolError, short_repr
from datapool.export.images import ExportedImage
from datapool.export.job import Job, Written, write_json, write_lines

_SHARD = 2**30  # bytes of images in a shard

_NO_VAL = "no image of this export is in val, so val is the same list as train"
_NO_SPLITS = "the pool has no splits, so val is the same list as train; `datapool split` makes splits"


def write_files(folder: Path, job: Job) -> Written:
    """Write images/, and filenames.txt with the place of each image; without images, paths.txt with where each one is."""
    if job.has_no_files:
        paths = [str(image.path.resolve()) for image in job.images]
        write_lines(folder / "paths.txt", paths)
        return Written(paths, [])
    for done, image in enumerate(job.images, start=1):
        job.place(image, folder / "images")
        job.progress(done, len(job.images))
    names = [f"images/{image.name}" for image in job.images]
    write_lines(folder / "filenames.txt", names)
    return Written(names, [])


def write_webdataset(folder: Path, job: Job) -> Written:
    """Write tar files with a sample per image: its file, and what is known of it as JSON.

    A sample's key is its number in the pool's order: in a name with dots, WebDataset would end the key too early. The same
    images make the same bytes.
    """
    written: list[str] = []
    for number, images in enumerate(_shards(job.images)):
        name = f"{job.name}-{number:06}.tar"
        with tarfile.open(folder / name, "w") as tar:
            for image in images:
                key, suffix = f"{len(written):09}", PurePosixPath(image.filename).suffix.lower()
                _add(tar, f"{key}{suffix}", image.path.read_bytes())
                _add(tar, f"{key}.json", json.dumps(image.facts(), ensure_ascii=False).encode())
                written.append(f"{name}/{key}{suffix}")
                job.progress(len(written), len(job.images))
    return Written(written, [])


def _shards(images: Sequence[ExportedImage]) -> Iterator[list[ExportedImage]]:
    """Yield images in order, as many at a time as fill a shard."""
    shard: list[ExportedImage] = []
    size = 0
    for image in images:
        n_bytes = image.path.stat().st_size
        if shard and size + n_bytes > _SHARD:
            yield shard
            shard, size = [], 0
        shard.append(image)
        size += n_bytes
    yield shard


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_coco(folder: Path, job: Job) -> Written:
    """Write images/SUBSET/ and annotations/instances_SUBSET.json without annotations.

    The subsets are the splits, and "default" for images without one. The categories are the classes.
    """
    categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(job.classes, start=1)]
    entries: dict[str, list[dict[str, object]]] = {}
    files: list[str] = []
    for number, image in enumerate(job.images, start=1):
        subset = image.split or "default"
        size = image.size(max_pixels=job.max_pixels)
        if not job.has_no_files:
            job.place(image, folder / "images" / subset)
        entries.setdefault(subset, []).append(
            {"id": number, "file_name": image.name, "width": size.width, "height": size.height, **image.facts()}
        )
        files.append(str(image.path.resolve()) if job.has_no_files else f"images/{subset}/{image.name}")
        job.progress(number, len(job.images))
    for subset, images in entries.items():
        content = {
            "info": {"description": job.name},
            "licenses": [],
            "images": images,
            "annotations": [],
            "categories": categories,
        }
        write_json(folder / "annotations" / f"instances_{subset}.json", content)
    return Written(files, [])


def write_yolo(folder: Path, job: Job) -> Written:
    """Write images/SPLIT/, labels/SPLIT/ with an empty file per image, SPLIT.txt with its images, and data.yaml.

    Images without a split are in train; if none is in val, train is val as well, because Ultralytics needs both.
    """
    _refuse_same_stem(job)
    lists: dict[str, list[str]] = {"train": []}
    for done, image in enumerate(job.images, start=1):
        split = image.split or "train"
        job.place(image, folder / "images" / split)
        skeleton = folder / _label_file(f"images/{split}/{image.name}")
        skeleton.parent.mkdir(parents=True, exist_ok=True)
        skeleton.touch()
        lists.setdefault(split, []).append(f"./images/{split}/{image.name}")
        job.progress(done, len(job.images))
    for split, names in lists.items():
        write_lines(folder / f"{split}.txt", names)
    files = {"train": "train.txt", "val": "train.txt"} | {split: f"{split}.txt" for split in lists}
    data = {**files, "names": dict(enumerate(job.classes))}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    order = [f"images/{image.split or 'train'}/{image.name}" for image in job.images]
    has_splits = any(image.split for image in job.images)
    return Written(order, [] if "val" in lists else [_NO_VAL if has_splits else _NO_SPLITS])


def _label_file(image: str) -> PurePosixPath:
    """Return where Ultralytics looks for the labels of an image: "labels" stands for the last folder "images" of its path.

    >>> str(_label_file("images/val/cam_1/a.png")), str(_label_file("images/val/cam_1/images/a.png"))
    ('labels/val/cam_1/a.txt', 'images/val/cam_1/labels/a.txt')
    """
    before, _, after = f"/{image}".rpartition("/images/")
    return PurePosixPath(f"{before}/labels/{after}".lstrip("/")).with_suffix(".txt")


def _refuse_same_stem(job: Job) -> None:
    """Refuse images whose names differ in their endings only.

    Raises:
        DatapoolError: Names two of them.
    """
    known: dict[tuple[str, str], str] = {}
    for image in job.images:
        key = image.split or "train", str(PurePosixPath(image.name).with_suffix(""))
        other = known.setdefault(key, image.filename)
        if other != image.filename:
            raise DatapoolError(
                f"{short_repr(other)} and {short_repr(image.filename)} would share one file of labels: YOLO knows images by "
                "their names without the ending; export them `--to coco`"
            )

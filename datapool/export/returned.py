"""Read what comes back from labeling: the JSON of Label Studio, the XML of CVAT, COCO's JSON, or a csv file.

Only what a class and a refusal are read; where an object lies in an image stays in the file.
"""

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

from datapool.core import atomic
from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.export.options import Source


class Returned(NamedTuple):
    """What came back about an image, or a part of it."""

    name: str
    """What the file calls the image: its name in the pool, or a path that ends like it."""
    content_hash: str
    """"" if the file does not have it."""
    labels: list[str]
    """Class names; none if the image was not labeled."""
    is_refused: bool = False
    """Whether the image was skipped in the program, whatever its labels."""
    reason: str = ""
    """Why it was refused; "" if the file does not say."""


class _ContentError(Exception):
    """What is wrong with the content of a file."""


def read_returned(path: Path, source: Source | None) -> list[Returned]:
    """Read a file of labels.

    Args:
        path: The file, or a zip file with it, such as CVAT makes.
        source: What wrote it; None to find out by the content.

    Raises:
        DatapoolError: If it cannot be read as such a file.
    """
    data = atomic.read_regular_file(path, remedy="give a file that the labeling program exported")
    try:
        parts = list(_unzipped(data)) if data.startswith(b"PK\x03\x04") else [data]
        found = [image for part in parts for image in _READERS[source or _source_of(part)](part)]
    except _ContentError as error:
        raise DatapoolError(f"{path}: {error}; nothing was changed") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DatapoolError(
            f"{path}: is not as Label Studio, CVAT or COCO writes it ({type(error).__name__}: {error}); nothing was changed"
        ) from error
    if not found:
        raise DatapoolError(f"{path}: has no image; nothing was changed")
    return found


def _unzipped(data: bytes) -> Iterator[bytes]:
    """Yield the files of annotations in a zip file."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as file:
            names = sorted(name for name in file.namelist() if name.lower().endswith((".xml", ".json")))
            if not names:
                raise _ContentError("is a zip file without a .xml or .json file in it; export the annotations")
            yield from map(file.read, names)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise _ContentError(f"is a damaged zip file ({error})") from error


def _source_of(data: bytes) -> Source:
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"[": Source.LABEL_STUDIO, b"{": Source.COCO, b"<": Source.CVAT}.get(start, Source.CSV)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _ContentError(f"is not UTF-8 ({error.reason} at byte {error.start})") from error


def _json(data: bytes) -> Any:  # noqa: ANN401  whatever the file has
    try:
        return json.loads(_text(data))
    except ValueError as error:
        raise _ContentError(f"is not JSON ({error})") from error


# --- Label Studio ------------------------------------------------------------------------------------------------------


def _read_label_studio(data: bytes) -> Iterator[Returned]:
    tasks = _json(data)
    for task in tasks if isinstance(tasks, list) else [tasks]:
        if "data" not in task or "annotations" not in task:
            raise _ContentError(
                'is not the format "JSON" of Label Studio, in which each task has data and annotations; export that'
            )
        content = task["data"]
        name, content_hash = _name_in_task(content), str(content.get("content_hash") or "")
        done = [each for each in task["annotations"] if not each.get("was_cancelled")]
        results = [result for each in done for result in each["result"]]
        all_results = [result for each in task["annotations"] for result in each["result"]]
        labels = [label for result in results for label in _labels_in(result)]
        reasons = [text for result in all_results for text in _texts_in(result)]
        is_refused = bool(task["annotations"]) and not done
        yield Returned(name, content_hash, labels, is_refused, " ".join(reasons))


def _name_in_task(content: Mapping[str, Any]) -> str:
    """Return the name of an image: our own field, or the path in its address."""
    if content.get("filename"):
        return str(content["filename"])
    texts = [value for value in content.values() if isinstance(value, str)]
    if not texts:
        raise _ContentError(f"has a task without an image: {short_repr(dict(content))}")
    address = urlsplit(str(content.get("image") or texts[0]))
    local = parse_qs(address.query).get("d")  # of local files: /data/local-files/?d=PATH
    return local[0] if local else unquote(address.path)


def _labels_in(result: Mapping[str, Any]) -> list[str]:
    """Return the class names of a result: choices, the labels of a region, or a path in a taxonomy."""
    value = result["value"].get(result["type"], [])
    if result["type"] in _NO_CLASSES or not isinstance(value, list):
        return []
    return [" / ".join(map(str, each)) if isinstance(each, list) else str(each) for each in value]


def _texts_in(result: Mapping[str, Any]) -> list[str]:
    texts = result["value"].get("text", []) if result["type"] == "textarea" else []
    return [texts] if isinstance(texts, str) else [str(text) for text in texts]


_NO_CLASSES = ("textarea", "rating", "number", "datetime", "pairwise", "ranker")
"""The types of results that are no classes."""


# --- CVAT and COCO -----------------------------------------------------------------------------------------------------


def _read_cvat(data: bytes) -> Iterator[Returned]:
    if b"<!DOCTYPE" in data:
        raise _ContentError("has a document type, which CVAT does not write")
    try:
        root = ET.fromstring(data)  # noqa: S314  without a document type, no entity can expand without end
    except ET.ParseError as error:
        raise _ContentError(f"is not XML ({error})") from error
    images = root.findall("image")
    if root.tag != "annotations" or (not images and root.find("track") is not None):
        raise _ContentError('is not the format "CVAT for images 1.1"; export that')
    for image in images:
        labels = [each.attrib["label"] for each in image if "label" in each.attrib]
        reasons = [each.text or "" for each in image.iter("attribute") if each.get("name") == "reason"]
        yield Returned(image.attrib["name"], "", labels, reason=" ".join(filter(None, reasons)))


def _read_coco(data: bytes) -> Iterator[Returned]:
    content = _json(data)
    if "images" not in content or "annotations" not in content:
        raise _ContentError("is JSON, but neither of Label Studio nor of COCO, which has images and annotations")
    classes = {each["id"]: str(each["name"]) for each in content.get("categories", [])}
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    labels: dict[Any, list[str]] = {image: [] for image in names}
    reasons: dict[Any, list[str]] = {image: [] for image in names}
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in names or category not in classes:
            raise _ContentError(f"has an annotation of image {image} and category {category}, but not both of these")
        labels[image].append(classes[category])
        reason = (annotation.get("attributes") or {}).get("reason")
        reasons[image].extend([str(reason)] if reason else [])
    for image, name in names.items():
        yield Returned(name, "", labels[image], reason=" ".join(reasons[image]))


# --- csv ---------------------------------------------------------------------------------------------------------------


def _read_csv(data: bytes) -> Iterator[Returned]:
    try:
        rows = list(csv.reader(StringIO(_text(data), newline="")))
    except csv.Error as error:
        raise _ContentError(f"is not a csv file ({error})") from error
    header = rows[0] if rows else []
    if not {"filename", "label"} <= set(header):
        raise _ContentError("is not a csv file with the columns filename and label (and reason, if you like)")
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise _ContentError(f"row {number} has {counted(len(row), 'cell')}, but the header has {len(header)}")
        cell = dict(zip(header, row, strict=True))
        label = cell["label"].strip()
        yield Returned(
            cell["filename"], cell.get("content_hash", ""), [label] * bool(label), reason=cell.get("reason", "").strip()
        )


_READERS: dict[Source, Callable[[bytes], Iterator[Returned]]] = {
    Source.LABEL_STUDIO: _read_label_studio,
    Source.CVAT: _read_cvat,
    Source.COCO: _read_coco,
    Source.CSV: _read_csv,
}

# --- names -------------------------------------------------------------------------------------------------------------

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of a file that is uploaded to it."""

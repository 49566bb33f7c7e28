"""Take back what came from labeling: the classes of images of a pool, and which images were refused."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from datapool.core.errors import DatapoolError, counted, short_repr
from datapool.core.label_files import LABEL_COLUMNS, image_keys
from datapool.export.returned import UPLOADED, Returned

_NAMES_TOLD = 5


class Refused(NamedTuple):
    """An image that does not belong into the pool."""

    filename: str
    content_hash: str
    reason: str


class TakenBack(NamedTuple):
    """What a file of labels says about the images of a pool."""

    table: pd.DataFrame
    """The rows of labels.csv: those that were there, then the new ones in the order of the pool."""
    n_labeled: int
    """How many images the file has labels for."""
    n_changed: int
    """How many of these had other labels before."""
    n_unlabeled: int
    """How many images of the file have no label and were not refused."""
    n_left: int
    """How many images with labels have left the pool; their rows are gone."""
    refused: list[Refused]
    unknown: list[str]
    """Names in the file that no image of the pool has."""
    ambiguous: list[str]
    """Names in the file that several images of the pool have."""


def take_back(
    returned: Iterable[Returned],
    images: pd.DataFrame,
    recorded: pd.DataFrame,
    *,
    source: str,
    refused_labels: Collection[str],
) -> TakenBack:
    """Find the images that a file of labels is about, and return their labels and refusals.

    An image is refused if it was skipped, or has a refused label. The labels of any other image replace those that it had;
    an image without labels keeps them.

    Args:
        returned: What came back; several entries of an image count together, and it is skipped only if all of them are.
        images: filename and content_hash of every image of the pool.
        recorded: The rows of labels.csv.
        source: What the rows of this file get as their source.
        refused_labels: Class names that mean that the image is refused.

    Raises:
        DatapoolError: If no name in the file is that of one image of the pool.
    """
    by_row, unknown, ambiguous = _by_image(returned, images, source)
    filenames, contents, keys = images.filename.tolist(), images.content_hash.tolist(), image_keys(images).tolist()
    refused: dict[int, Refused] = {}
    labels: dict[int, list[str]] = {}
    for row in sorted(by_row):
        found = by_row[row]
        names = list(dict.fromkeys(label for each in found for label in each.labels))
        if all(each.is_refused for each in found) or not set(names).isdisjoint(refused_labels):
            why = " ".join(dict.fromkeys(each.reason for each in found if each.reason))
            reason = f"refused in labeling: {why}" if why else f"refused in labeling ({source})"
            refused[row] = Refused(filenames[row], contents[row], reason)
        elif names:
            labels[row] = names

    known = image_keys(recorded)
    names_now = known.map(dict(zip(keys, filenames, strict=True)))
    recorded = recorded.assign(filename=names_now.fillna(recorded.filename))
    before = recorded.label.groupby(known).agg(set).to_dict()
    new = [row for row, names in labels.items() if before.get(keys[row]) != set(names)]
    changed = {keys[row] for row in new if keys[row] in before}
    is_in_pool = known.isin(set(keys))
    stays = is_in_pool & ~known.isin(changed | {keys[row] for row in refused})
    added = [(filenames[row], contents[row], label, source) for row in new for label in labels[row]]
    table = pd.concat([recorded[stays], pd.DataFrame(added, columns=list(LABEL_COLUMNS))], ignore_index=True)
    return TakenBack(
        table.astype(LABEL_COLUMNS),
        n_labeled=len(labels),
        n_changed=len(changed),
        n_unlabeled=len(by_row) - len(labels) - len(refused),
        n_left=int(known[~is_in_pool].nunique()),
        refused=list(refused.values()),
        unknown=unknown,
        ambiguous=ambiguous,
    )


def _by_image(
    returned: Iterable[Returned], images: pd.DataFrame, source: str
) -> tuple[dict[int, list[Returned]], list[str], list[str]]:
    """Return the entries about each image, by its row; the names that no image has, and those that several have."""
    find = _Finder(images)
    by_row: dict[int, list[Returned]] = defaultdict(list)
    unknown, ambiguous = set(), set()
    for each in returned:
        rows = find.rows(each)
        if len(rows) == 1:
            by_row[rows[0]].append(each)
        elif rows:
            ambiguous.add(each.name)
        else:
            unknown.add(each.name)
    if not by_row:
        raise DatapoolError(
            f"{source}: names no image of this pool, or none for certain, such as {short_repr(min(unknown | ambiguous))}; "
            "nothing was changed. Name another pool by --name, or check the names"
        )
    return by_row, sorted(unknown), sorted(ambiguous)


class _Finder:
    """Finds the images of a pool that a file names."""

    def __init__(self, images: pd.DataFrame) -> None:
        self._by_hash: dict[str, list[int]] = defaultdict(list)
        self._by_last: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
        for row, (filename, content_hash) in enumerate(zip(images.filename, images.content_hash, strict=True)):
            self._by_hash[content_hash].append(row)
            parts = _parts(filename)
            self._by_last[parts[-1]].append((parts, row))

    def rows(self, image: Returned) -> list[int]:
        """Return the images that an entry may be about: by content, or those that share the longest end of a path."""
        rows = self._by_hash[image.content_hash] if image.content_hash else []
        if len(rows) == 1:
            return rows
        parts = _parts(image.name)
        return self._by_path(parts) or self._by_path([*parts[:-1], UPLOADED.sub("", parts[-1])])

    def _by_path(self, parts: Sequence[str]) -> list[int]:
        shared = [(_shared_end(parts, other), row) for other, row in self._by_last.get(parts[-1], [])]
        longest = max((length for length, _ in shared), default=0)
        return [row for length, row in shared if length == longest]


def _parts(name: str) -> list[str]:
    """Return the parts of a path; programs differ in how they write accents and separators."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".")] or [""]


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts two paths share at their ends."""
    n = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        n += 1
    return n


def facts_of(taken: TakenBack) -> dict[str, Any]:
    """Return what was taken back, as JSON has it."""
    return {
        "labeled": taken.n_labeled,
        "changed": taken.n_changed,
        "unlabeled": taken.n_unlabeled,
        "left": taken.n_left,
        "refused": [image._asdict() for image in taken.refused],
        "unknown": taken.unknown,
        "ambiguous": taken.ambiguous,
        "classes": dict(sorted(Counter(taken.table.label).items())),
    }


def sentences_about(taken: TakenBack) -> list[str]:
    """Return sentences for the user about what a file says, and what of it could not be used."""
    said = []
    if taken.n_changed:
        said.append(f"{counted(taken.n_changed, 'image')} had other labels before, which these replace")
    if taken.n_unlabeled:
        said.append(f"{counted(taken.n_unlabeled, 'image')} of the file without a label")
    if taken.n_left:
        said.append(f"{counted(taken.n_left, 'image')} with labels left the pool, and the file")
    for names, why in (
        (taken.unknown, "no image of the pool has"),
        (taken.ambiguous, "several images of the pool have"),
    ):
        if names:
            said.append(f"{counted(len(names), 'name')} that {why}, not used: {_listed(names)}")
    if taken.refused:
        names = [image.filename for image in taken.refused]
        said.append(f"{counted(len(names), 'image')} refused: {_listed(names)}")
    return said


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_TOLD
    return ", ".join(map(short_repr, names[:_NAMES_TOLD])) + f" and {more} more" * (more > 0)

"""The records of weights that were fetched: where they come from, and their sha256. They lie beside them, in git."""

import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import json_text

FOLDER = Path("weights")
"""Where fetched weights lie in a workspace."""

_KIND: Literal["datapool weights"] = "datapool weights"
_TEXT_KIND: Literal["datapool text model"] = "datapool text model"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class WeightsRecord(BaseModel):
    """What ``datapool fetch`` has recorded of a file of weights."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    kind: Literal["datapool weights"] = _KIND
    name: str
    """Of the backbone, with the tag: lightly.model.name."""
    file: str
    """The name of the file beside the record."""
    sha256: Sha256
    repository: str
    """On the hub, such as "timm/vit_small_patch14_dinov2.lvd142m"."""
    revision: str
    """The commit of the repository."""
    licence: str | None
    """As timm records it."""
    input_size: Annotated[int, Field(ge=1)]
    """Of the images that the weights were made for, in pixels."""


class TextModelRecord(BaseModel):
    """What ``datapool fetch`` has recorded of the folder of a model that compares pictures with words."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    kind: Literal["datapool text model"] = _TEXT_KIND
    name: str
    """As open_clip calls it, with the tag of the weights, such as "ViT-B-32.laion2b_s34b_b79k"; or a repository."""
    repository: str
    """On the hub."""
    revision: str
    """The commit of the repository."""
    tokenizer: str | None
    """The repository of the files that cut a text into tokens; None where open_clip has them itself."""
    tokenizer_revision: str | None
    files: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], Sha256]
    """The files of the folder, with their sha256."""


def read_record(path: Path) -> WeightsRecord:
    """Read the record of a backbone.

    Raises:
        DatapoolError: If the file is not one.
    """
    return _read(path, WeightsRecord)


def read_text_record(path: Path) -> TextModelRecord:
    """Read the record of a model that compares pictures with words.

    Raises:
        DatapoolError: If the file is not one.
    """
    return _read(path, TextModelRecord)


def find_text_records(folder: Path) -> dict[Path, TextModelRecord]:
    """Read the records of all models that compare pictures with words, by the folders of their files.

    Raises:
        DatapoolError: If one is damaged.
    """
    return {
        path.with_suffix(""): read_text_record(path)
        for path in sorted(folder.glob("*.json"))
        if _kind_of(path) == _TEXT_KIND
    }


def require_recorded_files(folder: Path, record: TextModelRecord) -> None:
    """Refuse a folder whose files are not those of its record.

    Raises:
        DatapoolError: With the command that fetches the recorded ones.
    """
    found = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    missing = sorted(record.files.keys() - found)
    surplus = sorted(found.keys() - record.files)
    wrong = [name for name, digest in record.files.items() if name in found and atomic.sha256(found[name]) != digest]
    for names, what in ((missing, "is not there"), (wrong, "is not the recorded file"), (surplus, "is not recorded")):
        if names:
            raise DatapoolError(
                f"{folder / names[0]}: {what}; run `datapool fetch {record.name}`, which gets what "
                f"{folder}.json records"
            )


_Record = TypeVar("_Record", WeightsRecord, TextModelRecord)


def _read(path: Path, kind: type[_Record]) -> _Record:
    remedy = f"`git checkout HEAD -- {path}` restores it; or remove it, then `datapool fetch` writes it anew"
    try:
        return kind.model_validate_json(atomic.read_regular_file(path, remedy=remedy))
    except ValidationError as error:
        raise DatapoolError(f"{path}: is not a record of fetched weights; {remedy}") from error


def write_record(path: Path, record: WeightsRecord | TextModelRecord) -> None:
    """Write a record; equal ones make equal bytes."""
    atomic.write_bytes(path, json_text(record.model_dump()))


def require_recorded(weights: Path) -> None:
    """Refuse weights that are another file than the record beside them says; without a record nothing is checked.

    Raises:
        DatapoolError: With the command that fetches the recorded ones.
    """
    path = weights.with_suffix(".json")
    if not path.is_file() or _kind_of(path) != _KIND:
        return
    record = read_record(path)
    if record.file != weights.name:
        return
    if not weights.exists():
        raise DatapoolError(
            f"{weights}: is not there; run `datapool fetch {record.name}`, which gets what {path} records"
        )
    if (found := atomic.sha256(weights)) != record.sha256:
        raise DatapoolError(
            f"{weights}: has sha256 {found[:12]}..., but {path} records {record.sha256[:12]}...; run `datapool fetch "
            f"{record.name}`, which gets the recorded file again"
        )


def _kind_of(path: Path) -> object:
    """Return what a JSON file says that it is; None for another program's settings, which may have the name of a record."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return None
    return content.get("kind") if isinstance(content, dict) else None

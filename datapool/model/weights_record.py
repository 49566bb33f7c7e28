"""The record of weights that were fetched: where they come from, and their sha256. It lies beside them, in git."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.core.json_files import json_text

_KIND: Literal["datapool weights"] = "datapool weights"


class WeightsRecord(BaseModel):
    """What ``datapool fetch`` has recorded of a file of weights."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    kind: Literal["datapool weights"] = _KIND
    name: str
    """Of the backbone, with the tag: lightly.model.name."""
    file: str
    """The name of the file beside the record."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    repository: str
    """On the hub, such as "timm/vit_small_patch14_dinov2.lvd142m"."""
    revision: str
    """The commit of the repository."""
    licence: str | None
    """As timm records it."""
    input_size: Annotated[int, Field(ge=1)]
    """Of the images that the weights were made for, in pixels."""


def read_record(path: Path) -> WeightsRecord:
    """Read a record.

    Raises:
        DatapoolError: If the file is not one.
    """
    remedy = f"`git checkout HEAD -- {path}` restores it; or remove it, then `datapool fetch` writes it anew"
    try:
        return WeightsRecord.model_validate_json(atomic.read_regular_file(path, remedy=remedy))
    except ValidationError as error:
        raise DatapoolError(f"{path}: is not a record of fetched weights; {remedy}") from error


def write_record(path: Path, record: WeightsRecord) -> None:
    """Write a record; equal ones make equal bytes."""
    atomic.write_bytes(path, json_text(record.model_dump()))


def require_recorded(weights: Path) -> None:
    """Refuse weights that are another file than the record beside them says; without a record nothing is checked.

    Raises:
        DatapoolError: With the command that fetches the recorded ones.
    """
    path = weights.with_suffix(".json")
    if not path.is_file() or not _is_record(path):
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


def _is_record(path: Path) -> bool:
    """Return whether a JSON file is meant as a record: another program's settings may have the name."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(content, dict) and content.get("kind") == _KIND

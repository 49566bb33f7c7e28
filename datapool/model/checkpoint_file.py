"""The fields of a checkpoint file of datapool, checked before a model is built from them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf
from torch import Tensor

from datapool.core.errors import DatapoolError
from datapool.model.weights import first_few, is_dense

_KIND = "datapool checkpoint"

_LARGEST_INPUT_SIZE = 2048  # an untrusted checkpoint cannot ask for all the memory

ResizeMethod = Literal["squash bicubic", "squash bilinear"]

Decoding = Literal["full", "scaled"]
"""How JPEG files are decoded: at full size, or at the smallest scale that is twice the input size."""

_FORMATS = (1, 2, 3)
"""The first one; with ``decode``; with ``layers``. Earlier releases refuse a format that they do not know by its number."""


def _require_dense(value: Tensor) -> Tensor:
    if not is_dense(value):
        raise ValueError("not a dense tensor")
    return value


def _require_distinct(layers: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError("a layer twice")
    return layers


# torch.save stores a tuple as a list here, so tuples are not strict; their numbers are.
_Mean = Annotated[tuple[float, float, float], Field(strict=False)]
_Positive = Annotated[float, Field(gt=0)]
_Std = Annotated[tuple[_Positive, _Positive, _Positive], Field(strict=False)]
_Layer = Annotated[int, Field(ge=0)] | Literal["last"]
_Layers = Annotated[tuple[_Layer, ...], Field(strict=False, min_length=1), AfterValidator(_require_distinct)]
_Weight = Annotated[InstanceOf[Tensor], AfterValidator(_require_dense)]


class CheckpointFields(BaseModel):
    """Everything that a model is built from."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str
    dimension: int = Field(ge=1)
    input_size: int = Field(ge=1, le=_LARGEST_INPUT_SIZE)
    mean: _Mean
    std: _Std
    resize: ResizeMethod = "squash bicubic"
    decode: Decoding = "full"
    layers: _Layers | None = None
    """Of which the features are taken; None for those that the backbone returns."""
    state_dict: dict[str, _Weight]

    @property
    def format(self) -> int:
        """The number of the format in which these fields are written: the first one that has them."""
        return 3 if self.layers is not None else 2 if self.decode != "full" else 1

    def content(self) -> dict[str, Any]:
        """Return what ``torch.save`` writes: plain types and tensors only."""
        content: dict[str, Any] = {
            "kind": _KIND,
            "format": self.format,
            "backbone": self.backbone,
            "dimension": self.dimension,
            "input_size": self.input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "state_dict": self.state_dict,
        }
        if self.resize != "squash bicubic":  # the first checkpoints did not have this field
            content["resize"] = self.resize
        if self.decode != "full":
            content["decode"] = self.decode
        if self.layers is not None:
            content["layers"] = list(self.layers)
        return content


def is_checkpoint(content: object) -> bool:
    """Return whether a file's content is that of a datapool checkpoint, of any format."""
    return isinstance(content, dict) and content.get("kind") == _KIND


def parse_checkpoint(path: Path, content: object) -> CheckpointFields:
    """Check the content of a checkpoint.

    Args:
        path: The file, for messages.
        content: What ``read_training_file`` returned.

    Raises:
        DatapoolError: If it is not a checkpoint of datapool, or of a later format, or a field is missing or wrong.
    """
    if not isinstance(content, dict) or not is_checkpoint(content):
        raise DatapoolError(
            f"{path}: is not a checkpoint of datapool; to start from weights of another program, set "
            "lightly.model.weights"
        )
    if content.get("format") not in _FORMATS:
        raise DatapoolError(
            f"{path}: is a checkpoint of format {content.get('format')!r}, this datapool reads "
            f"{', '.join(map(str, _FORMATS))}; use the datapool that wrote it, or a newer one"
        )
    try:
        fields = CheckpointFields(**{key: value for key, value in content.items() if key not in ("kind", "format")})
        if content["format"] != fields.format:
            raise ValueError("a format of other fields")
        return fields
    except (ValueError, TypeError) as error:  # ValidationError is a ValueError; TypeError: a key that is not a text
        raise DatapoolError(
            f"{path}: its fields are not those of a datapool checkpoint ({first_few(sorted(map(str, content)))}); fetch or "
            "write it again"
        ) from error

"""The fields of a checkpoint file of datapool, checked before a model is built from them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor

from datapool.core.errors import DatapoolError
from datapool.model.weights import first_few, is_dense

_KIND, _FORMAT = "datapool checkpoint", 1

_LARGEST_INPUT_SIZE = 2048  # an untrusted checkpoint cannot ask for all the memory

ResizeMethod = Literal["squash bicubic", "squash bilinear"]


def _require_dense(value: Tensor) -> Tensor:
    if not is_dense(value):
        raise ValueError("not a dense tensor")
    return value


# torch.save stores a tuple as a list here, so tuples are not strict; their numbers are.
_Mean = Annotated[tuple[float, float, float], Field(strict=False)]
_Positive = Annotated[float, Field(gt=0)]
_Std = Annotated[tuple[_Positive, _Positive, _Positive], Field(strict=False)]
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
    state_dict: dict[str, _Weight]

    def content(self) -> dict[str, Any]:
        """Return what ``torch.save`` writes: plain types and tensors only."""
        content: dict[str, Any] = {
            "kind": _KIND,
            "format": _FORMAT,
            "backbone": self.backbone,
            "dimension": self.dimension,
            "input_size": self.input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "state_dict": self.state_dict,
        }
        if self.resize != "squash bicubic":  # the first checkpoints did not have this field
            content["resize"] = self.resize
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
    if content.get("format") != _FORMAT:
        raise DatapoolError(
            f"{path}: is a checkpoint of format {content.get('format')!r}, this datapool reads {_FORMAT}; use the "
            "datapool that wrote it, or a newer one"
        )
    fields = {key: value for key, value in content.items() if key not in ("kind", "format")}
    try:
        return CheckpointFields(**fields)
    except (ValidationError, TypeError) as error:  # TypeError: a key that is not a text
        raise DatapoolError(
            f"{path}: its fields are not those of a datapool checkpoint ({first_few(sorted(map(str, content)))}); fetch or "
            "write it again"
        ) from error

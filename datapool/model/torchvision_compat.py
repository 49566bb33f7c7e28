"""Make torchvision's wheel from PyPI importable beside a CPU build of torch.

Importing this module is enough. It must come before the first import of torchvision, and so of timm and lightly, in a
process.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its extension library does not load. Then importing
torchvision fails with "operator torchvision::nms does not exist", because it describes two operators that only the
extension declares. It is enough to declare them without an implementation: transforms, models and all other Python code
work. Only functions that need the extension (``ops.nms``, ``io.read_image``) do not. Where the extension loads, nothing
is declared.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Literal

import torch

State = Literal["absent", "imported", "native", "declared"]

_OPERATORS = ("nms", "qnms")

_libraries: list[torch.library.Library] = []  # declarations last as long as the object that made them


def make_importable() -> State:
    """Declare torchvision's operators if its extension library does not load.

    Returns:
        "absent" if there is no torchvision, "imported" if it is imported already, "native" if the extension loads (nothing
        is declared in these cases), "declared" if the operators are declared, now or by an earlier call.
    """
    if _libraries:
        return "declared"
    if "torchvision" in sys.modules:
        return "imported"
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return "absent"
    if _loads(Path(package.origin).parent):
        return "native"
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return "declared"


def _loads(package: Path) -> bool:
    """Return whether the extension loads. torchvision loads it again a moment later, which is harmless."""
    extensions = [*package.glob("_C*.so"), *package.glob("_C*.pyd")]
    for extension in extensions:
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return bool(extensions)


make_importable()

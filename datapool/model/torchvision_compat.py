"""Let torchvision's wheel from PyPI import beside a CPU build of torch.

Importing this module does it. It has to come before the first import of torchvision, and so of timm and lightly, in a
process. Knows nothing of images or models.

PyPI's torchvision is built for CUDA. Beside a CPU torch its extension library does not load, and the import then ends
with "operator torchvision::nms does not exist", because torchvision describes two operators that only the extension
declares. Declared but empty is enough for transforms, models and everything else written in Python; only what needs
the extension itself (``ops.nms``, ``io.read_image``) stays unusable. Where the extension loads, nothing is done.
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
    """Declare torchvision's operators if its extension library cannot do it.

    Returns:
        What was found: "absent" (no torchvision), "imported" (too late, or it went well before), "native" (the
        extension loads; nothing done), "declared" (done now or by an earlier call).
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
    """Load the extension as torchvision itself will in a moment; loading a library twice is harmless."""
    extensions = [*package.glob("_C*.so"), *package.glob("_C*.pyd")]
    for extension in extensions:
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return bool(extensions)


make_importable()

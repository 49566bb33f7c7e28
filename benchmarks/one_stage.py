"""Run a stage in the workspace of the current folder, and write its CPU seconds after all imports to a file.

`python one_stage.py STAGE FILE`, for ``benchmarks.images``: what a stage imports costs as much as hundreds of images.
"""

import atexit
import importlib
import os
import runpy
import sys
import time
import warnings
from pathlib import Path

_LATER = {
    "embed": ("datapool.model.embedding", "datapool.model.backbones", "timm"),
    "scan": ("imagecodecs", "tifffile"),
}
"""What a stage imports after it has begun."""

stage, output = sys.argv[1:]
sys.path.insert(0, str(Path.cwd()))
importlib.import_module(f"stages.{stage}")
for name in _LATER.get(stage, ()):
    importlib.import_module(name)
start = time.process_time()
sys.argv = [f"stages.{stage}"]
atexit.register(lambda: Path(output).write_text(str(time.process_time() - start)))
warnings.simplefilter("ignore")
os.environ.pop("PYTHONPATH", None)
runpy.run_module(f"stages.{stage}", run_name="__main__")

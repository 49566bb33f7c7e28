"""Make a workspace with three weeks of handwritten digits, and run the pipeline on the first two.

The images are those of scikit-learn (UCI optdigits, E. Alpaydin and C. Kaynak, CC BY 4.0).
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.core.metrics import read_metrics
from datapool.core.outputs import Outputs
from datapool.workspace.commands import environment, git_commit
from datapool.workspace.create import BUDGET, Scm, make_workspace
from datapool.workspace.params_file import set_params

_WEEKS = 3
_SIDE = 32  # pixels; 8 in the data set
_SHIFT = 2  # pixels by which a near copy is moved

# For small gray images a small backbone, trained on week 1 from random weights in half a minute, separates the digits better
# than ImageNet's weights do (benchmarks/backbones.md).
_PARAMS: dict[str, Any] = {
    "enable_training": True,
    "lightly.model.name": "test_efficientnet",
    "lightly.model.pretrained": False,
    "lightly.model.num_ftrs": 32,
    "lightly.collate.input_size": 32,
    **{f"lightly.collate.{key}": 0.0 for key in ("cj_sat", "cj_hue", "random_gray_scale", "gaussian_blur", "hf_prob")},
    "lightly.collate.min_scale": 0.5,
    "lightly.trainer.max_epochs": 10,
    "lightly.optimizer.lr": 0.003,
    "lightly.criterion.temperature": 0.1,
}


def run_demo(folder: Path, say: Callable[..., None]) -> None:
    """Make the workspace, run and commit week 1 and week 2, and show what happened.

    Args:
        folder: Must not exist, be empty, or hold a demo. A finished demo is not changed; an interrupted one is made
            again.
        say: Called with the lines to show.

    Raises:
        DatapoolError: If the folder holds something else, or a step fails.
    """
    state = folder / ".datapool" / "demo"
    if state.exists() and state.read_text() == "finished":
        say(f"{folder} holds the finished demo already; remove the folder to see it run again")
        _show_next_steps(folder, say)
        return
    if folder.exists() and any(folder.iterdir()) and not state.exists():
        raise DatapoolError(f"{folder} holds other files than a demo; give another folder: datapool demo FOLDER")
    say(f"making a workspace in {folder} with {_WEEKS} weeks of handwritten digits")
    shutil.rmtree(folder, ignore_errors=True)
    state.parent.mkdir(parents=True)
    state.write_text("begun")
    make_workspace(folder, scm=Scm.OWN, may_be_nested=True)  # the clone of this repository ignores demo/
    write_digits(folder / "data")
    set_params(folder, _PARAMS | BUDGET)
    _call(folder, "dvc", "add", "--quiet", *(f"data/week_{week}" for week in range(1, _WEEKS + 1)))
    git_commit(folder, "Three weeks of images")
    for week in (1, 2):
        say("", f"week {week}: input_dir: data/week_{week}, dvc repro --quiet")
        set_params(folder, {"input_dir": f"data/week_{week}"})
        _call(folder, "dvc", "repro", "--quiet")
        git_commit(folder, f"Week {week}")
        _show_result(folder, week, say)
    state.write_text("finished")
    _show_next_steps(folder, say)


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits as PNG files: ``week_1/3/digit_0012.png`` and so on.

    Each week also has images that the pipeline should drop: ten exact copies, ten saved again in another format, ten shifted
    by two pixels, and one truncated file.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatapoolError(
            "the demo needs scikit-learn for its images; `pip install scikit-learn`, then run again"
        ) from error
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        week = folder / f"week_{number * _WEEKS // len(digits.images) + 1}" / str(label)
        week.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8))
        small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(week / f"digit_{number:04d}.png")
    for week in sorted(folder.iterdir()):
        originals = sorted(week.rglob("*.png"))[::18]
        for number, original in enumerate(originals[:30]):
            image = Image.open(original)
            if number % 3 == 0:
                original.with_name(f"{original.stem}_copy.png").write_bytes(original.read_bytes())
            elif number % 3 == 1:
                image.save(original.with_name(f"{original.stem}_saved_again.jpg"), quality=90)
            else:
                moved = Image.fromarray(np.roll(np.asarray(image), _SHIFT, axis=1))
                moved.save(original.with_name(f"{original.stem}_shifted.png"))
        (week / "cut_off.png").write_bytes(originals[0].read_bytes()[:100])


def _call(folder: Path, *command: str) -> None:
    """Run a command that prints to the terminal."""
    if subprocess.run(command, cwd=folder, env=environment(), check=False).returncode:
        raise DatapoolError(f"`{' '.join(command)}` failed in {folder}; see its messages above")


def _show_result(folder: Path, week: int, say: Callable[..., None]) -> None:
    metrics = read_metrics(Outputs(folder / "output").numbers)
    say(
        "",
        f"week {week}: {metrics.images} images in, {metrics.corrupt} corrupt, {metrics.duplicates} exact copies, "
        f"{metrics.known} in the pool already; {metrics.picked} of {metrics.candidates} candidates picked, "
        f"{metrics.covered} left out as near to the pool or to another pick",
        f"        the pool has {metrics.pool_after} images, and every candidate lies within "
        f"{metrics.covering_radius:.2f} of it (covering radius)",
    )


def _show_next_steps(folder: Path, say: Callable[..., None]) -> None:
    text = f"""
The pool     {folder}/pools/my_datapool/datapool_latest.csv, samples.csv (why each image is there), history/
The report   {folder}/output/report.html
The reasons  {folder}/output/removed_samples.csv
History      cd {folder} && git log --oneline

Try next     source {Path(sys.prefix)}/bin/activate
             cd {folder} && datapool add data/week_3       # the third week; then look at the report
             dvc exp run -S stopping_condition.n_samples=150        # another budget replaces its picks
             dvc exp show --only-changed --drop '^(output|data|stages|datapool)'
             datapool keep --n 50                   # the best 50 of it, and a commit"""
    say(*text.splitlines())

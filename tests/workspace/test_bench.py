"""`datapool bench` runs the real stages, and its advice follows from what it found. No test looks at a time."""

import json
import os
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.workspace import bench as module
from datapool.workspace.bench import Found, Gpu, Machine, PerImage, Plan, _looking_at_gpu, _per_image, advise, bench
from datapool.workspace.meter import Usage

IDLE = Machine(
    cores=8,
    memory_mib=16_384.0,
    load=0.5,
    gpu=None,
    accelerator="auto",
    batch_size=64,
    num_workers=0,
    threads=None,
    has_malloc_settings=False,
)
GPU = Gpu("NVIDIA A10", is_usable=True, percent=90.0, memory_mib=20_000.0, total_mib=24_000.0)
COST = PerImage(images_per_second=50.0, cpu_seconds=0.0123, start_cpu_seconds=3.21, peak_mib=700.0)


def found(*, untracked=None, peak=700.0, **machine):
    stages = {"scan": COST, "embed": COST._replace(peak_mib=peak)}
    usage = Usage(cpu=2.0, peak=300.0, wall=1.5)
    return Found(
        IDLE._replace(**machine), {"made-up photos": stages}, {"made-up photos": 198}, usage, 10_000, untracked
    )


def test_a_machine_that_suits_needs_no_change():
    nothing = ["Nothing to change: the settings suit this machine."]

    assert advise(found()) == nothing
    assert advise(found(gpu=GPU)) == nothing
    assert advise(found(num_workers="auto")) == nothing
    assert advise(found(threads=8)) == nothing


@pytest.mark.parametrize(
    ("machine", "advice"),
    [
        ({"load": 9.0, "threads": 1}, ["(load 9.0 on 8 cores): images per second are fewer"]),
        ({"load": 9.0}, ["(load 9.0 on 8 cores)", "OMP_NUM_THREADS=1 in the environment costs least"]),
        ({"gpu": GPU._replace(is_usable=False)}, ["(NVIDIA A10) and this torch cannot use it: install a build for CUDA"]),
        ({"gpu": GPU, "accelerator": "cpu"}, ["it is not used: set lightly.trainer.accelerator: auto"]),
        (
            {"gpu": GPU._replace(percent=20.0)},
            ["waits for images (at work 20 % of its busiest second): set lightly.loader.num_workers: auto"],
        ),
        ({"gpu": GPU._replace(percent=20.0), "num_workers": 8}, ["Nothing to change"]),
        ({"gpu": GPU._replace(memory_mib=900.0)}, ["(900 of 24000 MiB used): lightly.loader.batch_size: 128"]),
        ({"num_workers": 4}, ["num_workers is 4: without a GPU", "set auto"]),
        ({"threads": 16}, ["OMP_NUM_THREADS is 16 on 8 cores"]),
        ({"has_malloc_settings": True}, ["MALLOC_… settings"]),
        ({"peak": 9_000.0}, ["took 9,000 MiB of 16,384: set a smaller lightly.loader.batch_size in params.yaml (32)"]),
        (
            {"untracked": ("data/week_1", 40_000)},
            ["DVC does not track data/week_1", "each of its 40,000 files", "`dvc add data/week_1`"],
        ),
    ],
)  # fmt: skip
def test_advice_names_the_setting_to_change(machine, advice):
    given = advise(found(**machine))

    assert all(any(text in sentence for sentence in given) for text in advice), given
    assert len(given) == (2 if machine == {"load": 9.0} else 1)


def test_one_more_image_costs_the_difference_of_two_runs():
    # 20 images more take 4 s of CPU and 2 s more, so 10 images took 2 of the 5 s of CPU of the first run.
    one = _per_image(Usage(cpu=5.0, peak=100.0, wall=4.0), Usage(cpu=9.0, peak=150.0, wall=6.0), 10, 30)

    assert one == PerImage(images_per_second=10.0, cpu_seconds=0.2, start_cpu_seconds=3.0, peak_mib=150.0)


def test_images_that_other_work_hides_are_counted_with_the_start_of_the_process():
    # 30 images and the start took 6 s, and 6.1 s of CPU; the run with fewer images took as long.
    one = _per_image(Usage(cpu=6.0, peak=100.0, wall=6.1), Usage(cpu=6.1, peak=150.0, wall=6.0), 10, 30)

    assert one == PerImage(5.0, 6.1 / 30, 0.0, 150.0, includes_start=True)
    lines = list(found()._replace(stages={"a": {"scan": one}}, n_images={"a": 30}).as_text())
    assert lines[2] == "  scan       5.0 images/s     203.3 ms of CPU each         start included     150 MiB"


def test_what_was_found_is_printed_in_lines():
    lines = list(found(gpu=GPU).as_text())

    assert lines == [
        "8 cores, 16 GiB of memory, load 0.5; GPU NVIDIA A10, at work 90 % of its busiest second, 20000 of 24000 MiB used",
        "made-up photos, 198 images:",
        "  scan      50.0 images/s      12.3 ms of CPU each  3.2 s of CPU to start     700 MiB",
        "  embed     50.0 images/s      12.3 ms of CPU each  3.2 s of CPU to start     700 MiB",
        "rank, 10,000 candidates without a pool: 1.5 s, 2.0 s of CPU, 300 MiB",
        "* Nothing to change: the settings suit this machine.",
    ]


def test_the_gpu_is_asked_by_nvidia_smi(tmp_path, monkeypatch):
    with _looking_at_gpu() as result:
        pass
    assert result(dict(os.environ)) is None or Path("/dev/nvidia0").exists()

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10, 37, 1234, 23028'\necho 'NVIDIA A10, 0, 1, 23028'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")

    with _looking_at_gpu() as result:
        pass

    found = result(os.environ | {"PYTHONPATH": str(tmp_path)})
    assert found == Gpu("NVIDIA A10", is_usable=False, percent=37.0, memory_mib=1234.0, total_mib=23028.0)


def test_a_folder_without_images_is_refused_in_one_line(tmp_path):
    with pytest.raises(DatapoolError, match=r"^--images .*missing: is no folder; give a folder of images$"):
        bench(tmp_path / "missing", tmp_path, report=lambda step: None)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(DatapoolError, match=r"has 1 images, and two are needed at least"):
        bench(tmp_path, tmp_path, report=lambda step: None)


def test_more_images_than_are_read_are_taken_evenly(tmp_path):
    for number in range(10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")

    assert module._listed(tmp_path, 4) == ["0.png", "3.png", "6.png", "9.png"]
    assert module._listed(tmp_path, 10) == [f"{number}.png" for number in range(10)]


@pytest.mark.full
def test_the_stages_are_measured_with_the_settings_of_the_workspace(new_workspace, after, tmp_path, capfd):
    workspace = after(new_workspace).folder
    folder = workspace / "data" / "mine"
    for number in range(9):
        (folder / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (9 * number, 50, 0)).save(folder / f"{number % 2}" / f"{number}.png")
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("batch_size: 64", "batch_size: 32"))
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file() and ".git" not in path.parts}
    plan = Plan(few=2, many=6, size=(64, 48), n_ranked=50)
    steps = []

    with chdir(workspace):
        result = bench(folder.relative_to(workspace), workspace, plan=plan, report=steps.append)

    assert result.n_images == {"made-up photos": 6, "data/mine": 5}  # each second of nine
    assert [list(stages) for stages in result.stages.values()] == [["scan", "embed"]] * 2
    assert all(one.peak_mib > 20 for stages in result.stages.values() for one in stages.values())
    assert (result.machine.batch_size, result.machine.num_workers) == (32, "auto")
    assert result.untracked == ("data/mine", 9)
    parsed = json.loads(result.as_json())
    assert parsed["images"]["data/mine"]["n"] == 5
    assert parsed["rank"]["candidates"] == 50
    assert any("DVC does not track data/mine" in sentence for sentence in parsed["advice"])
    assert steps == [
        "making images and a model",
        "scan and embed, made-up photos",
        "scan and embed, data/mine",
        "rank",
    ]
    after_it = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert after_it == before

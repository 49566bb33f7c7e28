"""A week of videos with the real git and dvc, where each choice can be seen on a circle."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import SETTINGS, Workspace, write_circle
from filming import moving, write_video
from test_corrections import datapool, ends_well

from datapool.images.frame_pixels import png_of
from datapool.workspace.create import Scm, make_workspace

pytest.importorskip("av")
pytestmark = [pytest.mark.slow, pytest.mark.full]

FRAMES = moving(33)
A, B, NEW = FRAMES[:12], FRAMES[12:24], FRAMES[24:]  # of three videos
ANGLES = {  # on the circle, by the number of the frame; two frames lie 2 sin(angle between them / 2) apart
    "a": {0: 0.0, 2: 0.55, 4: 1.2, 6: 1.8, 8: 2.5, 10: 2.6},
    "b": {0: 3.0, 2: 3.2, 4: 3.4, 6: 3.6, 8: 3.8, 10: 4.0},
    "new": {0: 5.0, 2: 5.1, 4: 5.2, 6: 5.3, 8: 5.4},
}


def circle(**videos: str) -> dict[str, float]:
    """Return the angle of each frame's image, by the names that videos have: with {} for the number."""
    return {name.format(number): angle for video, name in videos.items() for number, angle in ANGLES[video].items()}


def film(path: Path, frames: Sequence[np.ndarray], *, is_cut: bool = False) -> None:
    write_video(path, frames, rate=4)
    if is_cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def added(workspace: Workspace, folder: Path) -> str:
    return datapool(workspace, "add", str(folder), "--no-open")


def test_a_week_of_videos(tmp_path):
    week_1, week_2 = tmp_path / "week_1", tmp_path / "week_2"
    angles = circle(a="cam/a-{}-mkv.png", b="night/b-{:02}-mkv.png")  # frames of eight, and of twelve
    angles |= circle(a="cam/a-{:02}-mkv.png", b="night/late-{:02}-mkv.png", new="new/n-{}-mkv.png")
    angles |= circle(new="new/north-{}-mkv.png")
    write_circle(tmp_path / "circle.csv", angles)
    film(week_1 / "cam/a.mkv", A[:8])
    film(week_1 / "night/b.mkv", B)
    make_workspace(tmp_path / "workspace", scm=Scm.OWN)
    workspace = Workspace(tmp_path / "workspace")
    workspace.set({**SETTINGS, "videos.stride": 2, "embeddings": str(tmp_path / "circle.csv")})
    workspace.commit("parameters")

    # The first by name; what lies opposite; what lies between; 4.0 is 0.8 from 3.2, and the others less.
    assert "week_1: 10 images: 10 new\n6 proposed; 5 would be min_distance" in added(workspace, week_1)
    datapool(workspace, "keep", "--n", "4")
    first = ["cam/a-0-mkv.png", "night/b-02-mkv.png", "cam/a-6-mkv.png", "night/b-10-mkv.png"]
    assert workspace.names() == first

    # A frame is forgotten with its video.
    printed = datapool(workspace, "forget", "night/b-10-mkv.png", fails=True)
    assert f"for these still name or hold the images: {week_1}/night/b.mkv, " in printed
    assert f"Delete their files from {week_1} (an image goes with its video or shard; the pool keeps" in printed
    (week_1 / "night/b.mkv").unlink()
    forgotten = printed.rpartition("datapool forget ")[2].partition("`")[0]
    datapool(workspace, "forget", forgotten)
    assert workspace.names() == first[:3]
    assert "none failed" in datapool(workspace, "verify")
    workspace.commit("a frame forgotten")

    # Next week: a has grown, b comes again under another name, and a new video is damaged at its end.
    film(week_2 / "cam/a.mkv", A)
    film(week_2 / "night/late.mkv", B)
    film(week_2 / "new/n.mkv", NEW, is_cut=True)
    printed = added(workspace, week_2)
    assert (
        "2 frames of the pool have other names in this batch ('cam/a-00-mkv.png', in the pool 'cam/a-0-mkv.png'), because "
        "the video has another number of frames now" in printed
    )
    assert "of its 3 images, 1 has another name or label ('night/b-02-mkv.png'); the pool keeps" in printed
    assert "1 damaged, 3 known, 1 excluded, " in printed
    printed = datapool(workspace, "why", "new/n.mkv")
    assert "is damaged: the video " in printed
    # 5.0 is 1.28 from 0; 2.5 is 0.7 from both of its neighbors; 3.8 lay near 4.0, which is no longer there, and is 0.6 from 3.2.
    second = ["new/n-0-mkv.png", "cam/a-08-mkv.png", "night/late-08-mkv.png"]
    assert workspace.names() == [*first[:3], *second]
    datapool(workspace, "keep")

    datapool(workspace, "remove", "cam/a-08-mkv.png", "--reason", "blurred")
    assert workspace.names() == [*first[:3], second[0], second[2]]
    assert "none failed" in datapool(workspace, "verify")
    workspace.commit("a frame removed")

    # The batch is corrected: a video gets another name. 2.6, which 2.5 covered, is the one pick more.
    (week_2 / "new/n.mkv").rename(week_2 / "new/north.mkv")
    datapool(workspace, "redo")
    last = [*first[:3], "new/north-0-mkv.png", "night/late-08-mkv.png", "cam/a-10-mkv.png"]
    assert workspace.names() == last
    ends_well(workspace)

    # The video that frame 2 of b came in is gone; week_2 has it under another name.
    shutil.rmtree(week_1)
    datapool(workspace, "export", "--all", "--to", "files", "--images", str(week_2), "--output", "out")
    pixels = [A[0], B[2], A[6], NEW[0], B[8], A[10]]
    for name, frame in zip(last, pixels, strict=True):
        assert (workspace.folder / "out/images" / name).read_bytes() == png_of(frame), name

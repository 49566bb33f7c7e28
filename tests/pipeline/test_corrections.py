"""Removing images, and redoing a corrected batch, with the real git and dvc."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Workspace, stages_run

from datapool.core.tables import read_csv
from datapool.images.thumbnails import ThumbnailStore

pytestmark = pytest.mark.slow


def datapool(workspace: Workspace, *arguments: str, fails: bool = False) -> str:
    return workspace.run("datapool", *arguments, fails=fails)


def ends_well(workspace: Workspace) -> None:
    """Check that nothing is left to run, that the same bytes are made again, and that every check passes."""
    assert stages_run(workspace.repro()) == []
    before, lineage = workspace.pool_files(), (workspace.folder / "datapools.json").read_bytes()
    workspace.repro("--force")
    assert (workspace.pool_files(), (workspace.folder / "datapools.json").read_bytes()) == (before, lineage)
    assert "none failed" in datapool(workspace, "verify")


@pytest.mark.full
def test_a_removed_image_leaves_every_version_and_no_other_is_picked(second_week, after):
    workspace = after(second_week)
    names, rows = workspace.names(), workspace.pool_files()["datapool_latest.csv"].decode().splitlines()
    gone = names[0]
    printed = datapool(workspace, "remove", gone, "--reason", "blurred")

    assert re.search(r"^exclude\.txt: [0-9a-f]{64}  # blurred\ndvc repro$", printed, re.MULTILINE), printed
    assert "1 image of exclude.txt left it, from every version" in printed
    assert workspace.names() == names[1:]
    assert workspace.pool_files()["datapool_latest.csv"].decode().splitlines() == [rows[0], *rows[2:]]
    assert gone.encode() not in workspace.pool_files()["history/datapool_0001.csv"]
    ends_well(workspace)
    workspace.commit("an image removed")
    workspace.set({"input_dir": str(Path(workspace_input(workspace)).parent / "week_1")})
    workspace.repro()
    assert gone not in workspace.names()
    removed = read_csv(workspace.folder / "output/removed_samples.csv").set_index("filename")
    assert (removed.kind[gone], removed.reason[gone]) == ("excluded", "excluded: blurred")


def workspace_input(workspace: Workspace) -> str:
    return re.search(r"(?m)^input_dir: (\S+)", (workspace.folder / "params.yaml").read_text())[1]


@pytest.mark.full
def test_an_edit_of_the_list_by_hand_does_the_same_as_the_command(first_week, after, tmp_path):
    by_command = after(first_week)
    by_hand = by_command.copy_to(tmp_path / "by hand")
    gone = by_command.names()[2]
    datapool(by_command, "remove", gone, "--reason", "a face")
    (by_hand.folder / "exclude.txt").write_bytes((by_command.folder / "exclude.txt").read_bytes())
    by_hand.repro()

    assert by_hand.pool_files() == by_command.pool_files()
    assert by_hand.versions() == by_command.versions()
    ends_well(by_hand)


def test_an_unknown_image_and_a_list_that_params_do_not_name_are_refused(first_week, after):
    workspace = after(first_week)
    printed = datapool(workspace, "remove", "nowhere.png", fails=True)
    assert "error: no image of the pools or of the last batch has the name 'nowhere.png'" in printed
    workspace.set({"rules.exclude": None})
    printed = datapool(workspace, "remove", workspace.names()[0], fails=True)
    assert "error: params.yaml: rules.exclude is null" in printed


@pytest.mark.full
def test_a_corrected_batch_is_told_and_redone(first_week, after, weeks, tmp_path):
    workspace = after(first_week)
    names = workspace.names()
    shutil.copytree(weeks / "week_1", tmp_path / "week_1")
    gone, renamed, moved = names[0], names[1], names[2]
    (tmp_path / "week_1" / gone).unlink()
    (tmp_path / "week_1/cat/z_copy.png").unlink()  # of the image that is gone
    (tmp_path / "week_1" / renamed).rename(tmp_path / "week_1" / "cat/new_name.png")
    (tmp_path / "week_1/bird").mkdir()
    (tmp_path / "week_1" / moved).rename(tmp_path / "week_1/bird/moved.png")
    csv = (weeks / "circle.csv").read_text()
    for old, new in ((renamed, "cat/new_name.png"), (moved, "bird/moved.png")):
        csv += next(line for line in csv.splitlines() if old in line).replace(old, new) + "\n"
    (tmp_path / "circle.csv").write_text(csv)
    workspace.set({"input_dir": str(tmp_path / "week_1"), "embeddings": str(tmp_path / "circle.csv")})
    printed = workspace.repro()

    batch = first_week.versions()[0]["batch"]
    assert (
        f"this batch is mostly the one that made version 1 of pool 'my_datapool': of its {len(names)} images, 1 is no longer "
        f"in it ({gone!r}) and 2 have other names or labels ({renamed!r}, {moved!r}); the pool keeps them as they are. "
        "`datapool redo` lets"
    ) in printed
    printed = datapool(workspace, "redo")
    assert f"dvc repro scan\nparams.yaml: datapool.replaces: '{batch[:12]}'\ndvc repro\n" in printed
    assert workspace.names()[:2] == ["cat/new_name.png", "bird/moved.png"]
    assert gone not in workspace.names()
    assert len(workspace.versions()) == 1
    assert stages_run(workspace.repro()) == []
    assert "none failed" in datapool(workspace, "verify")
    printed = datapool(workspace, "redo", fails=True)
    assert "is the batch that made version 1 of pool 'my_datapool' as it is now, so there is nothing to redo" in printed


@pytest.mark.full
def test_a_forgotten_image_is_named_nowhere_and_its_embedding_is_gone(second_week, after, weeks, tmp_path):
    workspace = after(second_week)
    shutil.copytree(weeks / "week_2", tmp_path / "week_2")
    workspace.set({"input_dir": str(tmp_path / "week_2")})
    workspace.repro()
    name, again = "cat/image_01.png", "bird/again_1.png"  # the same bytes, in the pool and in the batch
    samples = workspace.folder / "pools/my_datapool/samples.csv"
    content = read_csv(samples).set_index("filename").content_hash[name]
    row = next(line for line in workspace.pool_files()["datapool_latest.csv"].decode().splitlines() if name in line)
    embedding = ",".join(row.rsplit('",')[1].split(",")[:-1])
    assert name in read_csv(samples).nearest.tolist()
    [picture] = ThumbnailStore(samples.parent / "thumbnails").read([content]).values()
    backup = workspace.folder / ".datapool/backup/an edited.csv"
    backup.parent.mkdir(parents=True, exist_ok=True)
    backup.write_text(f"header\n{row}\n")
    with (workspace.folder / "exclude.txt").open("a") as listed:
        listed.write(f"{name}\tby hand\n{'0' * 64}\tlooks like {name}\n")

    printed = datapool(workspace, "forget", name, fails=True)
    assert (
        f"not all is erased yet, for these still name or hold the images: {tmp_path}/week_2/{again}, " in printed
    )  # before the outputs, which follow
    assert f". Delete their files from {tmp_path}/week_2, exports that have them as a whole, and" in printed
    (tmp_path / "week_2" / again).unlink()
    printed = datapool(workspace, "forget", content)
    assert "dvc gc --workspace --cloud --force" in printed

    for path in workspace.folder.rglob("*"):
        inside = path.relative_to(workspace.folder)
        if not path.is_file() or inside.parts[0] == ".git" or str(inside).startswith(".dvc/cache"):
            continue
        data = path.read_bytes()
        assert picture not in data, path
        if path.suffix == ".parquet":
            data = str(pq.read_table(path).to_pydict()).encode()
        assert not any(text.encode() in data for text in (name, again, embedding)), path
    assert {*(workspace.folder / "exclude.txt").read_text().splitlines()[2:]} == {"0" * 64, f"{content}\tforgotten"}
    assert len(workspace.names()) == len(second_week.names()) - 1
    ends_well(workspace)

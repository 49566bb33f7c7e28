"""Training in the real pipeline: a candidate for a pool that has its model, and two processes that write one result."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Workspace, stages_run, write_picture

pytestmark = pytest.mark.full

TINY = {
    "lightly.model.name": "test_efficientnet",
    "lightly.model.pretrained": False,
    "lightly.trainer.accelerator": "cpu",
    "lightly.trainer.max_epochs": 1,
    "lightly.optimizer.lr": 1e-9,  # so that the first week leaves random weights
    "stopping_condition.min_distance": 0.1,
}
NO_MODEL = b"no model\n"


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first batch of 20 pictures, a second one of 60."""
    folder = tmp_path_factory.mktemp("batches")
    for number in range(20):
        write_picture(folder / f"first/{number:02d}.png", number)
    for number in range(60):
        write_picture(folder / f"second/new_{number:02d}.png", 100 + number)
    return folder


@pytest.fixture
def workspace(new_model_workspace: Workspace, after, batches: Path) -> Workspace:
    made = after(new_model_workspace)
    made.set(TINY | {"input_dir": str(batches / "first"), "enable_training": "first"})
    return made


def test_a_candidate_changes_nothing_until_the_pool_is_migrated_to_it(workspace: Workspace, batches: Path):
    workspace.repro()
    workspace.commit("first")
    candidate = workspace.folder / "output" / "checkpoint_candidate.ckpt"
    own = workspace.pool_files()["checkpoint_latest.ckpt"]
    assert candidate.read_bytes() == NO_MODEL
    assert "has no model, for the run" in workspace.run(
        "datapool", "migrate", "--checkpoint", str(candidate), fails=True
    )

    workspace.set({"input_dir": str(batches / "second")})
    without = workspace.copy_to(workspace.folder.parent / "without")
    without.repro("merge")
    workspace.set({"enable_training": "always", "lightly.trainer.max_epochs": 20, "lightly.optimizer.lr": 0.001})
    output = workspace.repro()

    assert "which embeds this batch; a candidate was trained from it" in output
    assert "candidate: better than the pool's model (on 12 images held back: edited copies found " in output
    assert "`datapool migrate --checkpoint output/checkpoint_candidate.ckpt --check`" in output
    assert workspace.pool_files() == without.pool_files()  # the same picks, with the same embeddings
    assert workspace.pool_files()["checkpoint_latest.ckpt"] == own
    made = candidate.read_bytes()
    assert made not in (NO_MODEL, own)

    workspace.commit("second")
    workspace.repro("--force", "--single-item", "train")
    assert candidate.read_bytes() == made
    document = json.loads(workspace.run("datapool", "migrate", "--checkpoint", str(candidate), "--json"))
    assert document["pool"] == "my_datapool_2"
    assert document["neighbor_agreement"] < 1
    assert workspace.pool_files("my_datapool_2")["checkpoint_latest.ckpt"] == made
    assert workspace.names("my_datapool_2") == workspace.names()


def test_two_processes_run_one_stage_and_write_one_result(workspace: Workspace):
    changes = {"lightly.trainer.devices": 2, "lightly.trainer.strategy": "ddp", "lightly.optimizer.lr": 0.003}
    workspace.set(changes | {"lightly.trainer.max_epochs": 4})
    again = workspace.copy_to(workspace.folder.parent / "again")

    output = workspace.repro("merge")

    assert stages_run(output) == ["scan", "open", "train", "embed", "plan", "rank", "sample", "merge"]
    lines = [line for line in output.splitlines() if line.startswith(("trained on ", "new model: "))]
    assert len(lines) == 2
    assert workspace.versions()[0]["embedding_space"]["origin"] == (
        "random weights, trained on 20 images for 4 epochs on 2 devices"
    )
    losses = (workspace.folder / "output" / "plots" / "loss.csv").read_text().splitlines()
    assert len(losses) == 1 + 4 * 2  # two mini-batches of five of each process
    assert list((workspace.folder / ".datapool" / "training").iterdir()) == []
    again.repro("merge")
    assert again.pool_files() == workspace.pool_files()


def test_a_training_on_two_devices_whose_images_cannot_be_read_names_one_and_writes_nothing(
    workspace: Workspace, batches: Path
):
    folder = workspace.folder.parent / "changing"
    shutil.copytree(batches / "first", folder)
    workspace.set({"lightly.trainer.devices": 2, "input_dir": str(folder)})
    workspace.repro("open")
    (folder / "07.png").write_bytes(b"")

    output = workspace.run("dvc", "repro", "--single-item", "train", fails=True)

    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert sum("07.png: the file has changed" in error for error in errors) == 1
    of_the_other_process = [error for error in errors if "another process of the training has ended" in error]
    assert len(errors) == 1 + len(of_the_other_process) <= 2
    assert "Traceback" not in output
    assert not (workspace.folder / "output" / "checkpoint.ckpt").exists()

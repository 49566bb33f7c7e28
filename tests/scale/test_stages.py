"""Stages on a cluster write the bytes that they write on one machine."""

import shutil

import conftest as workspaces
import pytest

pytestmark = pytest.mark.full


@pytest.fixture
def environment(ray_address, monkeypatch):
    monkeypatch.setitem(workspaces.ENVIRONMENT, "RAY_ADDRESS", ray_address)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_outputs_are_the_same_and_another_engine_runs_no_stage_but_the_report(
    after, model_second_week, environment
):
    workspace = after(model_second_week)
    output, pool = files(workspace.folder / "output"), workspace.pool_files()
    workspace.set({"engine": "ray"})

    said = workspace.repro()
    ran = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    shutil.rmtree(workspace.folder / ".datapool" / "embeddings")  # else nothing would be embedded
    workspace.repro("--force")

    assert ran == ["report"]
    again = files(workspace.folder / "output")
    assert {name for name in output if output[name] != again[name]} <= {"report.html", "report.json"}
    assert workspace.pool_files() == pool
    assert list((workspace.folder / ".datapool" / "shards").iterdir()) == []

"""`datapool doctor` names the versions that a clone could not get, with real git, DVC and a folder as remote."""

import json
import platform
import re
import shutil
from importlib.metadata import version

import pytest
from conftest import ENVIRONMENT, Workspace

from datapool.workspace.create import Scm, make_workspace
from datapool.workspace.machine import size_of

pytestmark = pytest.mark.slow


@pytest.mark.full
def test_a_remote_that_was_added_late_lacks_the_older_versions_until_they_are_pushed(second_week, after, tmp_path):
    workspace, store = after(second_week), tmp_path / "store"
    first, second = (workspace.run("git", "rev-parse", commit)[:10] for commit in ("HEAD~1", "HEAD"))
    printed = workspace.run("datapool", "doctor")
    assert "ok     pool 'my_datapool': the files are version 2, as datapools.json records it\n" in printed
    assert "ok     git: everything is committed\n" in printed
    assert printed.startswith(f"ok     Python {platform.python_version()} on ")
    assert f", dvc {version('dvc')}, torch {version('torch')}, " in printed
    assert re.search(r"ok     disk: [0-9]+ MB in DVC's cache, [0-9]+ MB in \.datapool; [0-9,.]+ GiB free\n", printed)
    findings = json.loads(workspace.run("datapool", "doctor", "--json"))
    lines = [f"{each['outcome']:5}  {each['sentence']}" for each in findings]
    assert [line for line in lines if "GiB free" not in line] == [
        line for line in printed.splitlines() if "GiB free" not in line
    ]
    assert (
        "note   no default DVC remote: the pools are on this machine only; `dvc remote add --default store URL`"
        in printed
    )

    workspace.run("dvc", "remote", "add", "--default", "store", str(store))
    workspace.commit("a remote")
    printed = workspace.run("datapool", "doctor", fails=True)
    assert f"lacks 5 of 5 files of version 2 of pool 'my_datapool' (commit {second})" not in printed
    assert (
        f"wrong  remote 'store' lacks the list of files of version 2 of pool 'my_datapool' (commit {second})" in printed
    )

    workspace.run("dvc", "push", "--all-commits")  # .dvc/config of the older commits knows no remote
    printed = workspace.run("datapool", "doctor", fails=True)
    assert (
        f"wrong  remote 'store' lacks the list of files of version 1 of pool 'my_datapool' (commit {first})" in printed
    )
    assert "version 2" not in printed.split("remote 'store'", 1)[1]
    remedy = f"`dvc remote add --local --default store {store}` first, then `dvc push --all-commits`"
    assert (
        "a clone cannot get 1 of 2 states of the pools. `dvc push --all-commits` reads .dvc/config of each" in printed
    )
    assert remedy in printed

    workspace.run(*remedy.split("`")[1].split())
    workspace.run("dvc", "push", "--all-commits")
    printed = workspace.run("datapool", "doctor")
    assert "ok     remote 'store': a clone can get all 2 states of the pools that git has" in printed
    workspace.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    clone.run("git", "checkout", "--quiet", first)
    clone.run("dvc", "remote", "add", "--local", "--default", "store", str(store))
    clone.run("dvc", "pull", "pools")
    assert len(clone.versions()) == 1


@pytest.mark.full
def test_a_damaged_remote_and_a_lost_file_are_found(first_week, after, tmp_path):
    workspace, store = after(first_week), tmp_path / "store"
    workspace.run("dvc", "remote", "add", "--default", "store", str(store))
    workspace.commit("a remote")
    workspace.run("dvc", "push")
    assert "a clone can get all 1 states" in workspace.run("datapool", "doctor")

    csv = workspace.folder / "pools/my_datapool/datapool_latest.csv"
    held = next(path for path in store.rglob("*") if path.is_file() and path.read_bytes() == csv.read_bytes())
    held.chmod(0o644)
    held.unlink()
    assert "wrong  remote 'store' lacks 1 of 5 files of version 1" in workspace.run("datapool", "doctor", fails=True)

    lineage, lock = (workspace.folder / name for name in ("datapools.json", "dvc.lock"))
    texts = lineage.read_text(), lock.read_text()
    lineage.write_text("<<<<<<< HEAD\n" + texts[0])
    lock.write_text("<<<<<<< HEAD\n" + texts[1])
    workspace.commit("a conflict that nobody resolved")
    for path, text in zip((lineage, lock), texts, strict=True):
        path.write_text(text)
    workspace.commit("resolved")
    assert "wrong  remote 'store' lacks 1 of 5 files of version 1" in workspace.run("datapool", "doctor", fails=True)

    record = workspace.folder / "pools/my_datapool/pool.json"
    content = record.read_bytes()
    record.unlink()
    csv.unlink()
    printed = workspace.run("datapool", "doctor", fails=True)
    assert "note   pools/my_datapool/pool.json is missing: it was lost, or an early release did not write it" in printed
    assert "wrong  pools/my_datapool/datapool_latest.csv is missing; `dvc checkout` restores it" in printed

    record.write_bytes(content)
    workspace.set({"seed": 2})
    printed = workspace.run("datapool", "doctor", fails=True)
    assert "wrong  pools/my_datapool/datapool_latest.csv is missing; `dvc checkout` restores it" in printed
    assert "pool.json" not in printed
    assert "note   git: params.yaml changed since the last commit; a clone does not get that" in printed

    shutil.rmtree(record.parent)  # as in a fresh clone
    printed = workspace.run("datapool", "doctor", fails=True)
    assert (
        "wrong  pools/my_datapool is missing; `dvc checkout` restores it (`dvc pull` first in a fresh clone)" in printed
    )
    assert "pool.json" not in printed


@pytest.mark.full
def test_a_workspace_that_is_made_with_a_remote_knows_it_in_every_commit(tmp_path):
    make_workspace(tmp_path / "made", scm=Scm.OWN, remote=str(tmp_path / "store"))
    workspace = Workspace(tmp_path / "made")

    assert f"remote.store.url={tmp_path / 'store'}" in workspace.run("dvc", "config", "--list")
    assert "core.remote=store" in workspace.run("dvc", "config", "--list")
    assert str(tmp_path / "store") in workspace.run("git", "show", "HEAD:.dvc/config")
    assert workspace.run("git", "status", "--porcelain") == ""
    make_workspace(tmp_path / "cloud", scm=Scm.OWN, remote="s3://bucket/pools")
    assert "remote.store.url=s3://bucket/pools" in Workspace(tmp_path / "cloud").run("dvc", "config", "--list")


@pytest.mark.full
def test_a_remote_that_cannot_be_asked_is_one_line(first_week, after, monkeypatch):
    pytest.importorskip("dvc_s3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.setitem(ENVIRONMENT, name, "")
    monkeypatch.setitem(ENVIRONMENT, "AWS_MAX_ATTEMPTS", "1")  # else the client waits between its five
    workspace = after(first_week)
    workspace.run("dvc", "remote", "add", "--default", "cloud", "s3://bucket/pools")
    workspace.run("dvc", "remote", "modify", "cloud", "endpointurl", "http://127.0.0.1:9")
    last = workspace.run("datapool", "doctor", fails=True).splitlines()[-1]

    assert re.fullmatch("error: the remote 'cloud' cannot be asked \\(.+\\); see `dvc remote list`", last)


def test_the_size_of_a_folder_is_that_of_its_files_without_links(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/five").write_bytes(b"12345")
    (tmp_path / "two").write_bytes(b"12")
    (tmp_path / "link").symlink_to(tmp_path / "two")

    assert size_of(tmp_path) == 7
    assert size_of(tmp_path / "none") == 0


def test_a_file_that_is_removed_meanwhile_has_no_size(tmp_path, monkeypatch):
    (tmp_path / "two").write_bytes(b"12")
    monkeypatch.setattr("os.walk", lambda folder: [(str(folder), [], ["two", "gone"])])

    assert size_of(tmp_path) == 2


def test_a_remote_for_an_update_is_refused(tmp_path):
    printed = Workspace(tmp_path).run("datapool", "init", "--update", "--remote", "/store", fails=True)
    assert "--remote is for a new workspace; in an existing one run `dvc remote add --default store URL`" in printed

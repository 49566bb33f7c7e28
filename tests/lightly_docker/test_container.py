"""The entry point of the image with real processes and users; the image itself is tested by tests/container."""

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ENVIRONMENT

from datapool.lightly_docker import container

ROOT = Path(__file__).parents[2]
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user")


def entry(*arguments: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from datapool.lightly_docker.container import main; main()", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, process_group=0, **pipes)


def output(*arguments: str, cwd: Path, code: int = 0) -> str:
    process = entry(*arguments, cwd=cwd)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code, printed
    return printed


def test_help_shows_both_ways_to_run_it(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        monkeypatch.setattr(sys, "argv", ["datapool-container", *arguments])
        container.main()
        printed = capsys.readouterr().out

        assert "datapool.name=my_datapool" in printed
        assert 'docker run --gpus all --rm -v "$PWD":/workspace IMAGE dvc repro' in printed


def test_a_command_runs_in_the_current_folder_and_its_exit_code_is_returned(tmp_path):
    assert output("sh", "-c", "pwd; exit 7", cwd=tmp_path, code=7).strip() == str(tmp_path)


def test_a_missing_command_is_reported_in_one_line(tmp_path):
    assert output("no-such-command", cwd=tmp_path, code=127).startswith("error: no-such-command: cannot be run")


def test_key_value_is_an_override_and_anything_else_a_command():
    overrides = ["nme=1", "datapool.nme=x", "+nme=1", "'nme=1'", "--token=x"]

    assert [text for text in overrides if not container._OVERRIDE.match(text)] == []
    assert [text for text in ["dvc", "a b=c", "./run=1"] if container._OVERRIDE.match(text)] == []


@pytest.mark.slow
def test_overrides_reach_datapool_run_and_a_secret_is_not_repeated(tmp_path):
    assert "did you mean" in output("nme=1", cwd=tmp_path, code=1)
    assert "SECRET" not in output("--token=SECRET", cwd=tmp_path, code=1)


@as_root
def test_root_becomes_the_owner_of_the_folder_and_so_of_new_files():
    # Not in pytest's folder, which only root can enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, STRANGER, 54321)
        printed = output("sh", "-c", "id -u; id -g; echo $USER; touch here $HOME/there && echo made", cwd=folder)

        assert printed.split() == [str(STRANGER), "54321", "datapool", "made"]
        assert ((folder / "here").stat().st_uid, (folder / "here").stat().st_gid) == (STRANGER, 54321)
    with pytest.raises(KeyError):
        pwd.getpwuid(STRANGER)  # a user who is unknown on this machine, as in a container


@as_root
def test_in_a_folder_of_root_the_command_runs_as_root(tmp_path):
    assert output("id", "-u", cwd=tmp_path).strip() == "0"


@as_root
@pytest.mark.parametrize(
    ("owned", "empty", "then"),
    [
        ({"shared": STRANGER, "output": 0}, "output", {"shared": STRANGER, "output": STRANGER}),  # Docker made output
        ({"shared": 0, "output": STRANGER}, "shared", {"shared": STRANGER, "output": STRANGER}),  # Docker made shared
        ({"shared": STRANGER, "output": 0}, "", {"shared": STRANGER, "output": 0}),  # output is in use
        ({"shared": 0, "output": STRANGER}, "", {"shared": 0, "output": STRANGER}),  # root has a pool
        ({"shared": 0, "output": 0}, "shared output", {"shared": 0, "output": 0}),  # Docker made both
    ],
)
def test_an_empty_folder_that_docker_made_gets_the_owner_of_the_other_and_one_in_use_does_not(
    tmp_path, monkeypatch, capsys, owned, empty, then
):
    became = []
    for name, owner in owned.items():
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
        if name not in empty:
            (tmp_path / name / "file").touch()
    for call in ("setgroups", "setgid"):  # this process must not change its user
        monkeypatch.setattr(os, call, lambda _: None)
    monkeypatch.setattr(os, "setuid", became.append)
    container._become_owner(tmp_path / "shared", tmp_path / "output")

    assert {name: (tmp_path / name).stat().st_uid for name in owned} == then
    assert became == ([STRANGER] if then["shared"] else [])
    assert ("belongs to root" in capsys.readouterr().out) == (then["shared"] == 0)


def test_a_container_that_may_not_switch_users_names_the_option_that_helps(tmp_path, monkeypatch, capsys):
    def refused(_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", refused)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if os.getuid() == 0:
        os.chown(tmp_path, STRANGER, STRANGER)
    owner = tmp_path.stat()
    with pytest.raises(SystemExit, match="1"):
        container._become_owner(tmp_path, None)
    assert f"start it with --user {owner.st_uid}:{owner.st_gid}" in capsys.readouterr().out


def test_dvcs_cache_of_hashes_lies_in_the_workspace_or_else_in_the_home(tmp_path):
    show = ("sh", "-c", "echo $DVC_SITE_CACHE_DIR")
    elsewhere = output(*show, cwd=tmp_path).strip()
    (tmp_path / ".dvc").mkdir()

    assert elsewhere.endswith("/.cache/dvc")
    assert output(*show, cwd=tmp_path).strip() == str(tmp_path / ".dvc/tmp/site")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])  # docker stop, and Ctrl-C of a docker run without -t
def test_docker_stop_interrupts_the_command_and_all_its_processes(tmp_path, sent):
    # The process leads its group, as under tini. The inner shell must end as well, or bash would wait for it; once it has
    # printed, it is ready for the signal.
    script = "trap 'echo interrupted; exit 5' INT; sh -c 'echo ready; exec sleep 30'"
    process = entry("bash", "-c", script, cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    printed, _ = process.communicate(timeout=20)

    assert process.returncode == 5
    assert printed == "interrupted\n"

"""The image's entry point with real processes and users; the image itself is tested by test_image.py."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT

from datapool.lightly_docker import container

ROOT = Path(__file__).parents[2]
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def entry(*arguments: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from datapool.lightly_docker.container import main; main()", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, process_group=0, **pipes)


def output(*arguments: str, cwd: Path, code: int = 0) -> str:
    process = entry(*arguments, cwd=cwd)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    return said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_shows_both_ways_to_run_it(tmp_path, arguments):
    said = output(*arguments, cwd=tmp_path)

    assert "datapool.name=my_datapool" in said
    assert 'docker run --gpus all --rm -v "$PWD":/workspace IMAGE dvc repro' in said


def test_a_command_is_run_in_the_current_folder_and_its_exit_code_is_ours(tmp_path):
    assert output("sh", "-c", "pwd; exit 7", cwd=tmp_path, code=7).strip() == str(tmp_path)


def test_a_command_that_is_not_there_is_one_line(tmp_path):
    assert output("no-such-command", cwd=tmp_path, code=127).startswith("error: no-such-command: cannot be run")


@pytest.mark.parametrize("argument", ["nme=1", "datapool.nme=x", "+nme=1", "'nme=1'"])
def test_key_value_is_a_line_for_datapool_run(tmp_path, argument):
    assert "did you mean" in output(argument, cwd=tmp_path, code=1)


@pytest.mark.parametrize("argument", ["dvc", "a b=c", "./run=1"])
def test_what_is_not_key_value_is_a_command(argument):
    assert container._OVERRIDE.match(argument) is None


@as_root
def test_root_becomes_the_owner_of_the_folder_and_files_belong_to_them(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    os.chown(tmp_path, STRANGER, 54321)
    said = output("sh", "-c", "id -u; id -g; echo $USER; touch here $HOME/there && echo made", cwd=tmp_path)

    assert said.split() == [str(STRANGER), "54321", "datapool", "made"]
    assert ((tmp_path / "here").stat().st_uid, (tmp_path / "here").stat().st_gid) == (STRANGER, 54321)
    with pytest.raises(KeyError):
        pwd.getpwuid(STRANGER)  # nobody whom this machine knows: the case of a container


@as_root
def test_a_folder_of_roots_is_worked_in_as_root(tmp_path):
    assert output("id", "-u", cwd=tmp_path).strip() == "0"


@as_root
@pytest.mark.parametrize(
    ("owned", "empty", "then"),
    [
        ({"shared": STRANGER, "output": 0}, "output", {"shared": STRANGER, "output": STRANGER}),  # Docker made output
        ({"shared": 0, "output": STRANGER}, "shared", {"shared": STRANGER, "output": STRANGER}),  # Docker made shared
        ({"shared": STRANGER, "output": 0}, "", {"shared": STRANGER, "output": 0}),  # somebody uses output
        ({"shared": 0, "output": STRANGER}, "", {"shared": 0, "output": STRANGER}),  # a pool of root's
        ({"shared": 0, "output": 0}, "shared output", {"shared": 0, "output": 0}),  # Docker made both
    ],
)
def test_an_empty_folder_that_docker_made_is_handed_over_and_one_in_use_is_not(
    tmp_path, monkeypatch, capsys, owned, empty, then
):
    became = []
    for name, owner in owned.items():
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
        if name not in empty:
            (tmp_path / name / "file").touch()
    for call in ("setgroups", "setgid"):  # this process stays who it is
        monkeypatch.setattr(os, call, lambda _: None)
    monkeypatch.setattr(os, "setuid", became.append)
    container._become_owner(tmp_path / "shared", tmp_path / "output")

    assert {name: (tmp_path / name).stat().st_uid for name in owned} == then
    assert became == ([STRANGER] if then["shared"] else [])
    assert ("belongs to root" in capsys.readouterr().out) == (then["shared"] == 0)


def test_a_container_that_may_not_become_somebody_else_says_what_to_give_it(tmp_path, monkeypatch, capsys):
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


def test_what_may_be_a_secret_is_not_repeated(tmp_path):
    assert "SECRET" not in output("--token=SECRET", cwd=tmp_path, code=1)


def test_hashes_of_images_are_kept_in_the_workspace_and_elsewhere_in_the_home(tmp_path):
    show = ("sh", "-c", "echo $DVC_SITE_CACHE_DIR")
    elsewhere = output(*show, cwd=tmp_path).strip()
    (tmp_path / ".dvc").mkdir()

    assert elsewhere.endswith("/.cache/dvc")
    assert output(*show, cwd=tmp_path).strip() == str(tmp_path / ".dvc/tmp/site")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])  # docker stop, and Ctrl-C of a docker run without -t
def test_docker_stop_is_a_ctrl_c_for_the_command_and_what_it_started(tmp_path, sent):
    # As tini starts it: the first of its process group. sleep ends as well, else the shell would wait for it. It is there
    # once it says so: before, a shell that has forked and not yet become it may swallow the signal.
    script = "trap 'echo interrupted; exit 5' INT; sh -c 'echo ready; exec sleep 30'"
    process = entry("bash", "-c", script, cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    said, _ = process.communicate(timeout=20)

    assert process.returncode == 5
    assert said == "interrupted\n"

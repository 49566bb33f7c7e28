"""The lock of a workspace."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datapool.core.errors import DatapoolError
from datapool.pool.lock import LostLockError, locked


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def holder(seconds: float) -> Iterator[int]:
    """Another process that holds the lock for so long; gives its pid."""
    process = os.fork()
    if not process:
        with locked():
            Path("held").touch()
            time.sleep(seconds)
            Path("done").touch()
        os._exit(0)
    while not Path("held").exists():
        time.sleep(0.01)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_a_second_process_is_refused_with_pid_and_host_of_the_first():
    with (
        holder(60) as process,
        pytest.raises(
            DatapoolError,
            match=rf"^\.datapool/lock: another process \(pid {process} on {socket.gethostname()}\) is at work on the pools of "
            r"this workspace; nothing was changed\. Wait until it has ended, or end it, then run again$",
        ),
        locked(patience=0.1),
    ):
        pass


def test_a_second_process_waits_for_the_first():
    with holder(0.3), locked(patience=30):
        assert Path("done").exists()


def test_the_lock_of_a_process_that_was_killed_is_free_at_once():
    with holder(60) as process:
        os.kill(process, signal.SIGKILL)
        with locked(patience=30):
            assert not Path("done").exists()


def test_a_lock_is_released_if_the_block_raises_and_its_file_stays():
    with pytest.raises(RuntimeError), locked():
        raise RuntimeError
    with locked(patience=0):
        pass

    assert Path(".datapool/lock").exists()  # removed, two processes could hold it, each its own file


def test_the_file_of_a_free_lock_means_nothing():
    Path(".datapool").mkdir()
    Path(".datapool/lock").write_text("pid 1 on elsewhere")

    with locked(patience=0):
        pass


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")], ids=["folder", "link"])
def test_what_cannot_be_locked_is_explained_in_one_line(make: Callable[[Path], object]):
    Path(".datapool").mkdir()
    make(Path(".datapool/lock"))

    with (
        pytest.raises(DatapoolError, match=r"^\.datapool/lock: cannot be locked \(.*\); the workspace must lie where"),
        locked(),
    ):
        pass
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize("instead", [None, b"pid 1 on elsewhere"], ids=["gone", "another"])
def test_require_raises_if_the_lock_file_was_removed_or_replaced(instead: bytes | None):
    with locked() as require:
        require()
        Path(".datapool/lock").unlink()
        if instead:
            Path(".datapool/lock").write_bytes(instead)

        with pytest.raises(
            LostLockError, match=r"^\.datapool/lock: was removed while this process held it, .* Run again$"
        ):
            require()


def test_a_lock_file_removed_right_after_locking_is_not_confused_with_its_successor(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: Path(".datapool/lock").unlink() or "here")  # as its text is made
    with locked() as require:
        Path(".datapool/lock").write_text("pid 1 on elsewhere")

        with pytest.raises(LostLockError):
            require()


def test_a_forked_child_that_outlives_the_holder_does_not_keep_the_lock():
    process = os.fork()
    if not process:
        with locked():
            child = os.fork()
            if child:
                Path("child.new").write_text(str(child))
                Path("child.new").replace("child")
                time.sleep(60)
            time.sleep(60)
        os._exit(0)
    while not Path("child").exists():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    try:
        with locked(patience=5):
            pass
    finally:
        os.kill(int(Path("child").read_text()), signal.SIGKILL)

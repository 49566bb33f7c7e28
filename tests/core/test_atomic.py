"""A file is replaced whole or not at all, and no temporary file remains."""

import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.pool.filesystem import Beginning, Disk, write_file


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


@pytest.mark.parametrize("link", [".datapool", ".datapool/tmp"])
def test_a_link_in_place_of_our_own_folder_is_refused_and_its_target_is_not_touched(link):
    Path("elsewhere/tmp").mkdir(parents=True)
    old = Path("elsewhere/tmp/old.txt")
    old.write_text("not ours")
    os.utime(old, (1, 1))  # old enough to be removed
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to(Path("elsewhere").resolve() / ("tmp" if link.endswith("tmp") else "."))

    with pytest.raises(
        DatapoolError, match=rf"^{link}: is a link to /.*elsewhere.*, but must be a folder; remove the link$"
    ):
        atomic.write_bytes(Path("c.txt"), b"new")
    assert not Path("c.txt").exists()
    assert [path.name for path in Path("elsewhere/tmp").iterdir()] == ["old.txt"]


def test_temporary_files_are_removed_once_their_process_has_ended():
    folder = atomic.scratch("tmp")
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    host = socket.gethostname()
    for name in (f"{host}.{process}.abc", f"{host}.{os.getpid()}.abc", f"elsewhere.{process}.abc", "elsewhere.1.old"):
        (folder / name).touch()
    os.utime(folder / "elsewhere.1.old", (1, 1))
    atomic.write_bytes(Path("c.txt"), b"new")

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{host}.{os.getpid()}.abc", f"elsewhere.{process}.abc"]
    )


def test_a_temporary_file_that_another_process_removes_at_the_same_time_is_no_error(monkeypatch):
    left = atomic.scratch("tmp") / "elsewhere.1.old"
    left.touch()
    is_file = Path.is_file

    def and_then_it_goes(path: Path) -> bool:
        was_file = is_file(path)
        if path == left:
            left.unlink(missing_ok=True)
        return was_file

    monkeypatch.setattr(Path, "is_file", and_then_it_goes)
    atomic.write_bytes(Path("c.txt"), b"new")

    assert Path("c.txt").read_bytes() == b"new"


def test_writing_makes_the_folders_and_leaves_only_the_file():
    atomic.write_bytes(Path("a/b/c.txt"), b"new")

    assert Path("a/b/c.txt").read_bytes() == b"new"
    assert files() == ["a/b/c.txt"]


def test_a_longer_file_is_replaced_by_a_shorter_one():
    Path("c.txt").write_bytes(b"something longer")
    atomic.write_bytes(Path("c.txt"), b"new")

    assert Path("c.txt").read_bytes() == b"new"


def test_copying_gives_the_same_bytes_and_leaves_the_source():
    Path("a").write_bytes(b"\0\xff")
    atomic.copy_file(Path("a"), Path("far/b"))

    assert (Path("a").read_bytes(), Path("far/b").read_bytes()) == (b"\0\xff", b"\0\xff")


def test_parts_are_written_one_after_another_and_hashed_as_far_as_they_go():
    parts = [[b"a", b"", b"bc"], [], [b"d"]]
    written = [write_file(Disk(), Path(f"{n}.txt"), *map(iter, parts[:n])) for n in (1, 2, 3)]

    assert [Path(f"{n}.txt").read_bytes() for n in (1, 2, 3)] == [b"abc", b"abc", b"abcd"]
    assert [each.sha256 for each in written] == [hashlib.sha256(text).hexdigest() for text in (b"abc", b"abc", b"abcd")]
    assert [each.before_last for each in written] == [
        hashlib.sha256(text).hexdigest() for text in (b"", b"abc", b"abc")
    ]
    assert [each.size for each in written] == [3, 3, 4]


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EINVAL, errno.ENOSYS, "half", "none"], ids=str)
def test_the_beginning_of_a_file_is_copied_or_shared_and_hashed_as_it_is_in_the_new_file(monkeypatch, refusal):
    data = os.urandom(700_000)
    Path("source").write_bytes(data)
    in_kernel, copied = os.copy_file_range, []

    def copy_file_range(source: int, file: int, count: int, offset: int) -> int:
        if isinstance(refusal, int):
            raise OSError(refusal, os.strerror(refusal))
        if refusal == "half" and copied:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        copied.append(in_kernel(source, file, min(count, 0 if refusal == "none" else 300_000), offset))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    for size, new in ((500_001, [b"new", b" rows"]), (0, []), (800_000, [b"x"])):
        copied.clear()
        Path("c.txt").unlink(missing_ok=True)
        written = write_file(Disk(), Path("c.txt"), Beginning(Path("source"), size), new)
        expected = data[:size] + b"".join(new)

        assert Path("c.txt").read_bytes() == expected
        assert (written.sha256, written.size) == (hashlib.sha256(expected).hexdigest(), len(expected))
        assert written.before_last == hashlib.sha256(data[:size]).hexdigest()


def test_a_full_disk_is_no_reason_to_copy_in_another_way(monkeypatch):
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("source").write_bytes(b"abc")
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_file(Disk(), Path("c.txt"), Beginning(Path("source"), 3))


def test_the_hash_of_a_file_is_that_of_all_its_bytes():
    Path("c.txt").write_bytes(b"abc" * 500_000)

    assert atomic.sha256(Path("c.txt")) == hashlib.sha256(b"abc" * 500_000).hexdigest()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file_and_no_other(error):
    Path("c.txt").write_bytes(b"old")

    with pytest.raises(error), atomic.replace(Path("c.txt")) as temporary:
        temporary.write_bytes(b"half")
        raise error

    assert Path("c.txt").read_bytes() == b"old"
    assert files() == ["c.txt"]


def test_until_the_block_ends_the_old_file_is_seen():
    Path("c.txt").write_bytes(b"old")
    with atomic.replace(Path("c.txt")) as temporary:
        temporary.write_bytes(b"new")

        assert Path("c.txt").read_bytes() == b"old"


def test_the_temporary_file_lies_outside_of_the_folder_that_dvc_would_hash():
    with atomic.replace(Path("pools/c.txt")) as temporary:
        assert temporary.parent.resolve() == Path(".datapool/tmp").resolve()
        assert files() == [f".datapool/tmp/{temporary.name}"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(monkeypatch):
    # After a power cut a renamed file whose content was not flushed can be empty.
    steps = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append("flush") or flush(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("rename") or rename(*paths))
    atomic.write_bytes(Path("c.txt"), b"new")

    assert steps == ["flush", "rename", "flush"]  # the second one is the folder's


def test_a_read_only_file_is_replaced_by_one_that_every_user_may_read():
    Path("c.txt").write_bytes(b"old")
    Path("c.txt").chmod(0o444)  # as DVC leaves its outputs
    atomic.write_bytes(Path("c.txt"), b"new")

    assert Path("c.txt").read_bytes() == b"new"
    assert Path("c.txt").stat().st_mode & 0o777 == 0o644


def test_a_link_is_replaced_and_its_target_stays():
    # DVC may link an output into its cache; writing through the link would spoil the cache.
    Path("cache").write_bytes(b"old")
    Path("c.txt").symlink_to("cache")
    atomic.write_bytes(Path("c.txt"), b"new")

    assert Path("cache").read_bytes() == b"old"
    assert Path("c.txt").read_bytes() == b"new"
    assert not Path("c.txt").is_symlink()


def test_a_target_that_cannot_be_written_is_named():
    Path("parent").write_bytes(b"a file, no folder")

    with pytest.raises(
        DatapoolError,
        match=r"^parent/c\.txt: cannot be written \(.+; [\d,.]+ MB are free\); it is unchanged; move away what is in its place",
    ):
        atomic.write_bytes(Path("parent/c.txt"), b"new")
    assert files() == ["parent"]


def test_a_folder_in_place_of_the_file_is_left_alone():
    Path("c.txt").mkdir()
    Path("c.txt/kept").write_bytes(b"kept")

    with pytest.raises(DatapoolError, match=r"^c\.txt: cannot be written \(Is a directory; [\d,.]+ MB are free\)"):
        atomic.write_bytes(Path("c.txt"), b"new")
    assert files() == ["c.txt/kept"]


def test_a_full_disk_is_reported_and_leaves_the_old_file():
    Path("c.txt").write_bytes(b"old")

    with (
        pytest.raises(
            DatapoolError, match=r"c\.txt: cannot be written \(No space left on device; [\d,.]+ MB are free\)"
        ),
        atomic.replace(Path("c.txt")) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(28, os.strerror(28))
    assert Path("c.txt").read_bytes() == b"old"
    assert files() == ["c.txt"]


def test_a_disk_that_also_refuses_to_clean_up_is_reported_in_one_line(monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, os.strerror(30), str(path))

    with (
        pytest.raises(
            DatapoolError, match=r"^c\.txt: cannot be written \(No space left on device; [\d,.]+ MB are free\)"
        ),
        atomic.replace(Path("c.txt")),
    ):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise OSError(28, os.strerror(28))


def test_a_disk_that_refuses_to_flush_a_backup_is_reported_in_one_line(monkeypatch):
    Path("mine.csv").write_bytes(b"mine")

    def refuse(path: Path, flags: int) -> None:
        if path == Path():  # the last folder that is flushed, after the copy was made
            raise OSError(5, os.strerror(5))

    monkeypatch.setattr(atomic, "flush", refuse)
    with pytest.raises(
        DatapoolError,
        match=r"^\.datapool/backup/workspace-\w{12}-mine\.csv: cannot be written \(Input/output error; [\d,.]+ MB are free\); "
        r"mine\.csv is unchanged; find out what is wrong with the disk",
    ):
        atomic.back_up(Path("mine.csv"), unless=set())

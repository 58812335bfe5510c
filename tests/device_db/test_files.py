"""Files and folders are written completely or not at all."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bignas.device_db.errors import OutputError
from bignas.device_db.files import (
    atomic_folder,
    locked,
    require_writable,
    sha256_of,
    write_atomically,
)


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail_with(number: int) -> Any:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two" * 100_000)
    assert path.read_bytes() == b"two" * 100_000
    assert entries(path.parent) == ["file.bin"]


def test_a_new_file_has_the_users_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_atomically(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "nput/output error"),
    ],
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, text: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(OutputError, match=text) as caught:
        write_atomically(path, b"new")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["file"]


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "place" / "inner").mkdir(parents=True)
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "place", b"x")
    assert entries(tmp_path) == ["place"]


def test_a_file_in_the_place_of_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for write in (
        lambda: write_atomically(tmp_path / "file" / "x", b"x"),
        lambda: require_writable(tmp_path / "file" / "x"),
        lambda: require_writable(tmp_path / "file" / "x" / "y"),
        lambda: atomic_folder(tmp_path / "file" / "x").__enter__(),
    ):
        with pytest.raises(OutputError):
            write()


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bundle"
    with atomic_folder(path) as folder:
        (folder / "old").write_text("old")
        assert not path.exists()
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text("new")
        assert entries(path) == ["old"]
    assert entries(path) == ["sub"]
    assert entries(path.parent) == ["bundle"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        (folder / "new").write_text(str(1 // 0))
    assert entries(path) == ["old"]
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.parametrize("call", ["mkdir", "fsync"])
def test_a_full_disk_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "old").write_text("old")
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))
    with pytest.raises(OutputError, match="disk full"), atomic_folder(path) as folder:
        (folder / "new").write_text("new")
    assert entries(path) == ["old"]
    assert entries(tmp_path) == ["bundle"]


def test_a_full_disk_inside_the_block_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk full"), atomic_folder(tmp_path / "bundle"):
        fail_with(errno.ENOSPC)()
    assert entries(tmp_path) == []


def test_other_files_errors_inside_the_block_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "bundle"):
        (tmp_path / "input").read_bytes()
    assert entries(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(OutputError, match="a file stands"), atomic_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle").read_text() == "mine"


def test_a_failed_swap_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "old").write_text("old")
    replace = Path.replace

    def fail_on_the_new_one(self: Path, target: Path) -> Path:
        if target == path and (self / "new").exists():
            fail_with(errno.EIO)()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_the_new_one)
    with pytest.raises(OSError, match=r"Input/output error"), atomic_folder(path) as folder:
        (folder / "new").write_text("new")
    assert entries(path) == ["old"]
    assert entries(tmp_path) == ["bundle"]


def test_the_early_check_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b" / "c")
    assert entries(tmp_path) == []


def test_the_early_check_finds_a_place_that_cannot_be_written() -> None:
    with pytest.raises(OutputError):
        require_writable(Path("/proc/self/bundle"))


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_lock_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    with locked(path, 0.0) as first, locked(path, 0.05) as second:
        assert (first, second) == (True, False)
    with locked(path, 0.0) as third:
        assert third


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import pathlib, sys, time; from bignas.device_db.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 0.0) as held:\n"
        "    print(held, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with locked(path, 0.0) as held:
            assert not held
        other.kill()
        other.wait()
        with locked(path, 10.0) as held:
            assert held


def test_a_lock_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), locked(tmp_path, 0.0):
        pass

"""Files that are either written completely or not at all.

A reader never sees a half-written file or folder: both are written beside their place under a
hidden temporary name, flushed to the disk and then renamed. Errors of the operating system become
`OutputError` with one clear line.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_dir

from bignas.device_db.errors import OutputError

__all__ = [
    "atomic_folder",
    "cache_folder",
    "locked",
    "require_writable",
    "sha256_of",
    "write_atomically",
]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    errno.ENOSPC: "disk full; free some space or choose another place",
    errno.EDQUOT: "disk quota exceeded; free some space or choose another place",
    errno.EACCES: "permission denied; choose a place that you may write",
    errno.EPERM: "permission denied; choose a place that you may write",
    errno.EROFS: "read-only file system; choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder stands in its place",
    errno.ENAMETOOLONG: "the name is too long",
}
_BLOCK_BYTES = 1 << 20
_LOCK_SECONDS = 0.02  # between two tries


def cache_folder() -> Path:
    """Return where derived files are kept: $BIGNAS_CACHE, else the user's cache folder."""
    return Path(os.environ.get("BIGNAS_CACHE") or user_cache_dir("bignas"))


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what was there, or leave everything as it was.

    Missing parent folders are created.

    Raises:
        OutputError: the file cannot be written (disk full, permission, a folder in its place, ...).
    """
    temporary = _temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_and_flush(temporary, data)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[bool]:
    """Hold a lock file for a block, alone among processes; yields whether it is held.

    It is waited for so many seconds at most; after that the block runs without it. The lock of a
    process that dies is free at once, the file stays.

    Raises:
        OutputError: the file cannot be written.
    """
    deadline = time.monotonic() + seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise _output_error(path, error) from error
    with file:
        held = _try_lock(file.fileno())
        while not held and time.monotonic() < deadline:
            time.sleep(_LOCK_SECONDS)
            held = _try_lock(file.fileno())
        yield held


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes the place of `path` when the block succeeds.

    A folder that was at `path` is replaced as a whole. When the block fails the new folder is
    removed and the old one stays. Missing parent folders are created.

    Raises:
        OutputError: the folder cannot be written, or `path` is a file.
    """
    temporary = _temporary_sibling(path)
    try:
        if path.exists() and not path.is_dir():
            raise OutputError(f"cannot write the folder {path}: a file stands in its place")
        temporary.mkdir(parents=True)
        yield temporary
        _flush_tree(temporary)
        _replace_folder(temporary, path)
    except OSError as error:
        if error.errno in _NO_SPACE or _concerns(error, temporary, path):
            raise _output_error(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Check, before long work starts, that a file or folder can later be written at `path`.

    Nothing is left behind: the nearest existing parent folder is tried with a nameless file.

    Raises:
        OutputError: the parent of `path` cannot be created or written.
    """
    folder = path.absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _output_error(path, error) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _temporary_sibling(path: Path) -> Path:
    return path.absolute().parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _write_and_flush(path: Path, data: bytes) -> None:
    """Create `path` (with the user's file mode, unlike tempfile) and push `data` to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    """Make a rename in `path` durable; some file systems do not offer that, which is no error."""
    with contextlib.suppress(OSError):
        _flush(path)


def _flush_tree(folder: Path) -> None:
    for entry in folder.rglob("*"):
        if stat.S_ISREG(entry.lstat().st_mode):
            _flush(entry)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; an old folder is moved aside first and put back on failure."""
    if not path.exists():
        new.replace(path)
        _flush_folder(path.absolute().parent)
        return
    aside = _temporary_sibling(path)
    path.replace(aside)
    try:
        new.replace(path)
    except OSError:
        aside.replace(path)
        raise
    _flush_folder(path.absolute().parent)
    shutil.rmtree(aside, ignore_errors=True)


def _concerns(error: OSError, temporary: Path, path: Path) -> bool:
    """Tell whether the error is about the folder being written, not about some input."""
    if error.filename is None:
        return False
    place = Path(os.fsdecode(error.filename)).absolute()
    return any(
        place.is_relative_to(root) or root.is_relative_to(place)
        for root in (temporary, path.absolute())
    )


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}")

"""What commands check before long work starts, so that a mistake costs a second and not an hour.

Its imports are those of the work itself; commands import it when they run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bignas.compile.bundle import MANIFEST
from bignas.device_db.device import Device
from bignas.device_db.errors import ArchitectureError, InputError, OutputError, TargetError
from bignas.device_db.files import require_writable
from bignas.device_db.probe import obstacle_to_measuring, probe_local, shortage_of_cores
from bignas.latency.remote import count_servers
from bignas.supernet.architecture import Architecture
from bignas.supernet.architectures import load_architectures
from bignas.supernet.space import SearchSpace

__all__ = [
    "read_architectures",
    "read_images",
    "read_one_architecture",
    "require_bundle_place",
    "require_cores",
    "require_file_place",
    "require_folder_place",
    "require_measurable",
]


def read_architectures(
    texts: Sequence[str], space: SearchSpace, seed: int = 0
) -> list[Architecture]:
    """Return the architectures of all --arch options, in their order.

    Raises:
        ArchitectureError: a malformed one, or one outside the space.
    """
    rng = np.random.default_rng(seed)
    return [one for text in texts for one in load_architectures(text, space, rng)]


def read_one_architecture(texts: Sequence[str], space: SearchSpace, seed: int = 0) -> Architecture:
    """Return the only architecture of the --arch options.

    Raises:
        ArchitectureError: as above, or there are several.
    """
    found = read_architectures(texts, space, seed)
    if len(found) != 1:
        raise ArchitectureError(f"give one architecture to compile, --arch names {len(found)}")
    return found[0]


def read_images(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Return float32 images [n, channels, height, width] of a NumPy file.

    The file holds one image of `shape` (channels, height, width) or several. It is never unpickled.

    Raises:
        InputError: the file is missing, corrupt, or holds something else.
    """
    try:
        # mapped: a file that claims to be larger than it is must not cost memory
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, OverflowError) as error:
        raise InputError(f"{path} is not a NumPy array file, or is damaged: {error}") from None
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} holds several arrays; write one with numpy.save")
    wanted = ", ".join(map(str, shape))
    if values.dtype != np.float32:
        raise InputError(f"{path} holds {values.dtype} values, the network takes float32")
    if values.ndim == len(shape):
        values = values[np.newaxis]
    if values.ndim != len(shape) + 1 or values.shape[1:] != tuple(shape):
        raise InputError(
            f"{path} holds an array of shape {list(values.shape)},"
            f" the network takes [n, {wanted}] or [{wanted}]"
        )
    if len(values) == 0:
        raise InputError(f"{path} holds no images")
    return np.array(values)


def require_file_place(path: Path) -> None:
    """Make sure that a file can be written at `path`.

    Raises:
        OutputError: its folder cannot be written, or `path` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: a folder stands in its place")
    require_writable(path)


def require_folder_place(path: Path) -> None:
    """Make sure that files can be written into a folder at `path`, which may exist.

    Raises:
        OutputError: it cannot be made or written, or `path` is a file.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file stands in its place")
    require_writable(path / MANIFEST)


def require_bundle_place(path: Path) -> None:
    """Make sure that a bundle can be written at `path`, and that nothing but a bundle is replaced.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise OutputError(f"{path} is a folder with other files in it: choose a new folder")
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file stands in its place")
    require_writable(path)


def require_measurable(device: Device) -> None:
    """Make sure that latencies of a device can be measured, on this machine or through RPC.

    Raises:
        TargetError: it is another machine, or needs instructions or cores that this one lacks.
        RemoteError: a remote device's tracker does not answer, or knows no server of it.
    """
    if device.remote is not None:
        count_servers(device.remote)
    obstacle = obstacle_to_measuring(device, probe_local())
    if obstacle is not None:
        raise TargetError(f"{obstacle}: measure on the device itself, then export and import it")


def require_cores(device: str, threads: int) -> None:
    """Make sure that this process may use as many cores as a device's binaries have threads.

    Raises:
        TargetError: it may not.
    """
    shortage = shortage_of_cores(device, threads, probe_local())
    if shortage is not None:
        raise TargetError(shortage)

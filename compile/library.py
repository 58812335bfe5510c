"""A compiled network loaded into this process: run it and time it through its C interface."""

import ctypes
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bignas.device_db.errors import BundleError

__all__ = ["NetworkLibrary"]

ABI = 1
ALIGNMENT = 64
NUMBERS = "biuf"  # kinds of NumPy types that can become float32


class NetworkLibrary:
    """The shared library of a network.

    `input_shape` (channels, height, width) is what `run` insists on; without it only the number of
    values is checked.

    Raises:
        BundleError: the file is no library of this version's interface.
    """

    def __init__(self, path: Path, input_shape: tuple[int, ...] | None = None) -> None:
        self.input_shape = input_shape
        try:
            self._library = _load(path)
            self._declare()
        except (OSError, AttributeError) as error:
            reason = str(error).rpartition(": ")[2]
            raise BundleError(f"{path} is not a network library: {reason}") from error
        if self._library.bignas_abi() != ABI:
            raise BundleError(
                f"{path} has interface version {self._library.bignas_abi()}, expected {ABI}"
            )
        self.input_floats = int(self._library.bignas_input_floats())
        self.output_floats = int(self._library.bignas_output_floats())
        self._workspace = aligned_floats(int(self._library.bignas_workspace_bytes()) // 4)

    def _declare(self) -> None:
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        for name in ("bignas_input_floats", "bignas_output_floats", "bignas_workspace_bytes"):
            function = getattr(self._library, name)
            function.restype, function.argtypes = size, []
        self._library.bignas_run.argtypes = [pointer] * 3
        self._library.bignas_time.argtypes = [pointer] * 3 + [ctypes.c_int] * 2 + [pointer]

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return outputs [n, classes] for images [n, channels, height, width], float32.

        Raises:
            BundleError: the images have another shape than the network's input, or are no numbers.
        """
        if images.dtype.kind not in NUMBERS:
            raise BundleError(f"the network takes numbers, got an array of {images.dtype}")
        images = np.ascontiguousarray(images, np.float32)
        shape = images.shape[1:]
        fits = math.prod(shape) == self.input_floats and shape == (self.input_shape or shape)
        if images.ndim != 4 or not fits:
            wanted = "x".join(map(str, self.input_shape or (self.input_floats,)))
            got = "x".join(map(str, images.shape))
            raise BundleError(f"the network takes images of nx{wanted}, got an array of {got}")
        outputs = aligned_floats(len(images) * self.output_floats)
        outputs = outputs.reshape(len(images), self.output_floats)
        for image, output in zip(images, outputs, strict=True):
            self._library.bignas_run(_pointer(image), _pointer(output), _pointer(self._workspace))
        return outputs

    def bind(self, image: np.ndarray) -> Callable[[], np.ndarray]:
        """Return a function that runs one image [1, channels, height, width], for timing it.

        Input and output stay in place from call to call, so nothing is allocated.
        """
        held = aligned_floats(self.input_floats)
        held[:] = np.ascontiguousarray(image, np.float32).reshape(-1)
        output = aligned_floats(self.output_floats)
        arrays = held, output, self._workspace  # pointers do not keep them alive
        pointers = tuple(_pointer(array) for array in arrays)

        def call() -> np.ndarray:
            self._library.bignas_run(*pointers)
            return arrays[1]

        return call

    def time(self, image: np.ndarray, inner: int, count: int) -> np.ndarray:
        """Return `count` samples in nanoseconds, each the mean of `inner` runs in a row."""
        image = np.ascontiguousarray(image, np.float32)
        output = aligned_floats(self.output_floats)
        samples = np.zeros(count, np.float64)
        self._library.bignas_time(
            _pointer(image),
            _pointer(output),
            _pointer(self._workspace),
            inner,
            count,
            _pointer(samples),
        )
        return samples


def _load(path: Path) -> ctypes.CDLL:
    """Load a copy under a name of its own.

    The loader takes a path that it has seen for the library it knows, although the file may have
    been replaced since; and a file that is overwritten while it is loaded crashes the process.
    """
    with tempfile.TemporaryDirectory(prefix="bignas-library-") as folder:
        return ctypes.CDLL(str(shutil.copy(path, folder)))


def aligned_floats(count: int) -> np.ndarray:
    """Return a zeroed float32 array that starts at a multiple of 64 bytes."""
    raw = np.zeros(count * 4 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32)


def _pointer(values: np.ndarray) -> Any:
    return ctypes.c_void_p(values.ctypes.data)

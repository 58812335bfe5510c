"""Bundles on remote devices: their own runner checks itself there, and runs images.

For a device that is not remote, everything happens on this machine as in compile/bundle.py.
"""

import math
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from bignas.compile.bundle import (
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    RUNNER,
    Bundle,
    Verification,
    verify,
)
from bignas.compile.emulator import read_self_check
from bignas.compile.library import NetworkLibrary
from bignas.device_db.device import Device
from bignas.device_db.errors import BundleError, MeasurementError
from bignas.device_db.target import Target
from bignas.device_db.workload import BYTES_PER_VALUE
from bignas.latency.remote import run_remotely

__all__ = ["BundleRunner", "check_fits", "verify_on"]

RUN_SECONDS: Final = 1200.0  # that a bundle may take for its golden images, or one batch
LOCAL_BATCH: Final = 256
REMOTE_BATCH_BYTES: Final = 32 << 20  # of images that are uploaded together
IMAGES: Final = "images.bin"
SCORES: Final = "scores.bin"


def check_fits(bundle: Bundle, device: Device) -> None:
    """Make sure that a remote device can run a bundle.

    Raises:
        BundleError: it is for another family of processors, or has instructions or threads that the
            device has not.
    """
    target, manifest = Target.from_dict(bundle.manifest.target), bundle.manifest
    if target.architecture is not device.target.architecture:
        raise BundleError(
            f"the bundle is built for {target.architecture},"
            f" device {device.name!r} is {device.target.architecture}"
        )
    if target.vector_lanes > device.target.vector_lanes:
        raise BundleError(
            f"the bundle is built for {target.cpu}, whose instructions device {device.name!r}"
            f" ({device.target.cpu}) lacks"
        )
    if manifest.threads > device.cores:
        raise BundleError(
            f"the bundle uses {manifest.threads} threads,"
            f" device {device.name!r} has {device.cores} cores"
        )


def verify_on(bundle: Bundle, device: Device | None) -> Verification:
    """Check every hash of a bundle, then its outputs, on a remote device by its own runner.

    Raises:
        BundleError: a damaged bundle, or one that the machine cannot run.
        RemoteError: a remote device's tracker or servers cannot be used.
        VerificationError: the program crashed.
    """
    if device is None or device.remote is None:
        return verify(bundle)
    bundle.check_files()
    check_fits(bundle, device)
    files = {name: bundle.path / name for name in (RUNNER, GOLDEN_INPUTS, GOLDEN_OUTPUTS)}
    command = (f"./{RUNNER}", "--self-check", "--json")
    ran = run_remotely(device, files, command, {}, RUN_SECONDS)
    name = f"{bundle.path} on {device.name}"
    return Verification(*read_self_check(ran.status, ran.output, ran.errors, name))


class BundleRunner:
    """Runs images through a bundle, on a remote device or on this machine; hashes are checked.

    `input_floats` are those of one image; `batch` images are best run together.

    Raises:
        BundleError: a damaged bundle, or one that the machine cannot run.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self._bundle = bundle
        self._device = device
        self._library: NetworkLibrary | None = None
        self.input_floats = math.prod(bundle.manifest.input["shape"])
        self.batch = LOCAL_BATCH
        if device.remote is None:
            self._library = bundle.open_library()
            self.input_floats = self._library.input_floats
        else:
            bundle.check_files()
            check_fits(bundle, device)
            self.batch = max(1, REMOTE_BATCH_BYTES // (self.input_floats * BYTES_PER_VALUE))

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return outputs [n, classes] for preprocessed images [n, channels, height, width].

        Raises:
            RemoteError: a remote device's tracker or servers cannot be used.
            MeasurementError: the program crashes or hangs.
        """
        if self._library is not None:
            return self._library.run(images)
        with tempfile.TemporaryDirectory(prefix="bignas-images-") as name:
            source, scores = Path(name) / IMAGES, Path(name) / SCORES
            source.write_bytes(np.ascontiguousarray(images, np.float32).tobytes())
            files = {RUNNER: self._bundle.path / RUNNER, IMAGES: source}
            command = (f"./{RUNNER}", "--input", IMAGES, "--output", SCORES)
            ran = run_remotely(self._device, files, command, {SCORES: scores}, RUN_SECONDS)
            if ran.status:
                raise MeasurementError(
                    f"the binary of {self._bundle.path} stopped with status {ran.status} on"
                    f" {self._device.name}: {' '.join(ran.errors.split())}"
                )
            return np.frombuffer(scores.read_bytes(), np.float32).reshape(len(images), -1)

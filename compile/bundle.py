"""A bundle: the folder that ships. Runner, library, ONNX model, golden values, manifest.

    manifest.json         hashes of all other files, architecture, target, kernels, latencies
    run                   the network as a program: checks itself, measures, runs on files
    model.so, bignas.h    the network as a library, and the C interface of it
    model.onnx            the same network for any other engine
    golden_inputs.npy     preprocessed images, and what ONNX Runtime answers to them
    golden_outputs.npy

Everything that `verify`, `bench` and `run` need is in the folder. A bundle for another processor
family is verified by its own runner under an emulator; its latency is not measured there.
"""

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bignas.compile.emulator import emulated_self_check, is_foreign
from bignas.compile.fallback import FALLBACK
from bignas.compile.graph import Call, FallbackCall
from bignas.compile.kernel_identity import code_hash, compiler_version
from bignas.compile.library import NetworkLibrary
from bignas.compile.manifest import FileEntry, KernelEntry, Latency, Manifest, ScheduleSource
from bignas.compile.native import build_runner
from bignas.compile.network import CompiledNetwork
from bignas.compile.onnx_export import INPUT_NAME, OUTPUT_NAME, run_onnx
from bignas.compile.schedule import Schedule
from bignas.device_db.device import Device
from bignas.device_db.errors import BundleError
from bignas.device_db.files import atomic_folder, sha256_of, write_atomically
from bignas.device_db.probe import probe_local
from bignas.device_db.target import Target
from bignas.device_db.workload import Workload

__all__ = ["Bundle", "BundleContents", "Verification", "record_measured", "verify", "write_bundle"]

MANIFEST = "manifest.json"
RUNNER = "run"
LIBRARY = "model.so"
HEADER = "bignas.h"
ONNX = "model.onnx"
GOLDEN_IMAGES = 16  # inputs that a bundle carries with what they must give
GOLDEN_INPUTS = "golden_inputs.npy"
GOLDEN_OUTPUTS = "golden_outputs.npy"
FILES = (RUNNER, LIBRARY, HEADER, ONNX, GOLDEN_INPUTS, GOLDEN_OUTPUTS)
TOLERANCE = 1e-4  # of the largest golden output; float32 sums in another order differ by less


@dataclass(frozen=True, slots=True)
class BundleContents:
    """What a bundle is written from.

    `golden_inputs` are preprocessed images [n, channels, height, width]; `preprocessing` describes
    how raw images become such inputs (mean, std, resolution), for whoever embeds the network.
    """

    name: str
    network: CompiledNetwork
    onnx_model: bytes
    golden_inputs: np.ndarray
    device: Device
    preprocessing: Mapping[str, Any]
    space: str | None = None
    space_digest: str | None = None
    architecture: Mapping[str, Any] | None = None
    kernel_latency_us: Mapping[Workload, float] | None = None
    predicted: Latency | None = None
    bignas_version: str = ""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose manifest is sound; its other files are checked by `verify`."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> "Bundle":
        """Return the bundle in a folder.

        Raises:
            BundleError: no bundle, an incomplete one, a newer one, or a changed manifest.
        """
        if not path.is_dir():
            raise BundleError(f"no bundle at {path}: not a folder")
        try:
            data = (path / MANIFEST).read_bytes()
        except OSError as error:
            raise BundleError(
                f"no bundle at {path}: {MANIFEST} is missing or unreadable"
            ) from error
        manifest = Manifest.from_bytes(data)
        for name in FILES:
            if name not in manifest.files:
                raise BundleError(f"the manifest of {path} does not list {name}")
        return cls(path, manifest)

    def check_files(self) -> None:
        """Compare every file with its hash.

        Raises:
            BundleError: a file is missing or has changed; it is named.
        """
        for name, entry in sorted(self.manifest.files.items()):
            file = self.path / name
            if Path(name).name != name or not file.is_file():
                raise BundleError(f"the bundle {self.path} is damaged: {name} is missing")
            if file.stat().st_size != entry.size_bytes or sha256_of(file) != entry.sha256:
                raise BundleError(f"the bundle {self.path} is damaged: {name} has changed")

    def check_machine(self) -> None:
        """Make sure that this machine can run the library.

        Raises:
            BundleError: another architecture, or an instruction set this processor lacks.
        """
        target = Target.from_dict(self.manifest.target)
        here = probe_local().target
        if target.architecture is not here.architecture:
            raise BundleError(
                f"the bundle is built for {target.architecture},"
                f" this machine is {here.architecture}"
            )
        if target.vector_lanes > here.vector_lanes:
            raise BundleError(
                f"the bundle is built for {target.cpu}, whose instructions this processor"
                f" ({here.cpu}) lacks; compile it for this device"
            )

    def open_library(self) -> NetworkLibrary:
        """Return the network, ready to run, after the checks above."""
        self.check_files()
        self.check_machine()
        shape = tuple(self.manifest.input["shape"][1:])
        return NetworkLibrary(self.path / LIBRARY, shape)

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Return golden inputs [n, channels, height, width] and outputs [n, classes]."""
        return _load_array(self.path / GOLDEN_INPUTS), _load_array(self.path / GOLDEN_OUTPUTS)


@dataclass(frozen=True, slots=True)
class Verification:
    """How the binary's outputs compare with the golden ones; `top1_agreement` is from 0 to 1.

    `emulated` tells that an emulator ran the binary: numerics are proven, latency is not.
    """

    ok: bool
    max_abs_error: float
    top1_agreement: float
    images: int
    emulated: bool = False


def verify(bundle: Bundle) -> Verification:
    """Check every hash, then run the golden inputs and compare.

    The library runs in this process; a bundle for another processor family checks itself under an
    emulator of single programs, where one is installed.

    Raises:
        BundleError: a damaged bundle, or one that this machine cannot run.
        VerificationError: the emulated program crashed.
    """
    target = Target.from_dict(bundle.manifest.target)
    if is_foreign(target):
        bundle.check_files()
        return Verification(*emulated_self_check(bundle.path / RUNNER, target), emulated=True)
    library = bundle.open_library()
    inputs, expected = bundle.golden()
    outputs = library.run(inputs)
    if outputs.shape != expected.shape:
        raise BundleError(
            f"the bundle {bundle.path} is damaged: outputs {outputs.shape}, golden {expected.shape}"
        )
    error = float(np.abs(outputs - expected).max())
    agreement = float((outputs.argmax(1) == expected.argmax(1)).mean())
    limit = bundle.manifest.tolerance * max(1.0, float(np.abs(expected).max()))
    ok = bool(np.isfinite(outputs).all()) and error <= limit
    return Verification(ok, error, agreement, len(inputs))


def write_bundle(path: Path, contents: BundleContents) -> Bundle:
    """Write a bundle folder, all or nothing; the same contents give the same bytes.

    Raises:
        OutputError: the folder cannot be written.
        ToolchainError: the runner cannot be linked.
    """
    outputs = run_onnx(contents.onnx_model, contents.golden_inputs)
    header = resources.files("bignas.compile.runner").joinpath(HEADER).read_bytes()
    files = {
        RUNNER: build_runner(contents.network, contents.device, TOLERANCE),
        LIBRARY: contents.network.library,
        HEADER: header,
        ONNX: contents.onnx_model,
        GOLDEN_INPUTS: _array_bytes(contents.golden_inputs),
        GOLDEN_OUTPUTS: _array_bytes(outputs),
    }
    with atomic_folder(path) as folder:
        for name, data in files.items():
            write_atomically(folder / name, data)
        _make_executable(folder / RUNNER)
        entries = {
            name: FileEntry(sha256_of(folder / name), len(data)) for name, data in files.items()
        }
        manifest = _manifest(contents, entries)
        write_atomically(folder / MANIFEST, manifest.to_bytes())
    return Bundle(path, manifest)


def record_measured(bundle: Bundle, measured: Latency) -> Bundle:
    """Write a measured latency into the manifest of a bundle and return the bundle.

    Raises:
        OutputError: the manifest cannot be written.
    """
    manifest = dataclasses.replace(bundle.manifest, measured=measured)
    write_atomically(bundle.path / MANIFEST, manifest.to_bytes())
    return Bundle(bundle.path, manifest)


def _manifest(contents: BundleContents, files: dict[str, FileEntry]) -> Manifest:
    network = contents.network
    table = contents.kernel_latency_us or {}
    kernels = tuple(
        _kernel_entry(call, schedule, table)
        for call, schedule in zip(network.graph.calls, network.schedules, strict=True)
    )
    return Manifest(
        name=contents.name,
        bignas_version=contents.bignas_version,
        compiler=compiler_version(),
        code_hash=code_hash(),
        target=contents.device.target.to_dict(),
        device=contents.device.name,
        threads=contents.device.threads,
        space=contents.space,
        space_digest=contents.space_digest,
        architecture=dict(contents.architecture) if contents.architecture else None,
        macs=sum(workload.macs for workload in network.graph.workloads),
        weights_bytes=len(network.plan.weights),
        workspace_bytes=network.plan.workspace_bytes,
        prepared_bytes=network.plan.prepared_bytes,
        input={
            "name": INPUT_NAME,
            "shape": [1, *network.graph.input_shape],
            "dtype": "float32",
            "layout": "nchw",
            "preprocessing": dict(contents.preprocessing),
        },
        output={
            "name": OUTPUT_NAME,
            "shape": [1, network.graph.output_size],
            "dtype": "float32",
        },
        kernels=kernels,
        predicted=contents.predicted,
        measured=None,
        tolerance=TOLERANCE,
        files=files,
    )


def _kernel_entry(
    call: Call, schedule: Schedule | None, table: Mapping[Workload, float]
) -> KernelEntry:
    if isinstance(call, FallbackCall) or schedule is None:
        key = call.kernel.key if isinstance(call, FallbackCall) else call.workload.key
        return KernelEntry(key, FALLBACK, None, ScheduleSource.FALLBACK)
    source = ScheduleSource.TUNED if call.workload in table else ScheduleSource.UNTUNED
    latency_us = table.get(call.workload)
    return KernelEntry(call.workload.key, schedule.to_text(), latency_us, source)


def _make_executable(path: Path) -> None:
    """Whoever may read the file may run it."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)


def _array_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, np.float32), allow_pickle=False)
    return buffer.getvalue()


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} is not a NumPy array file") from error

"""From an architecture to the bundle that ships; `deliver_onnx.py` has the way of other models.

child -> calibrated -> ONNX, and fused kernels -> tuned kernels of the device -> linked -> bundle.
The kernels come from the child's layers, as those that are measured and predicted; the bundle is
checked against what ONNX Runtime makes of its ONNX form. Kernels that the device's table lacks are
tuned on the way; everything else is looked up. What the table of a device that cannot be measured
here lacks (another processor family, another processor) gets the best guess.
"""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bignas.compile.bundle import GOLDEN_IMAGES, Bundle, BundleContents, write_bundle
from bignas.compile.child_graph import graph_of_child
from bignas.compile.fusion import kernel_options
from bignas.compile.graph import KernelGraph
from bignas.compile.manifest import Latency
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import export_onnx
from bignas.device_db.device import Device
from bignas.device_db.errors import ModelError
from bignas.device_db.files import require_writable
from bignas.device_db.measurement import MeasurementKind
from bignas.device_db.probe import obstacle_to_measuring, probe_local
from bignas.device_db.store import Store
from bignas.device_db.workload import BYTES_PER_VALUE, Workload
from bignas.latency.in_network_table import in_network_table
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.tuned import (
    TunedKernel,
    fuse_tuned,
    schedules_or_guesses,
    tuned_kernels,
)
from bignas.latency.tuning import ensure_networks_tuned, ensure_tuned
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData, preprocess
from bignas.supernet.evaluate import extract_calibrated
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["deliver_child", "deliver_graph", "predicted_latency", "require_memory"]

COPIES = 2  # of what a run needs, while it is compiled: ONNX Runtime answers beside our kernels


def predicted_latency(predictor: LatencyPredictor, architecture: Architecture) -> Latency:
    """Return the prediction for one architecture as a manifest states it."""
    prediction = predictor.predict([architecture])
    return Latency(
        kind=MeasurementKind.PREDICTED,
        device=predictor.table.device_name,
        latency_ms=float(prediction.latency_ms[0]),
        interval_ms=(float(prediction.low_ms[0]), float(prediction.high_ms[0])),
    )


def deliver_child(
    network: Supernet,
    checkpoint: Checkpoint,
    architecture: Architecture,
    data: ImageData,
    device: Device,
    store: Store,
    cache: ObjectCache,
    out: Path,
    predictor: LatencyPredictor | None = None,
) -> Bundle:
    """Extract, calibrate, export, compile and write a child's bundle.

    Raises:
        ArchitectureError: the architecture lies outside the supernet's space.
        CheckpointError: the data have other classes than the supernet.
        OutputError: the bundle cannot be written.
        ToolchainError, MeasurementError: kernels cannot be built or tuned on this machine.
    """
    require_writable(out)
    data = checkpoint.align(data)
    space = network.space
    child = extract_calibrated(network, architecture, data)
    size = architecture.resolution
    graph = graph_of_child(child)
    require_memory(graph, device)
    images = data.validation.images[:GOLDEN_IMAGES]
    return deliver_graph(
        out,
        name=f"{space.name}-{out.name}",
        model=export_onnx(child, size, space.in_channels),
        graph=graph,
        golden=preprocess(images, size, data.mean, data.std).numpy(),
        device=device,
        store=store,
        cache=cache,
        preprocessing={
            "resize": f"bilinear, antialiased, to {size}x{size}",
            "scale": "divide by 255, subtract mean, divide by std, per channel",
            "mean": list(data.mean),
            "std": list(data.std),
            "classes": list(data.classes),
        },
        space=space,
        architecture=architecture,
        predicted=predicted_latency(predictor, architecture) if predictor else None,
    )


def require_memory(graph: KernelGraph, device: Device) -> None:
    """Make sure that a network fits into its device, and into this machine until then.

    Raises:
        ModelError: it does not.
    """
    needed = graph.memory_bytes
    here = COPIES * (needed + GOLDEN_IMAGES * math.prod(graph.input_shape) * BYTES_PER_VALUE)
    available = psutil.virtual_memory().available
    if needed > device.memory_bytes:
        raise ModelError(
            f"not enough memory: the network needs {needed / 2**20:,.0f} MiB,"
            f" device {device.name!r} has {device.memory_bytes / 2**20:,.0f}"
        )
    if here > available:
        raise ModelError(
            f"not enough memory: to compile and check the network takes {here / 2**20:,.0f} MiB,"
            f" {available / 2**20:,.0f} are available on this machine"
        )


def deliver_graph(
    out: Path,
    *,
    name: str,
    model: bytes,
    graph: KernelGraph,
    golden: np.ndarray,
    device: Device,
    store: Store,
    cache: ObjectCache,
    preprocessing: Mapping[str, Any],
    space: SearchSpace | None = None,
    architecture: Architecture | None = None,
    predicted: Latency | None = None,
) -> Bundle:
    """Find or measure the kernels of a network, link it and write its bundle.

    `model` is its ONNX form, `golden` inputs [n, channels, height, width] to check it with. Of a
    network without a space, all options to fuse its layers are measured.

    Raises:
        OutputError: the bundle cannot be written.
        ToolchainError, MeasurementError: kernels cannot be built or tuned on this machine.
    """
    kernels = _kernels(graph, device, store, cache, known_space=space is not None)
    graph = fuse_tuned(graph, kernels)
    schedules = schedules_or_guesses(graph.workloads, kernels, device)
    network = build_network(graph, schedules, cache, device.threads)
    complete = all(one in kernels for one in graph.workloads)
    within = in_network_table(store, device.name, kernels).latencies_us(graph.workloads)
    latencies_us = {one: entry.latency_us for one, entry in kernels.items()}
    latencies_us |= {
        one: us for one, us in zip(graph.workloads, within, strict=True) if us is not None
    }
    contents = BundleContents(
        name=name,
        network=network,
        onnx_model=model,
        golden_inputs=golden,
        device=device,
        preprocessing=preprocessing,
        space=space.name if space else None,
        space_digest=space.digest if space else None,
        architecture=architecture.to_dict() if architecture else None,
        kernel_latency_us=latencies_us,
        predicted=predicted if complete else None,  # it is that of tuned kernels
        bignas_version=version("bignas"),
    )
    return write_bundle(out, contents)


def _kernels(
    graph: KernelGraph, device: Device, store: Store, cache: ObjectCache, *, known_space: bool
) -> dict[Workload, TunedKernel]:
    """Return the tuned kernels; of a model met for the first time, all options are measured."""
    if obstacle_to_measuring(device, probe_local()) is not None:
        return tuned_kernels(store, device.name)
    if known_space:
        return ensure_networks_tuned(
            [graph.workloads], device, store, cache, weights_bytes=graph.weights_bytes
        )
    options = kernel_options(graph.workloads)
    return ensure_tuned(options, device, store, cache, weights_bytes=graph.weights_bytes)

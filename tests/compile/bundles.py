"""Bundles of random children and of other networks, for any target."""

import dataclasses
from pathlib import Path

import numpy as np
from torch import nn

from bignas.compile.bundle import Bundle, BundleContents, write_bundle
from bignas.compile.lower import lower_onnx
from bignas.compile.network import build_network
from bignas.compile.objects import ObjectCache
from bignas.compile.onnx_export import export_onnx
from bignas.device_db.device import Device
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.compile.networks import first_schedules, specimen


def device_of(preset: str | None, threads: int = 1) -> Device:
    """Return a device with the target of a preset; None is this machine."""
    here = dataclasses.replace(probe_local(), threads=threads)
    if preset is None:
        return here
    return dataclasses.replace(here, name=preset, target=PRESETS[preset])


def child_contents(
    architecture: Architecture,
    preset: str | None = None,
    cache: Path | None = None,
    threads: int = 1,
) -> BundleContents:
    """Return what the bundle of a child of `cifar` is written from; nothing is measured."""
    device = device_of(preset, threads)
    sample = specimen(load_space("cifar"), architecture)
    model = export_onnx(sample.child, architecture.resolution)
    graph = lower_onnx(model)
    schedules = first_schedules(graph, device.target, threads)
    network = build_network(graph, schedules, ObjectCache(device.target, cache), threads)
    images = sample.images.numpy()
    return BundleContents("child", network, model, images, device, preprocessing={})


def child_bundle(
    path: Path, architecture: Architecture, preset: str | None = None, threads: int = 1
) -> Bundle:
    """Write the bundle of a child of `cifar` with the best guess for each kernel."""
    return write_bundle(path, child_contents(architecture, preset, threads=threads))


def network_bundle(path: Path, network: nn.Module, preset: str | None = None) -> Bundle:
    """Write the bundle of any network of images [3, 12, 12]."""
    device = device_of(preset)
    model = export_onnx(network.eval(), 12)
    graph = lower_onnx(model)
    schedules = first_schedules(graph, device.target)
    built = build_network(graph, schedules, ObjectCache(device.target))
    images = np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)
    contents = BundleContents("network", built, model, images, device, preprocessing={})
    return write_bundle(path, contents)

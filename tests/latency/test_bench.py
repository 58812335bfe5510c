"""Benchmarking a bundle: its own binary, checked, in a process of its own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bignas.compile.bundle import LIBRARY, Bundle, BundleContents, write_bundle
from bignas.compile.lower import lower_onnx
from bignas.compile.onnx_export import export_onnx
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.errors import BundleError, MeasurementError
from bignas.device_db.probe import probe_local
from bignas.latency.bench import PROCESSES, bench_bundle
from bignas.latency.jobs import Settings
from tests.compile.networks import compile_graph

QUICK = Settings(rounds=12, sample_us=50.0)

CRASHING = """
#include <stddef.h>
#define SIZE(name, value) size_t name(void); size_t name(void) { return value; }
SIZE(bignas_input_floats, 192)
SIZE(bignas_output_floats, 2)
SIZE(bignas_workspace_bytes, 64)
int bignas_run(const float *in, float *out, void *memory);
int bignas_run(const float *in, float *out, void *memory) { __builtin_trap(); }
"""


@pytest.fixture(scope="module")
def contents() -> BundleContents:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    )
    model = export_onnx(network, 8)
    return BundleContents(
        name="small",
        network=compile_graph(lower_onnx(model)),
        onnx_model=model,
        golden_inputs=np.ones((2, 3, 8, 8), np.float32),
        device=probe_local(),
        preprocessing={},
    )


def test_a_bundle_is_measured(contents: BundleContents, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a bundle", contents)
    latency = bench_bundle(bundle, QUICK)
    assert latency.min_ms is not None
    assert latency.p90_ms is not None
    assert 0 < latency.min_ms <= latency.latency_ms <= latency.p90_ms
    assert latency.samples == PROCESSES * QUICK.rounds
    assert latency.kind == "measured"
    assert latency.device == "local"
    assert Bundle.load(tmp_path / "a bundle").manifest.measured is None


def test_a_damaged_bundle_is_not_measured(contents: BundleContents, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", contents)
    with (bundle.path / LIBRARY).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=LIBRARY):
        bench_bundle(bundle, QUICK)


def test_a_crashing_binary_is_an_error(contents: BundleContents, tmp_path: Path) -> None:
    library = link_shared_library({"code.c": CRASHING.encode()}, (), contents.device.target)
    network = dataclasses.replace(contents.network, library=library)
    bundle = write_bundle(tmp_path / "bundle", dataclasses.replace(contents, network=network))
    with pytest.raises(MeasurementError, match="cannot be measured: stopped with status"):
        bench_bundle(bundle, QUICK)

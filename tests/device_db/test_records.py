"""Properties of the records: canonical texts, JSON round trips, validation."""

import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bignas.device_db.device import Device, Remote
from bignas.device_db.errors import MeasurementError, ModelError, TargetError
from bignas.device_db.measurement import Environment, Measurement, Provenance, Subject
from bignas.device_db.presets import PRESETS
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Operator, Workload
from tests.device_db import samples


@given(samples.workloads())
def test_workload_key_has_an_inverse(workload: Workload) -> None:
    assert Workload.from_key(workload.key) == workload


@given(samples.workloads(), samples.workloads())
def test_workload_keys_are_unique(one: Workload, other: Workload) -> None:
    assert (one.key == other.key) == (one == other)


def test_workload_key_is_readable() -> None:
    workload = Workload(Operator.DEPTHWISE, 32, 32, 64, 64, 3, 1, 1, Activation.RELU)
    assert workload.key == "depthwise-32x32x64-k3s1p1-relu"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "depthwise",
        "depthwise-32x32x64-k3s1p1",
        "depthwise-32x32x64-k3s1p1-relu-nhwc",
        "depthwise-32x32x64-k3s1p1-tanh",
        "winograd-32x32x64-k3s1p1-relu",
        "depthwise-032x32x64-k3s1p1-relu",
        "pointwise-8x8x16to16-k1s1p0-none",
        "depthwise-32x32x64to32-k3s1p1-relu",
        "depthwise-0x32x64-k3s1p1-relu",
        "depthwise-٣x32x64-k3s1p1-relu",
        "depthwise-32x32x64-k3s1p1-relu\n",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        Workload.from_key(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"in_channels": -1},
        {"kernel": 0},
        {"stride": 0},
        {"padding": -1},
        {"padding": 3},
        {"kernel": 9, "padding": 0},
        {"operator": Operator.DEPTHWISE},
        {"operator": Operator.POINTWISE},
        {"operator": Operator.GLOBAL_POOL},
        {"operator": Operator.MAX_POOL},
        {"operator": Operator.INVERTED_BOTTLENECK},
        {"hidden_channels": 8},
        {"operator": Operator.INVERTED_BOTTLENECK, "hidden_channels": 8, "residual": True},
        {"operator": Operator.MAX_POOL, "out_channels": 3, "residual": True},
        {"height": 8.0},
        {"height": True},
        {"height": np.int64(8)},
    ],
)
def test_impossible_workloads_are_refused(changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "operator": Operator.CONV,
        "height": 8,
        "width": 8,
        "in_channels": 3,
        "out_channels": 16,
        "kernel": 3,
        "padding": 1,
    }
    Workload(**good)
    with pytest.raises(ModelError):
        Workload(**(good | changes))


@given(samples.workloads())
def test_output_size_and_macs_count_the_window_positions(workload: Workload) -> None:
    if workload.operator is Operator.GLOBAL_POOL:
        assert (workload.out_height, workload.out_width) == (1, 1)
    else:
        for size, out in (
            (workload.height, workload.out_height),
            (workload.width, workload.out_width),
        ):
            last = size + 2 * workload.padding - workload.kernel
            assert out == len(range(0, last + 1, workload.stride)) >= 1
    weighted = workload.operator in (
        Operator.CONV,
        Operator.POINTWISE,
        Operator.DEPTHWISE,
        Operator.INVERTED_BOTTLENECK,
    )
    assert (workload.macs > 0) == (workload.weight_count > 0) == weighted


RECORDS: list[tuple[st.SearchStrategy[Any], Callable[[dict[str, Any]], Any]]] = [
    (samples.workloads(), Workload.from_dict),
    (samples.TARGETS, Target.from_dict),
    (samples.DEVICES, Device.from_dict),
    (samples.PROVENANCES, Provenance.from_dict),
    (samples.ENVIRONMENTS, Environment.from_dict),
    (samples.measurements(), Measurement.from_dict),
]


@pytest.mark.parametrize(("records", "from_dict"), RECORDS)
@given(data=st.data())
def test_records_survive_json(
    records: st.SearchStrategy[Any], from_dict: Callable[[dict[str, Any]], Any], data: st.DataObject
) -> None:
    record = data.draw(records)
    assert from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize(("records", "from_dict"), RECORDS)
@given(data=st.data())
def test_missing_unknown_and_foreign_values_are_refused(
    records: st.SearchStrategy[Any], from_dict: Callable[[dict[str, Any]], Any], data: st.DataObject
) -> None:
    good = json.loads(json.dumps(data.draw(records).to_dict()))
    key = data.draw(st.sampled_from(sorted(good)))
    refused = (MeasurementError, ModelError, TargetError)
    with pytest.raises(refused, match=key):
        from_dict({name: value for name, value in good.items() if name != key})
    with pytest.raises(refused, match="surprise"):
        from_dict(good | {"surprise": 1})
    with pytest.raises(refused):
        from_dict([good])  # type: ignore[arg-type]
    with pytest.raises(refused):
        from_dict(good | {key: {"of": "another type"}})


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=50))
def test_quantiles_are_those_of_numpy(values: list[float]) -> None:
    measurement = samples.kernel(samples_ns=tuple(values))
    got = (measurement.p50_ns, measurement.p90_ns)
    np.testing.assert_allclose(got, np.percentile(values, [50, 90]), rtol=1e-12)


def test_a_failed_measurement_is_a_record_without_latency() -> None:
    failed = samples.kernel(samples_ns=(), error="compiler: register spill")
    assert not failed.ok
    with pytest.raises(MeasurementError, match="register spill"):
        _ = failed.p50_ns


@pytest.mark.parametrize(
    "changes",
    [
        {"samples_ns": ()},
        {"error": "failed"},
        {"samples_ns": (1.0, -1.0)},
        {"samples_ns": (0.0,)},
        {"samples_ns": (math.nan,)},
        {"samples_ns": (1.0, math.nan)},
        {"samples_ns": (math.inf,)},
        {"workload": None},
        {"architecture": "{}"},
        {"subject": Subject.NETWORK},
        {"subject": Subject.NETWORK, "workload": None, "space": "cifar"},
        {"subject": Subject.IN_NETWORK, "space": "cifar"},
        {"subject": Subject.IN_NETWORK, "architecture": "{}"},
        {"subject": Subject.IN_NETWORK, "workload": None, "space": "a", "architecture": "{}"},
        {"created_at": datetime(2025, 1, 1)},
    ],
)
def test_inconsistent_measurements_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError):
        samples.kernel(**changes)


@pytest.mark.parametrize(
    ("target", "lanes", "registers"),
    [
        (PRESETS["x86-64-v2"], 4, 16),
        (PRESETS["x86-64-v3"], 8, 16),
        (PRESETS["x86-64-v4"], 16, 32),
        (PRESETS["cortex-a72"], 4, 32),
        (PRESETS["riscv64-v"], 4, 32),
        (Target("x86_64-linux-gnu", "x86-64-v4", ("-avx512f",)), 8, 16),
        (Target("x86_64-linux-gnu", "x86-64-v3", ("-avx2",)), 4, 16),
        (Target("x86_64-linux-gnu", "x86-64-v2", ("+avx2",)), 8, 16),
        (Target("x86_64-linux-gnu", "x86-64-v3", ("+avx512f",)), 16, 32),
        (Target("riscv64-linux-gnu", "generic-rv64", ("+m",)), 1, 32),
        (Target("armv7l-linux-gnueabihf", "generic", ("+neon",)), 4, 16),
    ],
)
def test_vector_registers_follow_from_the_target(
    target: Target, lanes: int, registers: int
) -> None:
    assert (target.vector_lanes, target.vector_registers) == (lanes, registers)


def test_presets_are_distinct_targets() -> None:
    assert len({target.digest for target in PRESETS.values()}) == len(PRESETS)


def test_the_order_of_features_does_not_matter() -> None:
    one = Target("x86_64-linux-gnu", "x86-64-v3", ("+a", "-b"))
    other = Target("x86_64-linux-gnu", "x86-64-v3", ("-b", "+a"))
    assert one == other
    assert one.digest == other.digest
    assert one.to_tvm()["mattr"] == ["+a", "-b"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("x86_64", "generic"),
        ("", "generic"),
        ("sparc-linux-gnu", "generic"),
        ("x86_64-linux-gnu", ""),
        ("x86_64-linux-gnu", "two words"),
        ("x86_64-linux-gnu", "generic", ("avx2",)),
        ("x86_64-linux-gnu", "generic", ("+avx2", "-avx2")),
    ],
)
def test_malformed_targets_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TargetError):
        Target(*arguments)


@pytest.mark.parametrize(
    "changes",
    [{"name": ""}, {"name": "../x"}, {"name": "a b"}, {"name": ".x"}, {"threads": 0}, {"cores": 0}],
)
def test_malformed_devices_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TargetError):
        samples.device(**changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"key": "a b"}, "RPC key"),
        ({"key": ""}, "RPC key"),
        ({"own_cache_bytes": 0}, "own_cache_bytes"),
    ],
)
def test_a_remote_access_is_checked(changes: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {
        "host": "pi.local",
        "port": 9190,
        "key": "pi4",
        "own_cache_bytes": 1 << 20,
    }
    Remote(**good)
    with pytest.raises(TargetError, match=word):
        Remote(**(good | changes))


def test_how_a_device_is_reached_does_not_make_it_another_machine() -> None:
    remote = samples.device(remote=Remote("pi.local", 9190, "pi4", 1 << 20))
    assert remote.machine_digest == samples.device().machine_digest

"""Hypothesis strategies and small fakes for the records."""

from datetime import UTC, datetime

from hypothesis import strategies as st

from bignas.device_db.device import Device, Remote
from bignas.device_db.measurement import (
    Environment,
    Measurement,
    MeasurementKind,
    Provenance,
    Subject,
)
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Layout, Operator, Workload

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
SIZE = st.integers(1, 512)
SAME_CHANNELS = frozenset(Operator) - {
    Operator.CONV,
    Operator.POINTWISE,
    Operator.INVERTED_BOTTLENECK,
}


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    operator = draw(st.sampled_from(Operator))
    pool = operator in (Operator.MAX_POOL, Operator.AVERAGE_POOL)
    fused = operator is Operator.INVERTED_BOTTLENECK
    windowed = pool or fused or operator in (Operator.CONV, Operator.DEPTHWISE)
    strided = windowed or operator is Operator.POINTWISE
    in_channels = draw(SIZE)
    kernel = draw(st.integers(1, 7)) if windowed else 1
    return Workload(
        operator=operator,
        height=draw(st.integers(kernel, 320)),
        width=draw(st.integers(kernel, 320)),
        in_channels=in_channels,
        out_channels=in_channels if operator in SAME_CHANNELS else draw(SIZE),
        kernel=kernel,
        stride=draw(st.integers(1, 3)) if strided else 1,
        padding=draw(st.integers(0, kernel - 1)) if windowed else 0,
        activation=draw(st.sampled_from(Activation)),
        residual=draw(st.booleans()) if strided and not pool and not fused else False,
        input_layout=draw(st.sampled_from(Layout)),
        hidden_channels=draw(SIZE) if fused else 0,
    )


FEATURES = st.lists(st.sampled_from(["avx2", "avx512f", "neon", "v", "fullfp16"]), unique=True).map(
    tuple
)
TARGETS = st.builds(
    Target,
    triple=st.sampled_from(["x86_64-linux-gnu", "aarch64-linux-gnu", "riscv64-linux-gnu"]),
    cpu=st.sampled_from(["x86-64-v3", "cortex-a72", "generic"]),
    features=FEATURES.flatmap(
        lambda names: st.tuples(*(st.sampled_from([f"+{name}", f"-{name}"]) for name in names))
    ),
)
REMOTES = st.builds(
    Remote,
    host=st.sampled_from(["127.0.0.1", "pi.local", "fe80::1%eth0"]),
    port=st.integers(1, 65535),
    key=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    own_cache_bytes=st.integers(1, 1 << 30),
)
DEVICES = st.builds(
    Device,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    target=TARGETS,
    threads=st.integers(1, 64),
    cpu_model=TEXT,
    cores=st.integers(1, 64),
    memory_bytes=st.integers(1, 1 << 45),
    instruction_sets=st.lists(TEXT, max_size=4).map(tuple),
    remote=st.none() | REMOTES,
)
PROVENANCES = st.builds(
    Provenance, compiler=TEXT, runtime=TEXT, code_hash=TEXT, bignas_version=TEXT, host=TEXT
)
ENVIRONMENTS = st.builds(
    Environment,
    load_average=st.floats(0, 1000),
    steal_fraction=st.floats(0, 1),
    frequency_mhz=st.none() | st.floats(1, 10_000),
    context_switches=st.integers(0, 1 << 40),
    affinity=st.lists(st.integers(0, 255), max_size=4).map(tuple),
    governor=st.none() | TEXT,
)
MOMENTS = st.datetimes(
    min_value=datetime(2000, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.just(UTC),
)


@st.composite
def measurements(draw: st.DrawFn, device: str = "bench") -> Measurement:
    subject = draw(st.sampled_from(Subject))
    failed = draw(st.booleans())
    kernel, network = subject is not Subject.NETWORK, subject is not Subject.KERNEL
    return Measurement(
        device=device,
        subject=subject,
        workload=draw(workloads()) if kernel else None,
        schedule=draw(st.none() | TEXT),
        space=draw(TEXT) if network else None,
        architecture=draw(TEXT) if network else None,
        samples_ns=()
        if failed
        else tuple(draw(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=8))),
        error=draw(TEXT) if failed else None,
        kind=MeasurementKind.MEASURED,
        provenance=draw(PROVENANCES),
        environment=draw(ENVIRONMENTS),
        created_at=draw(MOMENTS),
        session=draw(TEXT),
    )


def device(name: str = "bench", cpu: str = "x86-64-v3", **changes: object) -> Device:
    values: dict[str, object] = {
        "name": name,
        "target": Target("x86_64-linux-gnu", cpu),
        "threads": 1,
        "cpu_model": "Fake",
        "cores": 2,
        "memory_bytes": 1 << 30,
        "instruction_sets": ("avx2",),
    }
    return Device(**(values | changes))  # type: ignore[arg-type]


def kernel(number: int = 0, name: str = "bench", **changes: object) -> Measurement:
    values: dict[str, object] = {
        "device": name,
        "subject": Subject.KERNEL,
        "workload": Workload(Operator.POINTWISE, 8, 8, 16, 8 + number % 100),
        "schedule": f'{{"tile":{number}}}',
        "space": None,
        "architecture": None,
        "samples_ns": (1000.0 + number, 1001.0 + number),
        "error": None,
        "kind": MeasurementKind.MEASURED,
        "provenance": Provenance("fake 1", "fake 1", "hash", "0.1.0", "host"),
        "environment": Environment(0.5, 0.0, None, 0, (0,), None),
        "created_at": datetime(2025, 1, 1, tzinfo=UTC),
        "session": "session",
    }
    return Measurement(**(values | changes))  # type: ignore[arg-type]

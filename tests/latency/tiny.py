"""A space of a few dozen small kernels, and measurements that were never taken."""

from collections.abc import Sequence
from datetime import UTC, datetime

from bignas.device_db.measurement import (
    Environment,
    Measurement,
    MeasurementKind,
    Provenance,
    Subject,
)
from bignas.device_db.workload import Activation, Workload
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import StageSpace

QUIET = Environment(0.0, 0.0, None, 0, (0,), None)

TINY = SearchSpace(
    name="tiny",
    resolutions=(12, 16),
    stem_channels=(8,),
    stem_stride=2,
    stem_activation=Activation.RELU,
    stages=(
        StageSpace((8, 16), (1, 2), (3,), (1, 2), 1, Activation.RELU, False),
        StageSpace((16, 24), (1, 2), (3, 5), (2,), 2, Activation.RELU, True),
    ),
    head_channels=(32,),
    head_activation=Activation.RELU,
    classes=4,
)


def kernel_record(
    device: str,
    workload: Workload,
    schedule: str,
    samples_ns: Sequence[float],
    code_hash: str,
    error: str | None = None,
) -> Measurement:
    """Return the record of a kernel as if it had been measured."""
    return Measurement(
        device=device,
        subject=Subject.KERNEL,
        workload=workload,
        schedule=schedule,
        space=None,
        architecture=None,
        samples_ns=tuple(samples_ns),
        error=error,
        kind=MeasurementKind.MEASURED,
        provenance=Provenance("compiler", "runtime", code_hash, "0", "host"),
        environment=QUIET,
        created_at=datetime.now(UTC),
        session="session",
    )

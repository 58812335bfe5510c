"""Measurements that take no time and depend on nothing but what is measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import Schedule
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.measurement import Measurement, MeasurementKind, Provenance, Subject
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.recording import Recorder, space_label
from bignas.latency.tuned import TunedKernel
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from tests.latency.synthetic import kernel_us
from tests.latency.tiny import QUIET, kernel_record


class FakeTuner:
    """Stands for `Tuner`: writes a record for each kernel, but for those that are to fail.

    `limit` batches are tuned, then comes KeyboardInterrupt. Each batch takes `seconds`.
    """

    failing: frozenset[Workload] = frozenset()
    limit: int | None = None
    seconds = 0.0

    def __init__(self, device: Device, store: Store, cache: ObjectCache, _: int = 0) -> None:
        self.device, self.store, self.cache = device, store, cache
        self.recorder = Recorder(device.name)
        self._batches = 0

    def __enter__(self) -> "FakeTuner":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tune(self, kernels: Sequence[Workload]) -> int:
        """Record the kernels; returns that one round was rejected."""
        return self._record(kernels)

    def check(self, kernels: Sequence[tuple[Workload, Schedule]]) -> int:
        """Record the kernels once more."""
        return self._record([workload for workload, _ in kernels])

    def _record(self, kernels: Sequence[Workload]) -> int:
        if self.limit is not None and self._batches >= self.limit:
            raise KeyboardInterrupt
        self._batches += 1
        time.sleep(self.seconds)
        text = Schedule().to_text()
        name, session = self.device.name, self.recorder.session
        records = [
            kernel_record(name, one, text, [], evidence_hash(), "it failed")
            if one in self.failing
            else kernel_record(name, one, text, [1e3 * kernel_us(one)] * 3, evidence_hash())
            for one in kernels
        ]
        self.store.add_measurements(replace(one, session=session) for one in records)
        return 1


def fake_subnets(
    space: SearchSpace,
    architectures: Sequence[Architecture],
    kernels: Mapping[Workload, TunedKernel],
    device: Device,
    cache: ObjectCache,
    recorder: Recorder,
    *,
    probed: bool = False,
) -> list[Measurement]:
    """Stands for `measure_subnets`: a subnet takes 4% more than its kernels, and so do they."""
    for one in architectures:
        assert all(work in kernels for work in workloads(space, one)), "a kernel is not tuned"
    whole = [
        Measurement(
            device=device.name,
            subject=Subject.NETWORK,
            workload=None,
            schedule=None,
            space=space_label(space),
            architecture=one.key,
            samples_ns=(1.04e3 * sum(map(kernel_us, workloads(space, one))),) * 3,
            error=None,
            kind=MeasurementKind.MEASURED,
            provenance=Provenance("compiler", "runtime", evidence_hash(), "0", "host"),
            environment=QUIET,
            created_at=datetime.now(UTC),
            session=recorder.session,
        )
        for one in architectures
    ]
    within = [
        replace(
            kernel_record(
                device.name,
                work,
                kernels[work].schedule.to_text(),
                [1.04e3 * kernel_us(work)] * 3,
                evidence_hash(),
            ),
            subject=Subject.IN_NETWORK,
            space=space_label(space),
            architecture=one.key,
            session=recorder.session,
        )
        for one in architectures
        for work in workloads(space, one)
    ]
    return whole + within if probed else whole

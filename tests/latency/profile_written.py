"""A profile of TINY whose latencies are known, written into a store without measuring."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bignas.compile.schedule import candidates
from bignas.compile.workload import workloads
from bignas.device_db.measurement import Measurement, Subject
from bignas.device_db.store import Store
from bignas.latency.evidence import evidence_hash
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.latency.recording import space_label
from bignas.latency.subnets import spread_sample
from bignas.latency.tuned import kernel_table
from bignas.supernet.architecture import Architecture
from tests.latency.tiny import QUIET, TINY, kernel_record

SUBNETS_OF_PROCESS = 10


def fill(store: Store, factors: Sequence[float]) -> None:
    """Measure all kernels of TINY, and subnets in as many processes as there are factors."""
    device = replace(store.device("local"), name="board")
    store.add_device(device)
    random = np.random.default_rng(0)
    code = evidence_hash()
    store.add_measurements(
        [
            kernel_record(
                "board", work, candidates(work, device.target)[0].to_text(), [us * 1e3], code
            )
            for work, us in zip(
                space_workloads(TINY), random.uniform(1, 9, len(space_workloads(TINY))), strict=True
            )
        ]
    )
    subnets = spread_sample(TINY, SUBNETS_OF_PROCESS * len(factors), random)
    true_ms = truth_ms(store, subnets)
    store.add_measurements(
        [
            network(one, ms * factors[number % len(factors)], number % len(factors))
            for number, (one, ms) in enumerate(zip(subnets, true_ms, strict=True))
        ]
    )


def truth_ms(store: Store, architectures: Sequence[Architecture]) -> np.ndarray:
    kernels = LatencyPredictor.of_kernels(TINY, kernel_table(store, "board"))
    return np.asarray(1.04 * kernels.kernel_sums_ms(architectures))


def network(architecture: Architecture, latency_ms: float, process: int) -> Measurement:
    record = kernel_record(
        "board", workloads(TINY, architecture)[0], "", [latency_ms * 1e6], evidence_hash()
    )
    return replace(
        record,
        subject=Subject.NETWORK,
        workload=None,
        schedule=None,
        space=space_label(TINY),
        architecture=architecture.key,
        environment=replace(QUIET, context_switches=process),
    )

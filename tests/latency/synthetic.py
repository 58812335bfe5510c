"""A made-up device: what its kernels and networks take is known exactly."""

from collections.abc import Sequence

import numpy as np

from bignas.compile.workload import workloads
from bignas.device_db.workload import Activation, Operator, Workload
from bignas.latency.kernel_model import KernelTable
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.stage import StageSpace

DEVICE = "made-up"
CODE = "code-1"

_MACS_PER_US = {Operator.CONV: 2e4, Operator.POINTWISE: 4e4, Operator.DEPTHWISE: 1.5e4}


def make_space() -> SearchSpace:
    """A space like the small built-in one."""

    def stage(*channels: int, stride: int = 2, excite: bool = False) -> StageSpace:
        return StageSpace(channels, (1, 2), (3, 5), (2, 4), stride, Activation.RELU, excite)

    return SearchSpace(
        name="made-up",
        resolutions=(24, 32),
        stem_channels=(16,),
        stem_stride=1,
        stem_activation=Activation.RELU,
        stages=(stage(16, 24), stage(24, 32, 40, excite=True), stage(40, 56, stride=1)),
        head_channels=(128, 192),
        head_activation=Activation.RELU,
    )


def draw(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


def kernel_us(work: Workload) -> float:
    """Call, arithmetic on whole vectors of 16 channels, and memory traffic."""
    vectors = -(-work.out_channels // 16)
    waste = vectors * 16 / work.out_channels
    arithmetic = work.macs * waste / _MACS_PER_US.get(work.operator, 1e4)
    moved = work.height * work.width * work.in_channels + work.weight_count
    return 0.4 + arithmetic + moved / 1e4


def all_kernels(space: SearchSpace, architectures: Sequence[Architecture]) -> list[Workload]:
    found = {work for arch in architectures for work in workloads(space, arch)}
    return sorted(found, key=lambda work: work.key)


def make_table(
    works: Sequence[Workload], share: float = 1.0, seed: int = 0, noise: float = 0.01
) -> KernelTable:
    """Measure a share of the kernels, picked at random, with relative noise."""
    rng = np.random.default_rng(seed)
    latencies = {
        work: kernel_us(work) * float(np.exp(rng.normal(0, noise)))
        for work in works
        if rng.random() < share
    }
    return KernelTable(latencies, DEVICE, CODE)


def measure_ms(
    space: SearchSpace, architectures: Sequence[Architecture], seed: int = 0, noise: float = 0.01
) -> list[float]:
    """Networks take more than their kernels: each call costs, and large ones leave the cache."""
    rng = np.random.default_rng(seed)
    measured = []
    for arch in architectures:
        works = workloads(space, arch)
        total = sum(kernel_us(work) for work in works)
        total = total * (1.03 + total / 2e4) + 0.3 * len(works)
        measured.append(total * float(np.exp(rng.normal(0, noise))) / 1e3)
    return measured

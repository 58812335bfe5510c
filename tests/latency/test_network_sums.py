"""Sums over kernels have to be what the binary really consists of, whatever was asked before."""

from collections.abc import Sequence

import numpy as np
import pytest

from bignas.compile.workload import workloads
from bignas.device_db.errors import ArchitectureError
from bignas.device_db.workload import Operator, Workload
from bignas.latency.features import KernelEstimates
from bignas.latency.network_sums import (
    SpaceSums,
    network_feature_names,
    network_features,
    part_workloads,
)
from bignas.supernet.architecture import Architecture
from bignas.supernet.spaces import load_space
from tests.latency.synthetic import draw, kernel_us, make_space

SPACE = make_space()


def estimate(works: Sequence[Workload]) -> KernelEstimates:
    """Depthwise kernels play the part of those nobody measured."""
    latencies = np.array([kernel_us(work) for work in works])
    measured = np.array([work.operator is not Operator.DEPTHWISE for work in works])
    return KernelEstimates(latencies, measured)


@pytest.mark.parametrize("name", ["cifar", "bignas"])
def test_the_parts_of_an_architecture_are_its_kernels(name: str) -> None:
    space = load_space(name)
    for arch in [space.smallest(), space.biggest(), *draw(space, 20, 0)]:
        parts = part_workloads(space, arch)
        assert len(parts) == len(space.stages) + 2
        assert tuple(work for part in parts for work in part) == workloads(space, arch)


def test_sums_over_parts_equal_sums_over_kernels() -> None:
    archs = draw(SPACE, 50, 1)
    sums = SpaceSums(SPACE, estimate, tuple)(archs)
    for index, arch in enumerate(archs):
        works = workloads(SPACE, arch)
        depthwise = [work for work in works if work.operator is Operator.DEPTHWISE]
        total = sum(map(kernel_us, works))
        assert sums.latency_us[index] == pytest.approx(total)
        assert sums.estimated_us[index] == pytest.approx(sum(map(kernel_us, depthwise)))
        assert sums.kernels[index] == len(works)
        assert sums.macs[index] == SPACE.macs(arch)
        assert sums.weight_bytes[index] == 4 * sum(work.weight_count for work in works)
        assert sums.resolution[index] == arch.resolution
    assert sums.operator_us.sum(axis=1) == pytest.approx(sums.latency_us)
    assert sums.part_us.sum(axis=1) == pytest.approx(sums.latency_us)
    assert (sums.working_set_bytes < sums.traffic_bytes).all()


def test_what_was_asked_before_changes_nothing() -> None:
    archs = draw(SPACE, 30, 2)
    warm = SpaceSums(SPACE, estimate, tuple)
    one_by_one = [network_features(warm([arch]))[0] for arch in archs]
    assert np.array_equal(network_features(SpaceSums(SPACE, estimate, tuple)(archs)), one_by_one)
    assert np.array_equal(network_features(warm(archs)), one_by_one)


@pytest.mark.parametrize("name", ["cifar", "bignas"])
def test_many_at_once_get_what_each_gets_alone(name: str) -> None:
    """Every part of the codes matters: architectures that differ in one option are told apart."""
    space = load_space(name)
    rng = np.random.default_rng(7)
    archs = [space.smallest(), space.biggest(), *(space.sample(rng) for _ in range(20))]
    archs += [space.mutate(one, rng, 0.0) for one in archs]
    together = network_features(SpaceSums(space, estimate, tuple)(archs))
    for one, row in zip(archs, together, strict=True):
        assert np.array_equal(network_features(SpaceSums(space, estimate, tuple)([one]))[0], row)


def test_options_beyond_the_space_are_refused_rather_than_taken_for_others() -> None:
    big = SPACE.biggest()
    for foreign in (
        Architecture(999, big.stem_channels, big.stages, big.head_channels),
        Architecture(big.resolution, big.stem_channels, big.stages, 10**4),
    ):
        with pytest.raises(ArchitectureError, match="is not in space"):
            SpaceSums(SPACE, estimate, tuple)([big, foreign])


def test_no_architectures_give_no_rows() -> None:
    sums = SpaceSums(SPACE, estimate, tuple)([])
    assert network_features(sums).shape == (0, len(network_feature_names(SPACE)))


def test_network_features_have_names_and_are_finite() -> None:
    features = network_features(SpaceSums(SPACE, estimate, tuple)(draw(SPACE, 20, 3)))
    names = network_feature_names(SPACE)
    assert features.shape == (20, len(names))
    assert len(set(names)) == len(names)
    assert np.isfinite(features).all()
    shares = features[:, [names.index(f"share_of_{operator}") for operator in Operator]]
    assert shares.sum(axis=1) == pytest.approx(1)

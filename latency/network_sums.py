"""A network as sums over its kernels, and what its latency depends on, as numbers.

Decisions
- A kernel's share of the network depends on nothing that stands elsewhere in it, but on how many
  bytes of weights the whole network reads, and that is interpolated between a few sizes. So an
  architecture is its stem, its stages and its tail; the sums of each such part are computed once,
  and a hundred thousand architectures are as many look-ups and some additions.
- Every column has a name that can be read aloud, for the report and for the one who debugs it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.compile.workload import workload_of
from bignas.device_db.workload import Layout, Operator, Workload
from bignas.latency.features import KernelEstimates, traffic_bytes, weight_bytes
from bignas.latency.in_network_model import InNetworkModel
from bignas.supernet.architecture import Architecture
from bignas.supernet.layer import Layer
from bignas.supernet.space import SearchSpace

__all__ = [
    "NetworkSums",
    "SpaceSums",
    "network_feature_names",
    "network_features",
    "part_workloads",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_OPERATORS = tuple(Operator)


@dataclass(frozen=True, eq=False)
class NetworkSums:
    """Sums over the kernels of n architectures; every array has n rows."""

    latency_us: Array  # sum of the kernels, each measured alone
    within_us: Array  # sum of the kernels, as they run in this network
    estimated_us: Array  # part of it that comes from kernels nobody measured
    operator_us: Array  # [n, operators]
    part_us: Array  # [n, stem + stages + tail]
    kernels: Array  # how many
    macs: Array
    weight_bytes: Array
    traffic_bytes: Array  # read and written by all kernels
    working_set_bytes: Array  # of the largest kernel
    resolution: Array

    @property
    def estimated_share(self) -> Array:
        """Share of the kernel sum, from 0 to 1, that is estimated rather than measured."""
        return self.estimated_us / self.latency_us


def network_feature_names(space: SearchSpace) -> tuple[str, ...]:
    """The columns of `network_features`."""
    stages = [f"share_of_stage_{index}" for index in range(len(space.stages))]
    return (
        "log_kernel_sum_us",
        "kernels",
        "kernels_per_us",
        "log_macs",
        "log_weight_bytes",
        "log_traffic_bytes",
        "log_working_set_bytes",
        "weight_bytes_per_us",
        "traffic_bytes_per_us",
        "log_within_per_alone",
        "resolution",
        *(f"share_of_{operator}" for operator in _OPERATORS),
        "share_of_stem",
        *stages,
        "share_of_tail",
    )


def network_features(sums: NetworkSums) -> Array:
    """Rows [n, len(network_feature_names(space))]."""
    total = sums.latency_us
    columns = [
        np.log(total),
        sums.kernels,
        sums.kernels / total,
        np.log(sums.macs),
        np.log(sums.weight_bytes),
        np.log(sums.traffic_bytes),
        np.log(sums.working_set_bytes),
        sums.weight_bytes / total,
        sums.traffic_bytes / total,
        np.log(sums.within_us / total),
        sums.resolution,
    ]
    return np.column_stack(
        [*columns, sums.operator_us / total[:, None], sums.part_us / total[:, None]]
    )


# Columns of a part's sums; the operators' times follow.
_TOTAL, _ESTIMATED, _KERNELS, _MACS, _WEIGHTS, _TRAFFIC, _WORKING_SET, _READ = range(8)
_FIRST_OPERATOR = 8


class SpaceSums:
    """Computes `NetworkSums` of architectures of one space; remembers the sums of their parts.

    `estimate` gives the latencies of kernels, `choose` the kernels that layers are built from; both
    have to be pure functions. `within` tells what kernels take in networks; without it that is what
    they take alone. The memory is only a cache: what it returns does not depend on what it was
    asked before.
    """

    def __init__(
        self,
        space: SearchSpace,
        estimate: Callable[[Sequence[Workload]], KernelEstimates],
        choose: Callable[[Sequence[Workload]], tuple[Workload, ...]],
        within: InNetworkModel | None = None,
    ) -> None:
        self._space = space
        self._within = within or InNetworkModel()
        self._choose = choose
        self._estimate = estimate
        self._parts = _part_codes(space)
        self._sums = np.zeros((0, _FIRST_OPERATOR + len(_OPERATORS)))
        self._sized_us = np.zeros((0, len(self._within.sizes)))  # in networks of these sizes

    def __call__(self, architectures: Sequence[Architecture]) -> NetworkSums:
        """Sum up the kernels of each architecture; they have to lie in the space.

        Raises ArchitectureError for an option larger than any of the space.
        """
        values = self._space.option_values(architectures)
        self._require_in_range(values, architectures)
        codes = [part.codes(values) for part in self._parts]
        self._learn(architectures, codes)
        rows = [part.rows(wanted) for part, wanted in zip(self._parts, codes, strict=True)]
        sums = np.zeros((len(values), self._sums.shape[1]))
        part_us = np.zeros((len(values), len(self._parts)))
        working_set = np.zeros(len(values))
        for index, places in enumerate(rows):
            found = self._sums[places]
            sums += found
            part_us[:, index] = found[:, _TOTAL]
            np.maximum(working_set, found[:, _WORKING_SET], out=working_set)
        return NetworkSums(
            latency_us=sums[:, _TOTAL],
            within_us=self._within_us(rows, sums[:, _READ]),
            estimated_us=sums[:, _ESTIMATED],
            operator_us=sums[:, _FIRST_OPERATOR:],
            part_us=part_us,
            kernels=sums[:, _KERNELS],
            macs=sums[:, _MACS],
            weight_bytes=sums[:, _WEIGHTS],
            traffic_bytes=sums[:, _TRAFFIC],
            working_set_bytes=working_set,
            resolution=values[:, 0].astype(np.float64),
        )

    def _within_us(self, rows: Sequence[NDArray[np.intp]], read_bytes: Array) -> Array:
        """Sum up what the parts at these rows take in networks that read so many bytes."""
        lower, upper, share = self._within.between(read_bytes)
        within_us = np.zeros(len(read_bytes))
        for places in rows:
            within_us += (1 - share) * self._sized_us[places, lower]
            within_us += share * self._sized_us[places, upper]
        return within_us

    def _require_in_range(self, values: Integers, architectures: Sequence[Architecture]) -> None:
        """Larger options would be taken for others."""
        largest = self._space.option_values([self._space.biggest()])
        for index in np.flatnonzero((values > largest).any(axis=1))[:1].tolist():
            self._space.check(architectures[index])

    def _learn(self, architectures: Sequence[Architecture], codes: Sequence[Integers]) -> None:
        """Compute the sums of all parts not met before, in one batch."""
        missing: list[tuple[int, int, tuple[Workload, ...]]] = []  # part, code, kernels
        for index, (part, wanted) in enumerate(zip(self._parts, codes, strict=True)):
            new, first = part.unknown(wanted)
            for code, place in zip(new.tolist(), first.tolist(), strict=True):
                layers = part_workloads(self._space, architectures[place])[index]
                missing.append((index, code, self._choose(layers)))
        if not missing:
            return
        distinct = list(dict.fromkeys(work for _, _, kernels in missing for work in kernels))
        estimates = self._estimate(distinct)
        places = {work: place for place, work in enumerate(distinct)}
        values = _kernel_sums(distinct, estimates, self._within.read_bytes(distinct))
        sized_us = self._within.latencies_us(distinct, estimates.latency_us)
        new_rows: list[Array] = []
        new_sized_us: list[Array] = []
        for _, _, kernels in missing:
            of_kernels = [places[work] for work in kernels]
            summed = values[of_kernels].sum(axis=0)
            summed[_WORKING_SET] = values[of_kernels, _WORKING_SET].max()
            new_rows.append(summed)
            new_sized_us.append(sized_us[of_kernels].sum(axis=0))
        rows = np.arange(len(missing)) + len(self._sums)
        owners = np.array([index for index, _, _ in missing])
        learned = np.array([code for _, code, _ in missing])
        self._sums = np.concatenate([self._sums, np.array(new_rows)])
        self._sized_us = np.concatenate([self._sized_us, np.array(new_sized_us)])
        for index, part in enumerate(self._parts):
            part.add(learned[owners == index], rows[owners == index])


class _PartCodes:
    """Numbers for the variants of one part (stem, stage or tail), and the rows of their sums.

    A variant is given by some columns of `SearchSpace.option_values`; its code is unique as long as
    these are at most `largest`, which never overflows within the limits of search spaces.
    """

    def __init__(self, columns: Sequence[int], largest: Integers) -> None:
        sizes = (largest[list(columns)] + 1).tolist()
        factors = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
        self._columns = list(columns)
        self._factors = np.array(factors, dtype=np.int64)
        self._known = np.zeros(0, dtype=np.int64)  # codes, ascending
        self._rows = np.zeros(0, dtype=np.intp)  # of each of them

    def codes(self, values: Integers) -> Integers:
        """Return the code of each row of values, [n, dimensions] -> [n]."""
        return values[:, self._columns] @ self._factors

    def unknown(self, codes: Integers) -> tuple[Integers, NDArray[np.intp]]:
        """Return codes without a row, each once, and where each of them stands first."""
        new = np.flatnonzero(~np.isin(codes, self._known))
        found, first = np.unique(codes[new], return_index=True)
        return found, new[first]

    def add(self, codes: Integers, rows: NDArray[np.intp]) -> None:
        """Remember the rows of new codes."""
        known = np.concatenate([self._known, codes])
        order = np.argsort(known)
        self._known, self._rows = known[order], np.concatenate([self._rows, rows])[order]

    def rows(self, codes: Integers) -> NDArray[np.intp]:
        """Return the rows of known codes."""
        return self._rows[np.searchsorted(self._known, codes)]


def _part_codes(space: SearchSpace) -> list[_PartCodes]:
    """Return the codes of the stem, of each stage and of the tail."""
    largest = space.option_values([space.biggest()])[0]
    resolution, channels, column = 0, 1, 2
    parts = [_PartCodes((resolution, channels), largest)]
    for _ in space.stages:
        parts.append(_PartCodes((resolution, channels, *range(column, column + 4)), largest))
        channels, column = column, column + 4
    return [*parts, _PartCodes((resolution, channels, column), largest)]


def part_workloads(space: SearchSpace, architecture: Architecture) -> list[tuple[Workload, ...]]:
    """Return the layers of the stem, of each stage and of the tail of an architecture."""
    layers = space.layers(architecture)
    lengths = [1]
    channels = architecture.stem_channels
    height = -(-architecture.resolution // space.stem_stride)
    for index, choice in enumerate(architecture.stages):
        lengths.append(len(space.stage_layers(index, channels, height, choice)))
        channels = choice.channels
        height = -(-height // space.stages[index].stride)
    lengths.append(len(layers) - sum(lengths))
    parts = []
    start = 0
    for index, length in enumerate(lengths):
        layout = Layout.NCHW if index == 0 else Layout.NHWC
        parts.append(_workloads(layers[start : start + length], layout))
        start += length
    return parts


def _workloads(layers: Sequence[Layer], layout: Layout) -> tuple[Workload, ...]:
    return tuple(workload_of(layer, layout) for layer in layers)


def _kernel_sums(
    workloads: Sequence[Workload], estimates: KernelEstimates, read_bytes: Array
) -> Array:
    """One row a kernel, in the columns of a part's sums."""
    rows = np.zeros((len(workloads), _FIRST_OPERATOR + len(_OPERATORS)))
    rows[:, _TOTAL] = estimates.latency_us
    rows[:, _ESTIMATED] = np.where(estimates.measured, 0.0, estimates.latency_us)
    rows[:, _KERNELS] = 1
    rows[:, _READ] = read_bytes
    for row, work in zip(rows, workloads, strict=True):
        row[_MACS] = work.macs
        row[_WEIGHTS] = weight_bytes(work)
        row[_TRAFFIC] = row[_WORKING_SET] = traffic_bytes(work)
        row[_FIRST_OPERATOR + _OPERATORS.index(work.operator)] = row[_TOTAL]
    return rows

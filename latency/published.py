"""Latency tables that others published, as values: architectures as choices, or as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.published_costs import SKIPPED, option_costs
from bignas.latency.transfer_prior import TransferProblem

__all__ = ["PublishedTable", "TransformerTable"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

SEGMENTS = 5  # runs of positions whose operators may share a factor


@dataclass(frozen=True, eq=False)
class PublishedTable:
    """Architectures as choices, and their latencies on devices.

    choices: [n, positions], the option taken at each position. options: for each position the names
    of its options. latency_ms: [devices, n].
    """

    choices: Integers
    options: tuple[tuple[str, ...], ...]
    devices: tuple[str, ...]
    latency_ms: Array

    def latencies(self, devices: Sequence[str]) -> Array:
        """Rows [len(devices), n] of these devices. Raises InputError for an unknown one."""
        for name in devices:
            if name not in self.devices:
                raise InputError(
                    f"the table has no device {name!r}; it has {', '.join(self.devices)}"
                )
        rows = [self.devices.index(name) for name in devices]
        return self.latency_ms[np.array(rows, dtype=np.intp)]

    def one_hot(self) -> Array:
        """One column for each option of each position, [n, columns]."""
        return np.column_stack(
            [
                np.eye(len(names))[self.choices[:, position]]
                for position, names in enumerate(self.options)
            ]
        )

    def option_counts(self) -> Array:
        """How often each option name is taken, [n, distinct names]."""
        return self.one_hot() @ np.eye(self._name_numbers().max() + 1)[self._name_numbers()]

    def macs(self) -> Array | None:
        """Multiply-accumulates [n] where the space is a known one, up to a constant; else None."""
        costs = option_costs(self.options)
        return None if costs is None else self.one_hot() @ costs[:, 0]

    def estimates(self) -> Array:
        """Physical quantities [m, n] that latencies may be proportional to.

        Layers, and in a known space MACs and what they consist of.
        """
        costs = option_costs(self.options)
        if costs is None:
            return self.layers()[None]
        return np.vstack([(self.one_hot() @ costs).T, self.layers()])

    def layers(self) -> Array:
        """How many positions are not skipped, [n]."""
        kept = [not SKIPPED.search(name) for names in self.options for name in names]
        return self.one_hot() @ np.array(kept, dtype=np.float64)

    def problem(self, sources: Sequence[str]) -> TransferProblem:
        """The transfer from these devices to one that is not in the table, or not among them."""
        return TransferProblem(
            features=self.one_hot(),
            partitions=self._partitions(),
            sources_ms=self.latencies(sources),
            estimates=self.estimates(),
        )

    def _name_numbers(self) -> Integers:
        names = [name for names in self.options for name in names]
        return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)

    def _partitions(self) -> tuple[Integers, ...]:
        """By option name, by option name and segment, by position."""
        positions = np.repeat(np.arange(len(self.options)), [len(names) for names in self.options])
        segments = positions * min(SEGMENTS, len(self.options)) // len(self.options)
        names = self._name_numbers()
        return names, names * SEGMENTS + segments, positions


@dataclass(frozen=True, eq=False)
class TransformerTable:
    """Transformers as named numbers [n, columns], and the latency of encoder plus decoder [n]."""

    columns: tuple[str, ...]
    features: Array
    latency_ms: Array

    def column(self, name: str) -> Array:
        """One column [n]. Raises InputError for an unknown one."""
        if name not in self.columns:
            raise InputError(f"the column {name!r} is missing; there is {', '.join(self.columns)}")
        return self.features[:, self.columns.index(name)]

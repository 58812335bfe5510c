"""Latency tables that others published, read with suspicion.

Two formats. NPZ: `devices` [s], `latency_ms` [s, n], and architectures as `arch` [n, positions],
indices into `op_names`, or as further integer tables of n rows (once-for-all: `kernel`, `expand`,
`depth`, `resolution`). CSV of the Hardware-Aware Transformers repository: columns of numbers, of
which `latency_mean_encoder` and `latency_mean_decoder` add up to the latency.

Whatever is wrong with a table is an InputError with one line that names the file.
"""

import csv
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.transfer_prior import TransferProblem

__all__ = ["PublishedTable", "TransformerTable", "load_table", "load_transformers"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

LONGEST_MS = 1e6  # a quarter of an hour for one network
SPREAD = 1e6  # between the latencies of one device
UNIT_RATIO = 300.0  # two groups of latencies this far apart have different units
SEGMENTS = 5  # runs of positions whose operators may share a factor
FEWEST = 2  # architectures


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
        costs = _option_costs(self.options)
        return None if costs is None else self.one_hot() @ costs[:, 0]

    def estimates(self) -> Array:
        """Physical quantities [m, n] that latencies may be proportional to.

        Layers, and in a known space MACs and what they consist of.
        """
        costs = _option_costs(self.options)
        if costs is None:
            return self.layers()[None]
        return np.vstack([(self.one_hot() @ costs).T, self.layers()])

    def layers(self) -> Array:
        """How many positions are not skipped, [n]."""
        kept = [not _SKIPPED.search(name) for names in self.options for name in names]
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


# --- known spaces ---------------------------------------------------------------------------------

_SKIPPED = re.compile(r"none|skip|zero|identity", re.IGNORECASE)
_BLOCK = re.compile(r"k(\d+)_e(\d+)(?:_g(\d+))?")
_CONV = re.compile(r"conv_(\d+)x\1")
# Channels, blocks and stride of each stage (Wu et al., "FBNet", CVPR 2019, table 1).
_FBNET_STAGES = (
    (16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1),
)  # fmt: skip
_FBNET_STEM = (16, 112)  # channels and height
_CELL_EDGES = 6  # of NAS-Bench-201 (Dong and Yang, ICLR 2020)


def _option_costs(options: tuple[tuple[str, ...], ...]) -> Array | None:
    """What every option of every position costs [columns, quantities], or None for unknown spaces.

    MACs come first.
    """
    blocks = sum(count for _, count, _ in _FBNET_STAGES)
    names = {name for one in options for name in one}
    working = {name for name in names if not _SKIPPED.search(name)}
    if len(options) == blocks and all(_BLOCK.fullmatch(name) for name in working):
        return _fbnet_costs(options)
    if len(options) == _CELL_EDGES and any(_CONV.search(name) for name in working):
        # all cells have the same MACs, and so all positions
        return np.array([[_conv_macs(name)] for one in options for name in one])
    return None


def _conv_macs(name: str) -> float:
    found = _CONV.search(name)
    return float(found[1]) ** 2 if found else 0.0


def _fbnet_costs(options: tuple[tuple[str, ...], ...]) -> Array:
    channels, height = _FBNET_STEM
    costs: list[tuple[float, ...]] = []
    remaining = iter(options)
    for width, count, first_stride in _FBNET_STAGES:
        for block in range(count):
            out_height = height // first_stride if block == 0 else height
            costs += [
                _block_costs(name, channels, width, height, out_height) for name in next(remaining)
            ]
            channels, height = width, out_height
    return np.array(costs)


def _block_costs(
    name: str, channels: int, width: int, height: int, out_height: int
) -> tuple[float, ...]:
    """MACs, those of pointwise and of depthwise convolutions, values moved, and weights.

    Of an inverted residual block, or of a pointwise convolution where a skip changes shape.
    """
    ends = channels * height**2 + width * out_height**2
    found = _BLOCK.fullmatch(name)
    if found is None:
        if channels == width and height == out_height:
            return (0.0,) * 5
        pointwise = float(channels * width * out_height**2)
        return pointwise, pointwise, 0.0, float(ends), float(channels * width)
    kernel, expand, groups = int(found[1]), int(found[2]), int(found[3] or 1)
    inner = channels * expand
    pointwise = ends * inner / groups
    depthwise = float(kernel**2 * inner * out_height**2)
    moved = float(ends + 2 * inner * (height**2 + out_height**2))
    weights = (channels + width) * inner / groups + kernel**2 * inner
    return pointwise + depthwise, pointwise, depthwise, moved, weights


# --- reading NPZ ----------------------------------------------------------------------------------

_DEVICES, _LATENCY, _ARCH, _OPERATORS = "devices", "latency_ms", "arch", "op_names"


def load_table(path: Path) -> PublishedTable:
    """Read an NPZ file. Raises InputError."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is not a table in NPZ format, or a damaged one") from error
    try:
        return _table(arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _table(arrays: dict[str, NDArray[np.generic]]) -> PublishedTable:
    for name in (_DEVICES, _LATENCY):
        if name not in arrays:
            raise InputError(f"the array {name!r} is missing; it has {', '.join(arrays) or 'none'}")
    devices = tuple(str(name) for name in arrays[_DEVICES].ravel())
    latency_ms = arrays[_LATENCY]
    if not np.issubdtype(latency_ms.dtype, np.number):
        raise InputError(f"{_LATENCY!r} holds {latency_ms.dtype}, not numbers")
    if latency_ms.ndim != 2 or latency_ms.shape[0] != len(devices) or latency_ms.shape[1] < FEWEST:
        raise InputError(
            f"{_LATENCY!r} has shape {latency_ms.shape}; expected"
            f" [{len(devices)} devices, {FEWEST} or more architectures]"
        )
    repeated = sorted({name for name in devices if devices.count(name) > 1})
    if repeated:
        raise InputError(f"device {repeated[0]!r} stands in it twice; each may only once")
    values = latency_ms.astype(np.float64)
    for name, row in zip(devices, values, strict=True):
        _check_latencies(row, f"device {name!r}")
    choices, options = _choices(arrays, values.shape[1])
    return PublishedTable(choices, options, devices, values)


def _check_latencies(values: Array, owner: str) -> None:
    """Raise InputError for values that no device can have. Whole rows are refused, not repaired."""
    if np.isnan(values).any():
        raise InputError(f"{owner} has {int(np.isnan(values).sum())} missing latencies (NaN)")
    if not np.isfinite(values).all():
        raise InputError(f"{owner} has infinite latencies")
    if (values <= 0).any():
        raise InputError(f"{owner} has latencies that are not positive, such as {values.min():g}")
    if values.max() > LONGEST_MS:
        raise InputError(f"{owner} has a latency of {values.max():g} ms; are these milliseconds?")
    if values.max() > SPREAD * values.min():
        raise InputError(
            f"{owner} has latencies from {values.min():g} to {values.max():g} ms, an absurd range"
        )
    ordered = np.sort(values)
    tenth = max(1, len(ordered) // 10)
    inner = ordered[tenth - 1 : len(ordered) - tenth + 1]
    if len(inner) > 1 and (inner[1:] / inner[:-1]).max() > UNIT_RATIO:
        raise InputError(
            f"{owner} has two groups of latencies more than {UNIT_RATIO:g} times apart;"
            " are the units mixed?"
        )


def _choices(
    arrays: dict[str, NDArray[np.generic]], count: int
) -> tuple[Integers, tuple[tuple[str, ...], ...]]:
    """Read architectures as choices and the names of the options at each position."""
    if _ARCH in arrays:
        if _OPERATORS not in arrays:
            raise InputError(f"{_ARCH!r} needs {_OPERATORS!r}, which is missing")
        choices = _integers(arrays, _ARCH, count)
        names = tuple(str(name) for name in arrays[_OPERATORS].ravel())
        if len(set(names)) < len(names):
            raise InputError(f"{_OPERATORS!r} holds a name twice")
        if (choices < 0).any() or (choices >= len(names)).any():
            raise InputError(f"{_ARCH!r} holds indices outside the {len(names)} {_OPERATORS!r}")
        return choices, (names,) * choices.shape[1]
    tables = [name for name in arrays if name not in (_DEVICES, _LATENCY, _OPERATORS)]
    if not tables:
        raise InputError(f"the architectures are missing: neither {_ARCH!r} nor other tables")
    columns, options = [], []
    for name in tables:
        for column in _integers(arrays, name, count).T:
            values, positions = np.unique(column, return_inverse=True)
            columns.append(positions.astype(np.int64))
            options.append(tuple(f"{name}_{value}" for value in values))
    return np.column_stack(columns), tuple(options)


def _integers(arrays: dict[str, NDArray[np.generic]], name: str, count: int) -> Integers:
    values = arrays[name]
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{name!r} holds {values.dtype}, not integers")
    if values.ndim not in (1, 2) or len(values) != count or 0 in values.shape:
        raise InputError(f"{name!r} has shape {values.shape}; expected {count} rows")
    return values.reshape(count, -1).astype(np.int64)


# --- reading CSV ----------------------------------------------------------------------------------

_ENCODER_MS, _DECODER_MS = "latency_mean_encoder", "latency_mean_decoder"


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


def load_transformers(path: Path) -> TransformerTable:
    """Read a CSV file. Raises InputError."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream))
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file") from error
    try:
        return _transformers(lines)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _transformers(lines: list[list[str]]) -> TransformerTable:
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    for name in (_ENCODER_MS, _DECODER_MS):
        if name not in header:
            raise InputError(f"the column {name!r} is missing")
    if len(set(header)) < len(header):
        raise InputError("a column stands in it twice")
    if len(rows) < FEWEST:
        raise InputError("there are no rows")
    values = np.array([_numbers(row, len(header), line) for line, row in enumerate(rows, 2)])
    latencies = values[:, [header.index(_ENCODER_MS), header.index(_DECODER_MS)]]
    _check_latencies(latencies[:, 0], "the encoder")
    _check_latencies(latencies[:, 1], "the decoder")
    kept = [index for index, name in enumerate(header) if not name.startswith("latency")]
    if not np.isfinite(values[:, kept]).all():
        raise InputError("there are values that are missing or not finite")
    return TransformerTable(
        tuple(header[index] for index in kept), values[:, kept], latencies.sum(axis=1)
    )


def _numbers(row: list[str], width: int, line: int) -> list[float]:
    if len(row) != width:
        raise InputError(f"line {line} has {len(row)} values, expected {width}")
    try:
        return [float(value) if value else float("nan") for value in row]
    except ValueError as error:
        raise InputError(f"line {line}: {error}") from error

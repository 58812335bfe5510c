"""Files of latency tables that others published, read with suspicion.

Two formats. NPZ: `devices` [s], `latency_ms` [s, n], and architectures as `arch` [n, positions],
indices into `op_names`, or as further integer tables of n rows (once-for-all: `kernel`, `expand`,
`depth`, `resolution`). CSV of the Hardware-Aware Transformers repository: columns of numbers, of
which `latency_mean_encoder` and `latency_mean_decoder` add up to the latency.

Whatever is wrong with a table is an InputError with one line that names the file.
"""

import csv
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError
from bignas.latency.published import PublishedTable, TransformerTable

__all__ = ["load_table", "load_transformers"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

LONGEST_MS = 1e6  # a quarter of an hour for one network
SPREAD = 1e6  # between the latencies of one device
UNIT_RATIO = 300.0  # two groups of latencies this far apart have different units
FEWEST = 2  # architectures

_ENCODER_MS, _DECODER_MS = "latency_mean_encoder", "latency_mean_decoder"
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

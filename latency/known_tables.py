"""Kernel tables of known devices: those that ship with bignas, and those in the store.

A Parquet file with one row a kernel: what was measured, on which device. The kernels' code may be
older than the present one: as sources for another device only the proportions count.
"""

import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from bignas.device_db.device import Device
from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.files import write_atomically
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.kernel_model import KernelTable
from bignas.latency.tuned import kernel_table

__all__ = ["known_tables", "read_tables", "shipped_tables", "write_tables"]

SHIPPED = "known_kernels.parquet"
SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("code_hash", pa.string()),
        ("machine_digest", pa.string()),
        ("runtime", pa.string()),
        ("workload", pa.string()),
        ("latency_us", pa.float64()),
    ],
    metadata={"format": "bignas kernel tables", "version": "1"},
)


def known_tables(store: Store, device: Device) -> list[KernelTable]:
    """Return the tables of all other devices: of the store, then those that ship.

    Shipped tables of a machine and target that the store has itself are left out.
    """
    others = [one for one in store.devices() if one.name != device.name]
    tables = [table for table in (kernel_table(store, one.name) for one in others) if len(table)]
    met = {device.machine_digest, *(one.machine_digest for one in tables)}
    return [*tables, *(one for one in shipped_tables() if one.machine_digest not in met)]


def shipped_tables() -> list[KernelTable]:
    """Return the tables that ship with bignas."""
    return _parsed(resources.files("bignas.latency").joinpath(SHIPPED).read_bytes(), SHIPPED)


def read_tables(path: Path) -> list[KernelTable]:
    """Return the tables in a Parquet file.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def write_tables(path: Path, tables: Sequence[KernelTable]) -> None:
    """Write tables to a Parquet file. Raises OutputError."""
    rows = [
        {
            "device": one.device_name,
            "code_hash": one.code_hash,
            "machine_digest": one.machine_digest,
            "runtime": one.runtime,
            "workload": workload.key,
            "latency_us": latency_us,
        }
        for one in tables
        for workload, latency_us in one.items()
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def _parsed(data: bytes, name: str) -> list[KernelTable]:
    damaged = f"{name} is no Parquet file of kernel tables, or a damaged one"
    try:
        content = parquet.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{damaged}: {error}") from error
    if content.schema.names != SCHEMA.names:
        raise InputError(f"{damaged}: it has the columns {', '.join(content.schema.names)}")
    found: dict[tuple[str, ...], dict[Workload, float]] = {}
    try:
        for row in content.to_pylist():
            key = tuple(row[name] for name in SCHEMA.names[:4])
            kernels = found.setdefault(key, {})
            kernels[Workload.from_key(row["workload"])] = float(row["latency_us"])
        return [
            KernelTable(kernels, str(device), str(code_hash), machine_digest, runtime)
            for (device, code_hash, machine_digest, runtime), kernels in found.items()
        ]
    except (TypeError, ValueError, BignasError) as error:
        raise InputError(f"{damaged}: {error}") from error

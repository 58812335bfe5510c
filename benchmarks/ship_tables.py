"""Writes the kernel tables that ship with bignas: what new devices are compared with.

    python benchmarks/ship_tables.py --devices local,v3,v2 --out latency/known_kernels.parquet

The devices have been profiled (`benchmarks/own_devices.py`); BIGNAS_DB names their store. Each gets
a name that tells its target, threads and processor.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command import names, run

from bignas.device_db.errors import InputError
from bignas.device_db.store import Store
from bignas.latency.known_tables import write_tables
from bignas.latency.tuned import kernel_table


def ship(devices: Sequence[str], out: Path) -> dict[str, Any]:
    """Write the tables; return how many kernels each has."""
    tables = []
    with Store.open() as store:
        for name in devices:
            device, table = store.device(name), kernel_table(store, name)
            if not len(table):
                raise InputError(f"nothing is measured on {name!r}; run `bignas profile` first")
            threads = "" if device.threads == 1 else f", {device.threads} threads"
            title = f"{device.target.cpu}{threads} on {device.cpu_model}"
            tables.append(replace(table, device_name=title))
    write_tables(out, tables)
    return {one.device_name: len(one) for one in tables}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=names, required=True, metavar="A,B,...")
    parser.add_argument("--out", type=Path, default=Path("latency/known_kernels.parquet"))
    options = parser.parse_args(arguments)
    return run(lambda: ship(options.devices, options.out), as_json=False, results=None)


if __name__ == "__main__":
    sys.exit(main())

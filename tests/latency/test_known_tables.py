"""Tables of known devices: in a file, in the store, with the package."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from bignas.device_db.errors import InputError
from bignas.device_db.store import Store
from bignas.latency.kernel_model import KernelTable
from bignas.latency.known_tables import known_tables, read_tables, shipped_tables, write_tables
from bignas.latency.profile import space_workloads
from bignas.supernet.spaces import load_space
from tests.latency.synthetic import all_kernels, draw, make_space, make_table

KERNELS = all_kernels(make_space(), draw(make_space(), 50, 0))


def test_tables_survive_their_file(tmp_path: Path) -> None:
    tables = [
        make_table(KERNELS),
        KernelTable({KERNELS[0]: 1.5}, "other", "code", "machine", "runtime"),
    ]
    path = tmp_path / "tables.parquet"
    write_tables(path, tables)
    again = read_tables(path)
    assert [one.digest for one in again] == [one.digest for one in tables]
    assert (again[1].machine_digest, again[1].runtime) == ("machine", "runtime")
    write_tables(tmp_path / "again.parquet", again)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_what_is_no_file_of_tables_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "tables.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_tables(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"), [("workload", "no kernel"), ("latency_us", -1.0), ("latency_us", None)]
)
def test_impossible_rows_are_refused(tmp_path: Path, column: str, value: object) -> None:
    path = tmp_path / "tables.parquet"
    write_tables(path, [make_table(KERNELS[:2])])
    rows = parquet.read_table(path).to_pylist()
    rows[1][column] = value
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="damaged"):
        read_tables(path)


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match="columns x"):
        read_tables(path)


def test_the_package_ships_whole_tables_of_several_devices() -> None:
    tables = shipped_tables()
    assert len(tables) >= 3
    assert len({one.device_name for one in tables}) == len(tables)
    wanted = set(space_workloads(load_space("cifar")))
    assert all(len(wanted & one.keys()) > 0.9 * len(wanted) for one in tables)


def test_a_device_is_no_source_for_itself(store: Store) -> None:
    device = store.device("local")
    shipped = shipped_tables()
    names = [one.device_name for one in known_tables(store, device)]
    assert "local" not in names
    assert len(names) >= len(shipped) - 1
    store.add_device(replace(device, name="twin"))
    assert "twin" not in [one.device_name for one in known_tables(store, device)]  # knows nothing

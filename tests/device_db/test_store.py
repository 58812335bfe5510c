"""The store keeps what it is given, refuses what is no evidence, and survives what may happen."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from bignas.device_db import database, migration, store
from bignas.device_db.device import Device
from bignas.device_db.errors import (
    MeasurementError,
    StoreError,
    TargetError,
    UnknownDeviceError,
)
from bignas.device_db.measurement import Measurement, MeasurementKind, Provenance, Subject
from bignas.device_db.schema import METADATA, SCHEMA_REVISIONS, VERSION_TABLE
from bignas.device_db.store import Store
from tests.device_db import samples

MEMORY = "sqlite://"
PROCESSES = 6


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def network(number: int, space: str, code_hash: str = "hash") -> Measurement:
    return samples.kernel(
        number,
        subject=Subject.NETWORK,
        workload=None,
        space=space,
        architecture=f'{{"n":{number}}}',
        provenance=Provenance("fake 1", "fake 1", code_hash, "0.1.0", "host"),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Store]:
    with Store.open(url_of(path)) as opened:
        opened.add_device(samples.device())
        yield opened


# Records


@given(st.lists(samples.DEVICES, max_size=5, unique_by=lambda device: device.name))
@settings(max_examples=30, deadline=None)
def test_devices_come_back_as_they_were(devices: list[Device]) -> None:
    with Store.open(MEMORY) as opened:
        for device in devices:
            opened.add_device(device)
        assert opened.devices() == sorted(devices, key=lambda device: device.name)
        assert all(opened.device(device.name) == device for device in devices)


@given(st.lists(samples.measurements(), max_size=8, unique=True))
@settings(max_examples=60, deadline=None)
def test_measurements_come_back_as_they_were(measurements: list[Measurement]) -> None:
    with Store.open(MEMORY) as opened:
        opened.add_device(samples.device())
        opened.add_measurements(measurements)
        kernels = [item for item in measurements if item.subject is Subject.KERNEL]
        networks = [item for item in measurements if item.subject is Subject.NETWORK]
        assert opened.kernel_measurements("bench") == kernels
        assert opened.network_measurements("bench") == networks
        assert opened.check_integrity() == []


def test_what_was_added_is_there_after_reopening(opened: Store, path: Path) -> None:
    failed = samples.kernel(1, samples_ns=(), error="timeout")
    opened.add_measurements([samples.kernel(0), failed])
    opened.close()
    with Store.open(url_of(path)) as again:
        assert again.kernel_measurements("bench") == [samples.kernel(0), failed]
        assert not again.kernel_measurements("bench")[1].ok


def test_adding_again_changes_nothing(opened: Store) -> None:
    opened.add_measurements([samples.kernel(0), samples.kernel(0)])
    opened.add_measurements([samples.kernel(0), samples.kernel(1)])
    assert opened.kernel_measurements("bench") == [samples.kernel(0), samples.kernel(1)]


def test_filters(opened: Store) -> None:
    items = [
        network(space=space, number=number, code_hash=code_hash)
        for number, (space, code_hash) in enumerate(
            (space, code_hash) for space in ("cifar", "bignas") for code_hash in ("old", "new")
        )
    ]
    opened.add_measurements([*items, samples.kernel(0)])
    assert opened.network_measurements("bench", space="cifar") == items[:2]
    assert opened.network_measurements("bench", code_hash="new") == items[1::2]
    assert opened.network_measurements("bench", space="bignas", code_hash="old") == [items[2]]
    assert opened.kernel_measurements("bench", code_hash="new") == []
    assert opened.kernel_measurements("bench", code_hash="hash") == [samples.kernel(0)]


def test_devices_do_not_mix(opened: Store) -> None:
    opened.add_device(samples.device("other"))
    opened.add_measurements([samples.kernel(0), samples.kernel(0, "other")])
    assert opened.kernel_measurements("other") == [samples.kernel(0, "other")]


@pytest.mark.parametrize("kind", [MeasurementKind.EMULATED, MeasurementKind.PREDICTED])
def test_what_is_no_evidence_is_refused(opened: Store, kind: MeasurementKind) -> None:
    with pytest.raises(MeasurementError, match=kind):
        opened.add_measurements([samples.kernel(0), samples.kernel(1, kind=kind)])
    assert opened.kernel_measurements("bench") == []


def test_a_batch_is_added_as_a_whole_or_not_at_all(opened: Store) -> None:
    with pytest.raises(UnknownDeviceError, match="bench"):
        opened.add_measurements([samples.kernel(0), samples.kernel(1, "nobody")])
    assert opened.kernel_measurements("bench") == []
    opened.add_measurements([])


def test_many_records_are_read_by_as_many_statements_as_one(opened: Store) -> None:
    statements: list[str] = []

    def count(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    asked = []
    items: list[Measurement] = []
    for size in (1, 3000):
        more = [
            samples.kernel(number, samples_ns=tuple(float(number + 1 + i) for i in range(20)))
            for number in range(len(items), size)
        ]
        opened.add_measurements(more)
        items += more
        sql.event.listen(sql.Engine, "before_cursor_execute", count)
        try:
            found = opened.kernel_measurements("bench")
        finally:
            sql.event.remove(sql.Engine, "before_cursor_execute", count)
        assert found == items
        asked.append(len(statements))
        statements.clear()
    assert asked[0] == asked[1] > 0


# Devices


def test_an_unknown_device_is_answered_with_the_known_ones(opened: Store) -> None:
    opened.add_device(samples.device("other"))
    for ask in (opened.device, opened.kernel_measurements, opened.network_measurements):
        with pytest.raises(UnknownDeviceError, match=r"'nobody'.*: bench, local, other"):
            ask("nobody")


def test_a_taken_name_is_refused_unless_replaced(opened: Store) -> None:
    opened.add_device(samples.device())
    bigger = samples.device(memory_bytes=1 << 40)
    with pytest.raises(TargetError, match="already"):
        opened.add_device(bigger)
    opened.add_device(bigger, replace=True)
    assert opened.device("bench") == bigger


def test_measurements_never_pass_to_another_machine(opened: Store) -> None:
    opened.add_device(samples.device(cpu="x86-64-v2"), replace=True)
    opened.add_measurements([samples.kernel(0)])
    opened.add_device(samples.device(cpu="x86-64-v2", cores=9), replace=True)
    with pytest.raises(TargetError, match="1 measurements"):
        opened.add_device(samples.device(cpu="x86-64-v4"), replace=True)


def test_local_is_added_on_first_use(opened: Store) -> None:
    assert "local" not in [device.name for device in opened.devices()]
    device = opened.device("local")
    assert device.threads == 1
    assert device in opened.devices()
    assert opened.kernel_measurements("local") == []


def test_local_means_the_machine_at_hand(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home = samples.device("local", cpu_model="Home")
    work = samples.device("local", cpu_model="Work")
    for machine in (home, work):
        monkeypatch.setattr(store, "probe_local", lambda machine=machine: machine)
        assert opened.device("local") == machine
        assert opened.kernel_measurements("local") == []
        opened.add_measurements([samples.kernel(0, "local", session=machine.cpu_model)])
    aside = f"local-{home.machine_digest}"
    assert opened.kernel_measurements(aside)[0].session == "Home"
    monkeypatch.setattr(store, "probe_local", lambda: home)
    assert opened.device("local") == home
    assert [item.session for item in opened.kernel_measurements("local")] == ["Home"]
    names = [device.name for device in opened.devices()]
    assert names == ["bench", "local", f"local-{work.machine_digest}"]


# Opening


def test_the_variable_names_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(database.URL_VARIABLE, url_of(path.parent / "new" / "folder" / "x.sqlite"))
    Store.open().close()
    assert (path.parent / "new" / "folder" / "x.sqlite").exists()


def test_by_default_the_store_is_in_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(database.URL_VARIABLE, raising=False)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name: tmp_path / name)
    Store.open().close()
    assert (tmp_path / "bignas" / "bignas.sqlite").exists()


def test_a_folder_with_a_percent_sign_is_no_problem(tmp_path: Path) -> None:
    Store.open(url_of(tmp_path / "50% of it" / "x.sqlite")).close()


def test_migrations_lead_to_the_schema_in_use(opened: Store, path: Path) -> None:
    engine = sql.create_engine(url_of(path))
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == SCHEMA_REVISIONS[-1]
    engine.dispose()
    opened.close()
    migrations = Path(migration.__file__).parent / "migrations" / "versions"
    assert sorted(one.name[1:5] for one in migrations.glob("v*.py")) == [*SCHEMA_REVISIONS]


def test_devices_of_an_older_store_are_not_remote(opened: Store, path: Path) -> None:
    """What the first schema kept is brought to the present one; a damaged device stays damaged."""
    opened.add_device(samples.device())
    opened.add_device(samples.device("damaged"))
    opened.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE devices SET description = '{' WHERE name = 'damaged'")
        connection.execute(
            "UPDATE devices SET description = json_remove(description, '$.remote')"
            " WHERE name = 'bench'"
        )
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")
        connection.execute("DROP TABLE accuracies")  # of the third schema
    connection.close()
    with Store.open(url_of(path)) as store:
        assert store.device("bench") == samples.device()
        assert ["damaged" in one for one in store.check_integrity()] == [True]


def test_opening_says_nothing(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Store.open(url_of(path)).close()
    assert capfd.readouterr() == ("", "")


def test_durability_settings_are_in_force(opened: Store) -> None:
    with opened._database.reading() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": database.BUSY_TIMEOUT_MS,
    }


def refusal(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_newer_store_is_refused(opened: Store, path: Path) -> None:
    opened.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    assert "newer bignas" in refusal(url_of(path))


def test_another_programs_database_is_refused_untouched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = path.read_bytes()
    assert "another program" in refusal(url_of(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough " * 100, b"\x00" * 5000])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "is not a database" in refusal(url_of(path))
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    assert "cannot be opened" in refusal(url_of(path))


@pytest.mark.parametrize("place", ["/proc/x/y.sqlite", "/dev/null/y.sqlite"])
def test_a_place_that_cannot_be_written_is_refused(place: str) -> None:
    assert "cannot" in refusal(url_of(Path(place)))


@pytest.mark.parametrize("url", ["nonsense", "store.sqlite", "nonsense://x", "mysql://u:pw@h/x"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    message = refusal(url)
    assert "sqlite:///PATH" in message
    assert "pw" not in message


def test_damage_is_one_clear_line(opened: Store, path: Path) -> None:
    opened.add_measurements(samples.kernel(number) for number in range(3000))
    opened.close()
    content = bytearray(path.read_bytes())
    content[8192 : len(content) // 2] = os.urandom(len(content) // 2 - 8192)
    path.write_bytes(content)
    try:
        with Store.open(url_of(path)) as damaged:
            assert damaged.check_integrity() != []
            damaged.kernel_measurements("bench")
    except StoreError as error:
        assert "\n" not in str(error)  # noqa: PT017 - which of the calls meets the damage is open
    else:
        pytest.fail("the damage went unnoticed")


def test_a_record_that_cannot_be_decoded_is_named(opened: Store, path: Path) -> None:
    opened.add_measurements([samples.kernel(0), samples.kernel(1)])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE measurements SET samples_ns = x'0102' WHERE id = 2")
        connection.execute("UPDATE devices SET description = '{}'")
        connection.execute("UPDATE measurements SET provenance_id = 77 WHERE id = 1")
    connection.close()
    problems = opened.check_integrity()
    assert len(problems) == 3
    assert any("record 2 " in problem for problem in problems)
    assert any("'bench'" in problem for problem in problems)
    assert any("provenances" in problem for problem in problems)


def test_a_full_disk_is_told_and_loses_nothing(opened: Store) -> None:
    opened.add_measurements([samples.kernel(0)])
    with opened._database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="disk full"):
        opened.add_measurements(samples.kernel(number) for number in range(1, 2000))
    assert opened.kernel_measurements("bench") == [samples.kernel(0)]
    assert opened.check_integrity() == []


def test_references_are_enforced(opened: Store) -> None:
    opened.add_measurements([samples.kernel(0)])
    with (
        pytest.raises(StoreError, match="FOREIGN KEY"),
        opened._database.writing() as connection,
    ):
        connection.exec_driver_sql("DELETE FROM workloads")
    assert opened.kernel_measurements("bench") == [samples.kernel(0)]


# Processes

WRITER = """
import sys
from bignas.device_db.store import Store
from tests.device_db import samples

url, session, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store.open(url) as store:
    store.add_device(samples.device())
    for batch in range(count):
        store.add_measurements(
            samples.kernel(number, session=session) for number in range(batch * 20, batch * 20 + 20)
        )
        print(batch, flush=True)
"""


def start_writer(path: Path, session: str, batches: int) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", WRITER, url_of(path), session, str(batches)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_processes_may_create_and_write_one_store_at_once(path: Path) -> None:
    writers = [start_writer(path, f"writer {number}", 5) for number in range(PROCESSES)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    with Store.open(url_of(path)) as opened:
        assert len(opened.kernel_measurements("bench")) == PROCESSES * 5 * 20
        assert opened.check_integrity() == []


@pytest.mark.parametrize("lines", [1, 7])
def test_a_killed_writer_loses_nothing_that_was_committed(path: Path, lines: int) -> None:
    with start_writer(path, "killed", 100_000) as writer:
        assert writer.stdout is not None
        seen = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    with Store.open(url_of(path)) as opened:
        assert opened.check_integrity() == []
        found = opened.kernel_measurements("bench")
    committed = (int(seen[-1]) + 1) * 20
    assert len(found) >= committed
    assert len(found) % 20 == 0
    assert found == [samples.kernel(number, session="killed") for number in range(len(found))]


def test_the_store_opens_without_the_heavy_libraries() -> None:
    code = (
        "import sys, bignas.device_db.store;"
        "sys.exit(bool({'torch', 'tvm', 'sklearn', 'datasets', 'xgboost'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_new_store_waits_for_another_process_that_creates_it(tmp_path: Path) -> None:
    """SQLite itself does not wait when the journal's mode changes."""
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    with Store.open(f"sqlite:///{path}") as store:
        assert store.check_integrity() == []
    release.join()
    other.close()

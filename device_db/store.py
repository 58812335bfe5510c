"""The one place where devices, measurements and accuracies are kept: an SQL database.

- Only measured latencies are kept. Emulated runs prove numerics and predictions are derived; either
  one among the measurements would pass for evidence.
- A failed measurement is kept like any other, so that it is not tried again and again.
- The device `local` means this machine. When the database meets another processor, what was
  measured so far is kept under the name `local-<digest>`, and gets its name back on the machine it
  belongs to.
"""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from bignas.device_db.accuracies import (
    EvaluationSetting,
    find_accuracies,
    insert_accuracies,
)
from bignas.device_db.database import URL_VARIABLE, Database
from bignas.device_db.device import Device
from bignas.device_db.errors import (
    MeasurementError,
    StoreError,
    TargetError,
    UnknownDeviceError,
)
from bignas.device_db.measurement import Measurement, MeasurementKind, Provenance, Subject
from bignas.device_db.probe import LOCAL, probe_local
from bignas.device_db.rows import (
    MeasurementDecoder,
    canonical,
    decode_device,
    device_values,
    measurement_query,
    measurement_values,
)
from bignas.device_db.schema import DEVICES, MEASUREMENTS, PROVENANCES, WORKLOADS

__all__ = ["URL_VARIABLE", "Store"]

_CHUNK = 500


class Store:
    """An open store. Use it as a context manager, or call `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str | None = None) -> Self:
        """Open the store at an SQLAlchemy URL, creating or migrating it as needed.

        Without `url` the environment variable BIGNAS_DB is used, and without that a file in the
        user's data folder.

        Raises:
            StoreError: the URL is malformed, or the database cannot be opened or written, is
                corrupt, belongs to another program or to a newer bignas.
        """
        return cls(Database(url))

    def close(self) -> None:
        """Close all connections; the store cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Devices

    def add_device(self, device: Device, replace: bool = False) -> None:
        """Add a device. Adding an equal one again changes nothing.

        Raises:
            TargetError: the name is taken by a different device and `replace` is false; or it is to
                be replaced by another machine while measurements of the old one exist, which would
                mix the two.
        """
        with self._database.writing() as connection:
            old = _find_device(connection, device.name)
            if old is None:
                connection.execute(sql.insert(DEVICES).values(device_values(device)))
            elif old != device:
                if not replace:
                    raise TargetError(
                        f"there is a different device {device.name!r} already:"
                        " choose another name, or replace it"
                    )
                if old.machine_digest != device.machine_digest:
                    _refuse_with_measurements(connection, device.name)
                connection.execute(
                    sql.update(DEVICES)
                    .where(DEVICES.c.name == device.name)
                    .values(device_values(device))
                )

    def device(self, name: str) -> Device:
        """Return a device by name; `local` is probed, and added on first use.

        Raises:
            UnknownDeviceError: there is none of that name; the message lists the known ones.
        """
        with self._database.reading() as connection:
            device = _find_device(connection, name)
        if name == LOCAL:
            return self._local(device)
        if device is None:
            known = ", ".join(sorted({LOCAL, *(item.name for item in self.devices())}))
            raise UnknownDeviceError(f"unknown device {name!r}; known devices: {known}")
        return device

    def devices(self) -> list[Device]:
        """Return all devices in the order of their names."""
        with self._database.reading() as connection:
            rows = connection.execute(sql.select(DEVICES).order_by(DEVICES.c.name)).all()
            return [decode_device(row) for row in rows]

    def _local(self, stored: Device | None) -> Device:
        found = probe_local()
        if stored is not None and stored.machine_digest == found.machine_digest:
            return stored
        with self._database.writing() as connection:
            stored = _find_device(connection, LOCAL)
            if stored is not None:
                if stored.machine_digest == found.machine_digest:
                    return stored
                _rename_device(connection, stored, _name_aside(stored))
            known = _find_device(connection, _name_aside(found))
            if known is None:
                connection.execute(sql.insert(DEVICES).values(device_values(found)))
            else:
                _rename_device(connection, known, LOCAL)
        return found

    # Measurements

    def add_measurements(self, measurements: Iterable[Measurement]) -> None:
        """Add measurements in one transaction: all of them or none. Equal ones are kept once.

        Raises:
            MeasurementError: one was emulated or predicted, so it is no latency evidence.
            UnknownDeviceError: one belongs to a device that the store does not hold.
        """
        items = list(measurements)
        for item in items:
            if item.kind is not MeasurementKind.MEASURED:
                raise MeasurementError(
                    f"{item.kind} results are no latency evidence, the store keeps measured ones"
                )
        texts = {by: canonical(by.to_dict()) for by in {item.provenance for item in items}}
        rows = {}
        for item in items:
            values = measurement_values(item, texts[item.provenance])
            rows[values["digest"]] = (item, values)
        with self._database.writing() as connection:
            for digest in _known(connection, MEASUREMENTS, "digest", rows):
                del rows[digest]
            _insert_measurements(connection, list(rows.values()), texts)

    def kernel_measurements(
        self, device: str, *, code_hash: str | None = None
    ) -> list[Measurement]:
        """Return the kernel measurements of a device, failed ones too, in the order of adding.

        With `code_hash` only those whose provenance has that hash.

        Raises:
            UnknownDeviceError: there is no such device.
        """
        return self._measurements(device, Subject.KERNEL, code_hash, None)

    def network_measurements(
        self, device: str, *, space: str | None = None, code_hash: str | None = None
    ) -> list[Measurement]:
        """Return the network measurements of a device, failed ones too, in the order of adding.

        With `space` only those of that search space, with `code_hash` only those whose provenance
        has that hash.

        Raises:
            UnknownDeviceError: there is no such device.
        """
        return self._measurements(device, Subject.NETWORK, code_hash, space)

    def in_network_measurements(
        self, device: str, *, code_hash: str | None = None
    ) -> list[Measurement]:
        """Return what kernels of a device took within networks, as `kernel_measurements` does.

        Raises:
            UnknownDeviceError: there is no such device.
        """
        return self._measurements(device, Subject.IN_NETWORK, code_hash, None)

    def _measurements(
        self, device: str, subject: Subject, code_hash: str | None, space: str | None
    ) -> list[Measurement]:
        self.device(device)
        query = measurement_query().where(
            DEVICES.c.name == device, MEASUREMENTS.c.subject == subject.value
        )
        if code_hash is not None:
            query = query.where(PROVENANCES.c.code_hash == code_hash)
        if space is not None:
            query = query.where(MEASUREMENTS.c.space == space)
        with self._database.reading() as connection:
            decoder = MeasurementDecoder()
            return [decoder.measurement(row) for row in connection.execute(query).all()]

    # Accuracies

    def accuracies(self, setting: EvaluationSetting) -> dict[str, int]:
        """Return how many images each child classified correctly, by `Architecture.key`."""
        with self._database.reading() as connection:
            return find_accuracies(connection, setting)

    def add_accuracies(self, setting: EvaluationSetting, correct: Mapping[str, int]) -> None:
        """Add what `accuracies` returns; what is known already stays as it is."""
        with self._database.writing() as connection:
            insert_accuracies(connection, setting, correct)

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the store, one line each; an empty list means it is sound.

        The database checks its own structure and references, then every record is decoded.
        """
        problems: list[str] = []
        try:
            with self._database.reading() as connection:
                problems += _database_problems(connection)
                problems += _record_problems(connection)
        except StoreError as error:
            problems.append(str(error))
        return problems


def _find_device(connection: Connection, name: str) -> Device | None:
    row = connection.execute(sql.select(DEVICES).where(DEVICES.c.name == name)).one_or_none()
    return None if row is None else decode_device(row)


def _rename_device(connection: Connection, device: Device, name: str) -> None:
    connection.execute(sql.update(DEVICES).where(DEVICES.c.name == device.name).values(name=name))


def _name_aside(device: Device) -> str:
    return f"{LOCAL}-{device.machine_digest}"


def _refuse_with_measurements(connection: Connection, name: str) -> None:
    count = connection.scalar(
        sql.select(sql.func.count())
        .select_from(MEASUREMENTS.join(DEVICES))
        .where(DEVICES.c.name == name)
    )
    if count:
        raise TargetError(
            f"device {name!r} has {count} measurements of another machine or target:"
            " give the new one another name"
        )


def _insert_measurements(
    connection: Connection,
    rows: list[tuple[Measurement, dict[str, Any]]],
    texts: Mapping[Provenance, str],
) -> None:
    """Insert rows (each beside its measurement) after the rows of other tables they refer to."""
    if not rows:
        return
    items = [item for item, _ in rows]
    devices = _device_ids(connection, {item.device for item in items})
    kernels = {item.workload: item.workload.key for item in items if item.workload is not None}
    workloads = _intern(connection, WORKLOADS, "key", {key: {} for key in kernels.values()})
    provenances = _intern(
        connection,
        PROVENANCES,
        "description",
        {text: {"code_hash": by.code_hash} for by, text in texts.items()},
    )
    for item, values in rows:
        values["device_id"] = devices[item.device]
        values["workload_id"] = item.workload and workloads[kernels[item.workload]]
        values["provenance_id"] = provenances[texts[item.provenance]]
    connection.execute(sql.insert(MEASUREMENTS), [values for _, values in rows])


def _device_ids(connection: Connection, names: set[str]) -> dict[str, int]:
    ids = _known(connection, DEVICES, "name", names)
    if missing := sorted(names - ids.keys()):
        known = connection.scalars(sql.select(DEVICES.c.name).order_by(DEVICES.c.name)).all()
        raise UnknownDeviceError(
            f"unknown device {missing[0]!r}; known devices: {', '.join(known) or 'none'}"
        )
    return ids


def _known(
    connection: Connection, table: sql.Table, name: str, values: Iterable[str]
) -> dict[str, int]:
    """Return the ids of the rows whose column `name` is among `values`, by value."""
    column = table.c[name]
    wanted = list(values)
    found: dict[str, int] = {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        query = sql.select(column, table.c.id).where(column.in_(chunk))
        found.update((value, number) for value, number in connection.execute(query))
    return found


def _intern(
    connection: Connection, table: sql.Table, name: str, rows: Mapping[str, Mapping[str, str]]
) -> dict[str, int]:
    """Insert the rows whose column `name` is new, and return the ids of all, by its value."""
    found = _known(connection, table, name, rows)
    missing = [{name: key, **rows[key]} for key in rows if key not in found]
    if missing:
        connection.execute(sql.insert(table), missing)
        found |= _known(connection, table, name, [row[name] for row in missing])
    return found


def _database_problems(connection: Connection) -> list[str]:
    if connection.dialect.name != "sqlite":
        return []
    lines = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    problems = [f"integrity: {line}" for line in lines if line != "ok"]
    rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return problems + [
        f"reference: row {row[1]} of {row[0]} points to a missing row of {row[2]}" for row in rows
    ]


def _record_problems(connection: Connection) -> list[str]:
    problems: list[str] = []
    for row in connection.execute(sql.select(DEVICES)).all():
        try:
            decode_device(row)
        except StoreError as error:
            problems.append(str(error))
    decoder = MeasurementDecoder()
    for row in connection.execute(measurement_query()).all():
        try:
            decoder.measurement(row)
        except StoreError as error:
            problems.append(str(error))
    return problems

"""Records as rows of the store, and back."""

import hashlib
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Row

from bignas.device_db.device import Device
from bignas.device_db.errors import BignasError, StoreError
from bignas.device_db.measurement import (
    Environment,
    Measurement,
    MeasurementKind,
    Provenance,
    Subject,
)
from bignas.device_db.schema import DEVICES, MEASUREMENTS, PROVENANCES, WORKLOADS
from bignas.device_db.workload import Workload

__all__ = [
    "MeasurementDecoder",
    "canonical",
    "decode_device",
    "device_values",
    "measurement_query",
    "measurement_values",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_READABLE = MEASUREMENTS.join(DEVICES).join(PROVENANCES).outerjoin(WORKLOADS)


def device_values(device: Device) -> dict[str, str]:
    """Return the columns of a device but for its id."""
    return {"name": device.name, "description": canonical(device.to_dict())}


def decode_device(row: Row[Any]) -> Device:
    """Return the device of a row of DEVICES, or raise StoreError naming it."""
    try:
        return Device.from_dict({**json.loads(row.description), "name": row.name})
    except (ValueError, TypeError, BignasError) as error:
        raise StoreError(f"the store's device {row.name!r} cannot be read: {error}") from error


def canonical(value: Mapping[str, Any]) -> str:
    """Return the one JSON text that equal values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _encode_samples(samples: Sequence[float]) -> bytes:
    values = array("d", samples)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _decode_samples(data: bytes) -> tuple[float, ...]:
    values = array("d")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def measurement_values(item: Measurement, provenance: str) -> dict[str, Any]:
    """Return the columns of a measurement but for its references to other tables.

    `provenance` is the canonical text of its provenance.
    """
    environment = item.environment
    values: dict[str, Any] = {
        "subject": item.subject.value,
        "schedule": item.schedule,
        "space": item.space,
        "architecture": item.architecture,
        "error": item.error,
        "kind": item.kind.value,
        "load_average": environment.load_average,
        "steal_fraction": environment.steal_fraction,
        "frequency_mhz": environment.frequency_mhz,
        "context_switches": environment.context_switches,
        "affinity": ",".join(map(str, environment.affinity)),
        "governor": environment.governor,
        "created_at_us": (item.created_at - _EPOCH) // _MICROSECOND,
        "session": item.session,
    }
    key = None if item.workload is None else item.workload.key
    content = canonical({**values, "device": item.device, "workload": key, "by": provenance})
    samples = _encode_samples(item.samples_ns)
    digest = hashlib.sha256(content.encode() + samples).hexdigest()[:32]
    return {**values, "samples_ns": samples, "digest": digest}


def measurement_query() -> sql.Select[Any]:
    """Select what `MeasurementDecoder` needs, in the order of adding."""
    columns = MEASUREMENTS.c
    return (
        sql.select(
            columns.id,
            DEVICES.c.name,
            columns.subject,
            WORKLOADS.c.key,
            columns.schedule,
            columns.space,
            columns.architecture,
            columns.samples_ns,
            columns.error,
            columns.kind,
            PROVENANCES.c.description,
            columns.load_average,
            columns.steal_fraction,
            columns.frequency_mhz,
            columns.context_switches,
            columns.affinity,
            columns.governor,
            columns.created_at_us,
            columns.session,
        )
        .select_from(_READABLE)
        .order_by(columns.id)
    )


class MeasurementDecoder:
    """Turns rows into measurements, sharing the workloads and provenances that repeat."""

    def __init__(self) -> None:
        self._workloads: dict[str | None, Workload | None] = {None: None}
        self._provenances: dict[str, Provenance] = {}
        self._affinities: dict[str, tuple[int, ...]] = {"": ()}

    def measurement(self, row: Sequence[Any]) -> Measurement:
        """Decode a row of `measurement_query`, or raise StoreError naming the record."""
        try:
            return self._measurement(*row)
        except (ValueError, TypeError, OverflowError, BignasError) as error:
            raise StoreError(f"record {row[0]} of the store cannot be read: {error}") from error

    # One argument a column: reading them by name from the row takes half as long again.
    def _measurement(
        self,
        _number: int,
        device: str,
        subject: str,
        workload: str | None,
        schedule: str | None,
        space: str | None,
        architecture: str | None,
        samples_ns: bytes,
        error: str | None,
        kind: str,
        provenance: str,
        load_average: float,
        steal_fraction: float,
        frequency_mhz: float | None,
        context_switches: int,
        affinity: str,
        governor: str | None,
        created_at_us: int,
        session: str,
    ) -> Measurement:
        return Measurement(
            device=device,
            subject=Subject(subject),
            workload=self._workload(workload),
            schedule=schedule,
            space=space,
            architecture=architecture,
            samples_ns=_decode_samples(samples_ns),
            error=error,
            kind=MeasurementKind(kind),
            provenance=self._provenance(provenance),
            environment=Environment(
                load_average=load_average,
                steal_fraction=steal_fraction,
                frequency_mhz=frequency_mhz,
                context_switches=context_switches,
                affinity=self._affinity(affinity),
                governor=governor,
            ),
            created_at=_EPOCH + timedelta(microseconds=created_at_us),
            session=session,
        )

    def _workload(self, key: str | None) -> Workload | None:
        if key not in self._workloads:
            self._workloads[key] = Workload.from_key(str(key))
        return self._workloads[key]

    def _provenance(self, text: str) -> Provenance:
        if text not in self._provenances:
            self._provenances[text] = Provenance.from_dict(json.loads(text))
        return self._provenances[text]

    def _affinity(self, text: str) -> tuple[int, ...]:
        if text not in self._affinities:
            self._affinities[text] = tuple(map(int, text.split(",")))
        return self._affinities[text]

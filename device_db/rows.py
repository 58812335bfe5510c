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

from bignas.device_db.errors import BignasError, StoreError
from bignas.device_db.records import (
    Device,
    Environment,
    Measurement,
    MeasurementKind,
    Provenance,
    Subject,
    Workload,
)
from bignas.device_db.schema import DEVICES, MEASUREMENTS, PROVENANCES, WORKLOADS

__all__ = [
    "MeasurementDecoder",
    "canonical",
    "decode_device",
    "device_values",
    "measurement_digest",
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


def measurement_digest(item: Measurement) -> str:
    """Return 32 hexadecimal digits that name the measurement by its content."""
    content = canonical(item.to_dict())
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


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


def measurement_values(item: Measurement) -> dict[str, Any]:
    """Return the columns of a measurement but for its digest and its references."""
    environment = item.environment
    return {
        "subject": item.subject.value,
        "schedule": item.schedule,
        "space": item.space,
        "architecture": item.architecture,
        "samples_ns": _encode_samples(item.samples_ns),
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


def measurement_query() -> sql.Select[Any]:
    """Select what `MeasurementDecoder` needs, in the order of adding."""
    return (
        sql.select(
            MEASUREMENTS,
            DEVICES.c.name.label("device"),
            WORKLOADS.c.key.label("workload"),
            PROVENANCES.c.description.label("provenance"),
        )
        .select_from(_READABLE)
        .order_by(MEASUREMENTS.c.id)
    )


class MeasurementDecoder:
    """Turns rows into measurements, sharing the workloads and provenances that repeat."""

    def __init__(self) -> None:
        self._workloads: dict[str | None, Workload | None] = {None: None}
        self._provenances: dict[str, Provenance] = {}

    def measurement(self, row: Row[Any]) -> Measurement:
        """Decode a row of `measurement_query`, or raise StoreError naming the record."""
        try:
            return self._measurement(row)
        except (ValueError, TypeError, OverflowError, BignasError) as error:
            raise StoreError(f"record {row.id} of the store cannot be read: {error}") from error

    def _measurement(self, row: Row[Any]) -> Measurement:
        return Measurement(
            device=row.device,
            subject=Subject(row.subject),
            workload=self._workload(row.workload),
            schedule=row.schedule,
            space=row.space,
            architecture=row.architecture,
            samples_ns=_decode_samples(row.samples_ns),
            error=row.error,
            kind=MeasurementKind(row.kind),
            provenance=self._provenance(row.provenance),
            environment=Environment(
                load_average=row.load_average,
                steal_fraction=row.steal_fraction,
                frequency_mhz=row.frequency_mhz,
                context_switches=row.context_switches,
                affinity=tuple(map(int, row.affinity.split(","))) if row.affinity else (),
                governor=row.governor,
            ),
            created_at=_EPOCH + timedelta(microseconds=row.created_at_us),
            session=row.session,
        )

    def _workload(self, key: str | None) -> Workload | None:
        if key not in self._workloads:
            self._workloads[key] = Workload.from_key(str(key))
        return self._workloads[key]

    def _provenance(self, text: str) -> Provenance:
        if text not in self._provenances:
            self._provenances[text] = Provenance.from_dict(json.loads(text))
        return self._provenances[text]

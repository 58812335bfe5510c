"""A device and its measurements as one JSON document, to be carried to another store.

Format `bignas-device`:
- version 1: `device`, `measurements` as their records have it, the latter without
  `device`
- version 2: `device` has `remote`, null or how it is reached
- version 3: measurements may be of kernels within networks
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, StoreError, TargetError
from bignas.device_db.measurement import Measurement, MeasurementKind
from bignas.device_db.probe import LOCAL, probe_local
from bignas.device_db.store import Store

__all__ = ["export_device", "import_device"]

_FORMAT: Final = "bignas-device"
_VERSION: Final = 3


def export_device(store: Store, name: str) -> str:
    """Return the JSON text of a device and all its measurements.

    Raises:
        UnknownDeviceError: there is no such device.
    """
    device = store.device(name)
    measurements = [
        *store.kernel_measurements(name),
        *store.network_measurements(name),
        *store.in_network_measurements(name),
    ]
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "device": device.to_dict(),
        "measurements": [_without_device(item) for item in measurements],
    }
    return json.dumps(document, indent=1) + "\n"


def import_device(store: Store, text: str, name: str | None = None) -> Device:
    """Add the device and the measurements of a JSON text of `export_device`, and return the device.

    `name` gives the device another name. Importing the same text again changes nothing.

    Raises:
        StoreError: the text is no such document, or of a newer version.
        TargetError: the name is taken by a different device, or the device is the `local` of
            another machine.
        MeasurementError: a record is malformed, or no evidence.
    """
    document = _parse(text)
    device = Device.from_dict(document["device"])
    device = replace(device, name=name or device.name)
    if device.name == LOCAL and device.machine_digest != probe_local().machine_digest:
        raise TargetError(
            f"the device to import is the {LOCAL!r} of another machine: import it by another name"
        )
    measurements = [_with_device(item, device.name) for item in document["measurements"]]
    store.add_device(device)
    store.add_measurements(measurements)
    return device


def _parse(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise StoreError(f"the device file is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise StoreError("the file was not written by a device export")
    version = document.get("version")
    if version not in range(1, _VERSION + 1):
        raise StoreError(
            f"the device file has version {version!r}, this bignas reads 1 to {_VERSION}"
        )
    if not isinstance(document.get("measurements"), list):
        raise StoreError("the device file lacks its list of measurements")
    device = document.get("device")
    if version == 1 and isinstance(device, dict):
        device = {**device, "remote": None}
    return {"device": device, "measurements": document["measurements"]}


def _without_device(item: Measurement) -> dict[str, Any]:
    values = item.to_dict()
    del values["device"]
    return values


def _with_device(values: object, name: str) -> Measurement:
    if not isinstance(values, Mapping):
        raise MeasurementError(f"a measurement must be an object, got {values!r}")
    measurement = Measurement.from_dict({**values, "device": name})
    if measurement.kind is not MeasurementKind.MEASURED:
        raise MeasurementError(f"{measurement.kind} results are no latency evidence")
    return measurement

"""A device file carries a device and its measurements to another store, and nothing else."""

import json
from typing import Any

import pytest

from bignas.device_db.device import Remote
from bignas.device_db.errors import BignasError, MeasurementError, StoreError, TargetError
from bignas.device_db.exchange import export_device, import_device
from bignas.device_db.measurement import Subject
from bignas.device_db.store import Store
from tests.device_db import samples

FAILED = samples.kernel(1, samples_ns=(), error="timeout")


@pytest.fixture
def text() -> str:
    with Store.open("sqlite://") as store:
        store.add_device(samples.device())
        store.add_measurements([samples.kernel(0), FAILED])
        return export_device(store, "bench")


def changed(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


def test_an_export_can_be_imported_twice(text: str) -> None:
    with Store.open("sqlite://") as store:
        for _ in range(2):
            assert import_device(store, text) == samples.device()
        assert store.kernel_measurements("bench") == [samples.kernel(0), FAILED]
        assert export_device(store, "bench") == text


def test_an_import_may_get_another_name(text: str) -> None:
    with Store.open("sqlite://") as store:
        assert import_device(store, text, name="other") == samples.device("other")
        assert store.kernel_measurements("other")[0] == samples.kernel(0, "other")


def test_another_machines_local_needs_a_name(text: str) -> None:
    local = changed(text, device=samples.device("local").to_dict())
    with Store.open("sqlite://") as store:
        with pytest.raises(TargetError, match="another machine"):
            import_device(store, local)
        import_device(store, local, name="theirs")
        assert len(store.kernel_measurements("theirs")) == 2


def test_how_a_device_is_reached_travels_with_it() -> None:
    remote = samples.device(remote=Remote("pi.local", 9190, "pi4", 1 << 20))
    with Store.open("sqlite://") as store:
        store.add_device(remote)
        text = export_device(store, "bench")
    with Store.open("sqlite://") as store:
        assert import_device(store, text) == remote


def test_exports_of_the_second_version_are_read(text: str) -> None:
    document = json.loads(text)
    with Store.open("sqlite://") as store:
        assert import_device(store, json.dumps(document | {"version": 2})) == samples.device()
        assert len(store.kernel_measurements("bench")) == 2


def test_kernels_within_networks_are_carried_along() -> None:
    within = samples.kernel(subject=Subject.IN_NETWORK, space="cifar", architecture="{}")
    with Store.open("sqlite://") as store:
        store.add_device(samples.device())
        store.add_measurements([within])
        text = export_device(store, "bench")
    with Store.open("sqlite://") as store:
        import_device(store, text)
        assert store.in_network_measurements("bench") == [within]
        assert store.kernel_measurements("bench") == []
        assert store.network_measurements("bench") == []


def test_exports_of_the_first_version_are_read(text: str) -> None:
    document = json.loads(text)
    del document["device"]["remote"]
    with Store.open("sqlite://") as store:
        assert import_device(store, json.dumps(document | {"version": 1})) == samples.device()
        assert len(store.kernel_measurements("bench")) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"format": "bignas-device"}'])
def test_what_is_no_export_is_refused(text: str) -> None:
    with Store.open("sqlite://") as store, pytest.raises(StoreError):
        import_device(store, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 4},
        {"device": None},
        {"device": {"name": "bench"}},
        {"measurements": None},
        {"measurements": [None]},
        {"measurements": [{}]},
        {"measurements": {"a": 1}},
    ],
)
def test_damaged_exports_are_refused_as_a_whole(text: str, changes: dict[str, Any]) -> None:
    with Store.open("sqlite://") as store:
        with pytest.raises(BignasError):
            import_device(store, changed(text, **changes))
        assert store.devices() == []


def test_emulated_results_are_not_imported_as_evidence(text: str) -> None:
    measurements = json.loads(text)["measurements"]
    measurements[0]["kind"] = "emulated"
    with Store.open("sqlite://") as store:
        with pytest.raises(MeasurementError, match="emulated"):
            import_device(store, changed(text, measurements=measurements))
        assert store.devices() == []

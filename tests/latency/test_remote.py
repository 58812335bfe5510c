"""How work is divided among servers, and what happens when some of them are lost."""

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bignas.device_db.device import Device, Remote
from bignas.device_db.errors import MeasurementError, RemoteError, ServerLostError
from bignas.device_db.probe import obstacle_to_measuring, probe_local
from bignas.device_db.store import Store
from bignas.device_db.workload import Operator, Workload
from bignas.latency import remote
from bignas.latency.jobs import Job, KernelJob, NetworkJob, Place, Report, Settings, TimingResult
from bignas.latency.measuring import own_cache_of
from bignas.latency.recording import Recorder
from bignas.latency.remote import LOST, TRIES, divide, measure_remotely
from bignas.latency.rpc_request import Request, Sign
from bignas.latency.sentinels import Sentinels
from bignas.latency.tuned import failed_kernels
from tests.latency.test_machine import here
from tests.latency.tiny import QUIET, kernel_record

LIBRARY = Path("kernels.so")
SETTINGS = Settings(rounds=2)


def workload(number: int) -> Workload:
    return Workload(Operator.POINTWISE, 4, 4, 8, 8 + number)


def jobs_of(numbers: Sequence[int]) -> list[Job]:
    """A kernel of that workload for each number, a network for each negative one."""
    return [
        NetworkJob(LIBRARY) if one < 0 else KernelJob(LIBRARY, f"k{place}", workload(one))
        for place, one in enumerate(numbers)
    ]


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=30), st.integers(1, 6))
def test_every_job_is_in_one_share_and_those_of_a_kernel_together(
    numbers: list[int], parts: int
) -> None:
    jobs = jobs_of(numbers)
    shares = divide(jobs, parts)
    assert sorted(one for share in shares for one in share) == list(range(len(jobs)))
    assert all(shares)
    assert len(shares) <= parts
    for kernel in set(numbers) - {-1}:
        assert sum(any(numbers[one] == kernel for one in share) for share in shares) == 1


def test_shares_are_of_similar_size() -> None:
    assert sorted(map(len, divide(jobs_of([-1] * 10), 3))) == [3, 3, 4]


@pytest.fixture
def device() -> Device:
    return dataclasses.replace(probe_local(), name="board", remote=Remote("h", 1, "k", 1 << 19))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let measuring succeed, or fail as told by the number of the call; returns the sizes."""

    def install(*outcomes: Exception | None, count: int = 2) -> list[int]:
        lock, calls = threading.Lock(), list[int]()

        def measured(program: Any, jobs: Sequence[Job], *_: Any) -> Report:
            program.heed(f"{Sign.MACHINE} {look()}")
            with lock:
                calls.append(len(jobs))
                number = len(calls) - 1
            outcome = outcomes[number] if number < len(outcomes) else None
            if outcome is not None:
                raise outcome
            return Report(tuple(TimingResult((1.0,)) for _ in jobs), 1, 0, QUIET)

        monkeypatch.setattr(remote, "count_servers", lambda _: count)
        monkeypatch.setattr(remote, "measure_with", measured)
        return calls

    return install


def look() -> str:
    return json.dumps(here())


def test_servers_share_the_work(device: Device, servers: Callable[..., list[int]]) -> None:
    calls = servers()
    report = measure_remotely(device, jobs_of(range(10)), SETTINGS)
    assert [one.error for one in report.results] == [None] * 10
    assert sorted(calls) == [5, 5]
    assert report.rejected == 2
    assert all(one.place is not None and one.place.environment == QUIET for one in report.results)


def test_what_a_lost_server_had_is_measured_by_another(
    device: Device, servers: Callable[..., list[int]]
) -> None:
    calls = servers(ServerLostError("gone"))
    report = measure_remotely(device, jobs_of(range(8)), SETTINGS)
    assert [one.error for one in report.results] == [None] * 8
    assert calls == [4, 4, 4]


def test_jobs_that_servers_are_lost_with_fail_in_the_end(
    device: Device, servers: Callable[..., list[int]]
) -> None:
    calls = servers(*[ServerLostError("gone")] * TRIES, count=1)
    report = measure_remotely(device, jobs_of(range(3)), SETTINGS)
    assert len(calls) == TRIES
    assert all(str(TRIES) in str(one.error) and "gone" in str(one.error) for one in report.results)


def test_jobs_without_any_server_left_fail_with_a_reason(
    device: Device, servers: Callable[..., list[int]]
) -> None:
    servers(ServerLostError("gone"), RemoteError("no server of key"), count=1)
    report = measure_remotely(device, jobs_of(range(3)), SETTINGS)
    assert all(str(one.error).startswith(LOST) for one in report.results)
    assert all("no server of key" in str(one.error) for one in report.results)


def test_a_server_that_does_not_fit_is_refused(
    device: Device, servers: Callable[..., list[int]]
) -> None:
    servers(RemoteError("another machine"))
    with pytest.raises(RemoteError, match="another machine"):
        measure_remotely(device, jobs_of(range(8)), SETTINGS)
    other = dataclasses.replace(device, cpu_model="Another")
    servers()
    with pytest.raises(RemoteError, match=r"does not fit: device 'board' is another machine"):
        measure_remotely(other, jobs_of(range(8)), SETTINGS)


def test_an_impossible_measurement_is_an_error(
    device: Device, servers: Callable[..., list[int]]
) -> None:
    servers(MeasurementError("emulated"))
    with pytest.raises(MeasurementError, match="emulated"):
        measure_remotely(device, jobs_of(range(8)), SETTINGS)


def test_nothing_to_measure_needs_no_server(device: Device) -> None:
    assert measure_remotely(device, [], SETTINGS).results == ()


def test_losing_servers_does_not_make_a_kernel_hopeless(store: Store, device: Device) -> None:
    store.add_device(device)
    recorder = Recorder(device.name)
    code_hash = recorder.provenance.code_hash
    for session in ("first", "second"):
        store.add_measurements(
            dataclasses.replace(
                kernel_record("board", workload(number), "{}", (), code_hash, error),
                session=session,
            )
            for number, error in enumerate((f"{LOST}: none", "stopped with status -4"))
        )
    assert set(failed_kernels(store, "board")) == {workload(1)}


def test_records_tell_where_they_were_measured(device: Device) -> None:
    place = Place("pi", "runner, Linux aarch64", QUIET)
    recorder = Recorder(device.name)
    result = TimingResult((1.0,), place=place)
    other = dataclasses.replace(QUIET, load_average=9.0)
    record = recorder.kernel(workload(0), _Schedule(), result, other)  # type: ignore[arg-type]
    assert (record.provenance.host, record.provenance.runtime) == ("pi", "runner, Linux aarch64")
    assert record.environment == QUIET
    here = recorder.kernel(workload(0), _Schedule(), TimingResult((1.0,)), other)  # type: ignore[arg-type]
    assert (here.provenance, here.environment) == (recorder.provenance, other)


class _Schedule:
    def to_text(self) -> str:
        return "{}"


def test_a_remote_device_is_measured_from_any_machine(device: Device) -> None:
    foreign = dataclasses.replace(device, cpu_model="Another")
    assert obstacle_to_measuring(foreign, probe_local()) is None
    assert own_cache_of(device) == 1 << 19


def test_a_request_survives_its_line() -> None:
    request = Request("h", 1, "k", {"a": "b c"}, ("./a", "--x"), {"y": "/z"}, 2, 10, 0.5)
    assert Request.from_line(request.to_line()) == request


def test_the_script_names_files_as_they_are_called_there(device: Device, tmp_path: Path) -> None:
    files = {remote.HARNESS: tmp_path / "harness-x"}
    program = remote._RemoteProgram(device, files, SETTINGS)
    jobs: list[Job] = [
        KernelJob(tmp_path / "a b.so", "k", workload(0)),
        NetworkJob(tmp_path / "c.so"),
    ]
    line, *script = program.script(jobs, SETTINGS, Sentinels()).splitlines()
    uploads = Request.from_line(line).uploads
    for job, text in zip(jobs, script[-3:-1], strict=True):
        name = text.split()[-1]
        assert uploads[name.removeprefix("./")] == str(job.library)
    assert script[-1] == "run"
    assert not any(str(tmp_path) in text for text in script)

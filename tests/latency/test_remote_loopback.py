"""The whole way over a tracker and servers on loopback, and what their ends cost."""

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tvm

from bignas.compile.bundle import RUNNER, Bundle
from bignas.compile.emulator import PACKAGE, emulator_of
from bignas.compile.objects import ObjectCache
from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError, RemoteError
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.store import Store
from bignas.latency import local, remote
from bignas.latency.bench import PROCESSES, bench_bundle
from bignas.latency.harness import build_harness
from bignas.latency.jobs import NetworkJob, Settings
from bignas.latency.measuring import measure_on
from bignas.latency.profile import profile_space, space_workloads
from bignas.latency.protocol import SILENT
from bignas.latency.remote import LOST, describe_remote, measure_remotely, run_remotely
from bignas.latency.remote_bundle import BundleRunner, verify_on
from bignas.latency.tuned import tuned_kernels
from bignas.supernet.spaces import load_space
from tests.compile.bundles import child_bundle
from tests.compile.tools import FOREIGN, require_command, require_cross_tools
from tests.latency.rpc_network import HOST, KEY, Network, network
from tests.latency.test_protocol import KERNELS, NETWORK, kernels, link
from tests.latency.tiny import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = Settings(rounds=4, sample_us=20.0, stall_seconds=5.0)
LONG = Settings(rounds=400, sample_us=2000.0, stall_seconds=5.0)
ENDLESS = Settings(rounds=100_000, sample_us=2000.0, stall_seconds=5.0)  # something else ends it


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Two servers that no test ends."""
    with network(tmp_path_factory.mktemp("network"), servers=2) as opened:
        yield opened


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Network]:
    """Two servers to be ended."""
    with network(tmp_path, servers=2) as opened:
        yield opened


def board(opened: Network, name: str = "board") -> Device:
    return describe_remote(name, HOST, opened.port, KEY, probe_local().target, threads=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(KERNELS, tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(NETWORK, tmp_path_factory.mktemp("networks") / "network.so")


def harnesses() -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["exe", "status"])
        if str(one.info["exe"]).endswith("/harness") and one.info["status"] != "zombie"
    ]


def test_a_machine_is_described_through_rpc(shared: Network) -> None:
    device = board(shared)
    here = probe_local()
    assert dataclasses.replace(device, name="local", remote=None) == here
    assert device.remote is not None
    assert device.remote.own_cache_bytes == local.own_cache_bytes()


def test_crashing_and_hanging_kernels_cost_nobody_else(
    shared: Network, library: Path, subnet: Path
) -> None:
    jobs = [*kernels(library, "fast", "illegal", "endless", "invalid", "nope"), NetworkJob(subnet)]
    report = measure_on(board(shared), jobs, QUICK)
    assert [len(one.samples_ns) for one in report.results] == [4, 0, 0, 0, 0, 4]
    errors = [str(one.error) for one in report.results]
    assert errors[1] == f"stopped with status -{signal.SIGILL.value}"
    assert errors[2] == SILENT
    assert errors[3] == f"stopped with status -{signal.SIGSEGV.value}"
    assert "undefined symbol" in errors[4]
    assert not harnesses()
    shared.wait_for(2)


def test_a_server_that_is_killed_half_way_is_replaced(own: Network, subnet: Path) -> None:
    """Both servers measure when one of them and all it started is killed."""
    killed = threading.Event()

    def progress(done: int, total: int, rejected: int) -> None:
        if done >= 1 and not killed.is_set():  # of the share that is behind: both are under way
            killed.set()
            own.kill(1)

    report = measure_remotely(board(own), [NetworkJob(subnet)] * 4, LONG, progress)
    assert killed.is_set()
    assert [one.error for one in report.results] == [None] * 4
    assert [len(one.samples_ns) for one in report.results] == [LONG.rounds] * 4
    assert own.count() == 1


def test_profiling_survives_one_server_and_keeps_the_table_when_all_are_gone(
    own: Network, store: Store, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bignas.latency.profile_plan.BATCH", 6)
    device = board(own)
    store.add_device(device)
    known: list[int] = []

    def progress(step: object) -> None:
        known.append(len(tuned_kernels(store, device.name)))
        own.kill(len(known))  # one after the first batch, the other after the second

    with pytest.raises(RemoteError, match="no server of key"):
        profile_space(TINY, device, store, cache, minutes=60.0, progress=progress, subnets=2)
    assert len(known) == 2
    assert 0 < known[0] < known[1] < len(space_workloads(TINY))
    assert len(tuned_kernels(store, device.name)) == known[1]
    records = store.kernel_measurements(device.name)
    assert all(one.ok for one in records)
    assert {one.provenance.host for one in records} == {os.uname().nodename}
    assert store.check_integrity() == []


def test_when_the_only_server_dies_its_jobs_have_failed(
    tmp_path: Path, subnet: Path, store: Store
) -> None:
    with network(tmp_path, servers=1) as opened:

        def progress(done: int, total: int, rejected: int) -> None:
            opened.kill(1)

        report = measure_remotely(board(opened), [NetworkJob(subnet)] * 2, ENDLESS, progress)
    assert all(str(one.error).startswith(LOST) for one in report.results)


def test_a_server_that_falls_silent_is_lost(
    tmp_path: Path, subnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes are stopped, as if the machine had vanished: nothing closes connections."""
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 10.0)
    monkeypatch.setattr(remote, "TRIES", 1)
    with network(tmp_path, servers=1) as opened:
        device = board(opened)

        def progress(done: int, total: int, rejected: int) -> None:
            opened.signal(1, signal.SIGSTOP)

        report = measure_remotely(device, [NetworkJob(subnet)], ENDLESS, progress)
    assert "fell silent" in str(report.results[0].error)


def test_an_interruption_ends_what_runs_there(shared: Network, subnet: Path) -> None:
    def interrupt(done: int, total: int, rejected: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_remotely(board(shared), [NetworkJob(subnet)] * 2, ENDLESS, interrupt)
    assert measure_remotely(board(shared), [NetworkJob(subnet)], QUICK).results[0].error is None
    shared.wait_for(2)  # later than that interruption, when a lost server is no longer counted
    assert not harnesses()


def test_a_server_of_another_version_is_refused(shared: Network, tmp_path: Path) -> None:
    """A copy of TVM whose libraries name an older protocol."""
    package = Path(tvm.__file__).parent
    copy = tmp_path / "old" / "tvm"
    (copy / "lib").mkdir(parents=True)
    for path in package.iterdir():
        if path.suffix == ".py":
            (copy / path.name).write_bytes(path.read_bytes())  # it looks for libraries beside it
        elif path.name != "lib":
            (copy / path.name).symlink_to(path)
    ours = b"\x000.8.0\x00"
    for path in (package / "lib").iterdir():
        data = path.read_bytes() if path.name == "libtvm_runtime.so" else b""
        if data:
            assert data.count(ours) == 1
            (copy / "lib" / path.name).write_bytes(data.replace(ours, b"\x000.7.0\x00"))
        else:
            (copy / "lib" / path.name).symlink_to(path)
    paths = os.pathsep.join([str(copy.parent), os.environ.get("PYTHONPATH", "")])
    number = shared.add_server("old", {"PYTHONPATH": paths})
    shared.wait_for(1, "old")
    with pytest.raises(RemoteError, match=r"another version of TVM.*0\.7\.0") as caught:
        describe_remote("old", HOST, shared.port, "old", probe_local().target, 1)
    assert "\n" not in str(caught.value)
    shared.kill(number)


def test_a_server_of_another_processor_family_is_refused(shared: Network) -> None:
    foreign = PRESETS[FOREIGN[0]]
    require_cross_tools(foreign)
    with pytest.raises(RemoteError, match="cannot load code for this target"):
        describe_remote("foreign", HOST, shared.port, KEY, foreign, 1)


def test_too_many_threads_and_another_machine_are_refused(shared: Network, subnet: Path) -> None:
    target = probe_local().target
    threads = probe_local().cores + 1
    with pytest.raises(RemoteError, match=f"uses {threads} threads"):
        describe_remote("wide", HOST, shared.port, KEY, target, threads)
    other = dataclasses.replace(board(shared), cpu_model="Another processor")
    with pytest.raises(RemoteError, match="is another machine"):
        measure_remotely(other, [NetworkJob(subnet)], QUICK)
    shared.wait_for(2)  # being refused costs no server


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return child_bundle(tmp_path / "bundle", load_space("cifar").smallest())


def test_a_bundle_is_verified_run_and_measured_there(shared: Network, bundle: Bundle) -> None:
    device = board(shared)
    there, here = verify_on(bundle, device), verify_on(bundle, None)
    assert there.ok
    assert (there.top1_agreement, there.images) == (here.top1_agreement, here.images)
    images, _ = bundle.golden()
    scores = BundleRunner(bundle, device).run(images)
    assert (scores == bundle.open_library().run(images)).all()
    latency = bench_bundle(bundle, QUICK, device)
    assert latency.device == device.name
    assert latency.samples == PROCESSES * QUICK.rounds
    ran = run_remotely(device, {RUNNER: bundle.path / RUNNER}, (f"./{RUNNER}", "--input"), {}, 60.0)
    assert ran.status == 2
    assert "error:" in ran.errors


def test_what_an_emulator_ran_is_no_evidence(
    library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The measuring program finds out by itself, wherever it runs."""
    require_command(f"qemu-{probe_local().target.architecture}-static", PACKAGE)
    emulator = emulator_of(probe_local().target) or []
    program = build_harness(probe_local().target)
    script = tmp_path / "emulated"
    script.write_text(f"#!/bin/sh\nexec {' '.join(emulator)} {program}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(local, "build_harness", lambda _: script)
    with pytest.raises(MeasurementError, match="emulator"):
        local.measure(kernels(library, "fast"), QUICK)

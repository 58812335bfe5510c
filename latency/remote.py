"""Measures on other machines: servers of TVM's RPC, which a tracker hands out by their key.

The measuring program and its protocol are those of the machine at hand (latency/protocol.py): the
program is compiled for the device, uploaded with what it measures and started there in a process of
its own, so latencies of both kinds may be compared.

- Servers with the same key count as the same device and share the work. What belongs together stays
  together: all schedules of one kernel are measured on one server, interleaved.
- What a server had when it was lost goes to another one, up to TRIES times; after that, or when
  there is no other, its jobs have failed. A job that crashes or hangs costs its own process there.
- TVM's RPC executes whatever it is sent, and nothing of it is encrypted: it is for loopback and for
  networks that are trusted.
"""

import contextlib
import hashlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from bignas.compile.toolchain import link_shared_library
from bignas.device_db.device import Device, Remote
from bignas.device_db.errors import MeasurementError, RemoteError, ServerLostError
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.measurement import Environment
from bignas.device_db.probe import obstacle_to_measuring
from bignas.device_db.target import Target
from bignas.latency.harness import build_harness, job_lines, setting_lines
from bignas.latency.jobs import Job, KernelJob, Place, Progress, Report, Settings, TimingResult
from bignas.latency.machine import MachineFacts
from bignas.latency.protocol import SILENT, ended_when_silent, measure_with
from bignas.latency.rpc_request import DESCRIBER, LAUNCHER, SIGNALLED, Request, Sign
from bignas.latency.rpc_tracker import Tracker
from bignas.latency.sentinels import Sentinels, references_of

__all__ = [
    "LOST",
    "RemoteRun",
    "count_servers",
    "describe_remote",
    "measure_remotely",
    "run_remotely",
]

LOST: Final = "no RPC server was left to measure it"
TRIES: Final = 3  # servers that may be lost with the same jobs
PATIENCE_SECONDS: Final = 60.0  # beyond that with a program, for what takes time before and after
HARNESS: Final = "harness"
CLIENT: Final = "bignas.latency.rpc_client"
UNKNOWN: Final = Environment(0.0, 0.0, None, 0, (), None)  # of jobs that no machine is left for


def count_servers(remote: Remote) -> int:
    """Return how many servers the tracker knows, at least one.

    Raises:
        RemoteError: the tracker does not answer, or knows no server of that key.
    """
    with Tracker(remote.host, remote.port) as tracker:
        return tracker.count(remote.key)


def describe_remote(
    name: str, host: str, port: int, key: str, target: Target, threads: int
) -> Device:
    """Return the device that the servers of a key are, as one of them describes its machine.

    Raises:
        RemoteError: no tracker, no such key, another version of TVM, a machine of another family of
            processors, without instructions of the target, or with too few cores.
        ToolchainError: no compiler for the target's family, or it failed.
    """
    remote = Remote(host, port, key, own_cache_bytes=1)
    request = _request(remote, _launching_files(target))
    looks = [line for line in _talk(request, "", PATIENCE_SECONDS) if line.startswith(Sign.MACHINE)]
    if not looks:
        raise RemoteError(f"the RPC server of key {key!r} did not describe its machine")
    facts = _facts(looks[0])
    device = replace(
        facts.device,
        name=name,
        target=target,
        threads=threads,
        remote=replace(remote, own_cache_bytes=facts.own_cache_bytes),
    )
    obstacle = _obstacle(device, facts)
    if obstacle is not None:
        raise RemoteError(obstacle)
    return device


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """A program that ended: its exit status (256 + the signal that ended it) and what it wrote."""

    status: int
    output: str
    errors: str


def run_remotely(
    device: Device,
    files: Mapping[str, Path],
    command: Sequence[str],
    downloads: Mapping[str, Path],
    seconds: float,
) -> RemoteRun:
    """Run a program of `files` (by their name there) on a device.

    When its status is 0, files that it wrote are downloaded. It hangs when it writes nothing for so
    many seconds. A lost server is replaced by another one.

    Raises:
        RemoteError: no tracker, no server of the key, or one of another kind.
        MeasurementError: the program hangs, or too many servers were lost.
    """
    request = replace(
        _request(_remote(device), {**_launching_files(device.target), **files}),
        command=tuple(command),
        downloads={name: str(path) for name, path in downloads.items()},
        stall_seconds=seconds,
    )
    for _ in range(TRIES):
        with contextlib.suppress(ServerLostError):
            return _one_run(device, request)
    raise MeasurementError(f"{TRIES} RPC servers of device {device.name!r} were lost in turn")


def _one_run(device: Device, request: Request) -> RemoteRun:
    lines: list[str] = []
    errors = ""
    status: int | None = None
    for line in _talk(request, "", request.stall_seconds + PATIENCE_SECONDS):
        if line.startswith(Sign.MACHINE):
            _require_same(device, _facts(line))
        elif line.startswith(Sign.ENDED):
            status = int(_rest(line))
        elif line.startswith(Sign.ERRORS):
            errors = json.loads(_rest(line))
        elif line.startswith(Sign.HUNG):
            raise MeasurementError(f"the program hangs on device {device.name!r}")
        elif not line.startswith("@"):
            lines.append(line)
    if status is None:
        raise ServerLostError("the client of TVM's RPC ended early")
    return RemoteRun(status, "".join(lines), errors)


def measure_remotely(
    device: Device, jobs: Sequence[Job], settings: Settings, progress: Progress | None = None
) -> Report:
    """Measure jobs on the servers of a device; each gets a share of them.

    `progress` tells of the share that is behind.

    Raises:
        RemoteError: no tracker, no server of the key, or one of another kind.
        MeasurementError: measuring is impossible on the device.
        ToolchainError: no compiler for the target's family, or it failed.
    """
    if not jobs:
        return Report((), 0, 0, UNKNOWN)
    servers = count_servers(_remote(device))
    return _Crew(device, jobs, settings, progress).measure(servers)


@dataclass(frozen=True, slots=True)
class _Share:
    """Jobs, by their number, that one server measures together."""

    number: int
    jobs: tuple[int, ...]
    lost: int = 0  # servers that were lost with it


class _Crew:
    """One measurement, divided among servers. Each is served by a thread, which mostly waits."""

    def __init__(
        self, device: Device, jobs: Sequence[Job], settings: Settings, progress: Progress | None
    ) -> None:
        self._device = device
        self._jobs = jobs
        self._settings = settings
        self._progress = progress
        self._files = {
            **_launching_files(device.target),
            HARNESS: build_harness(device.target),
        }
        self._waiting: queue.SimpleQueue[_Share] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._results: dict[int, TimingResult] = {}
        self._rounds: dict[int, tuple[int, int, int]] = {}
        self._reports: list[Report] = []
        self._refusal: RemoteError | None = None
        self._losses = 0
        self._nowhere = Place(device.name, "none", UNKNOWN)

    def measure(self, servers: int) -> Report:
        """Return the results of all jobs in their order."""
        shares = divide(self._jobs, servers)
        self._rounds = dict.fromkeys(range(len(shares)), (0, 0, 0))
        for number, share in enumerate(shares):
            self._waiting.put(_Share(number, share))
        with ThreadPoolExecutor(len(shares)) as threads:
            futures = [threads.submit(self._serve) for _ in shares]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._cancelled.set()
                raise
        if self._refusal is not None and not self._losses:
            raise self._refusal
        failed = TimingResult(
            (), f"{LOST}: {self._refusal}", Place(self._device.name, "none", UNKNOWN)
        )
        results = [self._results.get(number, failed) for number in range(len(self._jobs))]
        return Report(
            tuple(results),
            rejected=sum(one.rejected for one in self._reports),
            unsettled=sum(one.unsettled for one in self._reports),
            environment=self._reports[0].environment if self._reports else UNKNOWN,
        )

    def _serve(self) -> None:
        """Measure shares until none waits, or no server is left."""
        while not self._cancelled.is_set():
            try:
                share = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._measure(share)
            except ServerLostError as error:
                self._again(share, str(error))
            except RemoteError as error:
                with self._lock:
                    self._refusal = error
                return

    def _measure(self, share: _Share) -> None:
        program = _RemoteProgram(self._device, self._files, self._settings)
        jobs = [self._jobs[number] for number in share.jobs]

        def step(done: int, total: int, rejected: int) -> None:
            self._report_round(share, done, total, rejected)

        found = measure_with(program, jobs, self._settings, step, self._cancelled)
        place = program.place(found.environment)
        with self._lock:
            self._reports.append(found)
            for number, result in zip(share.jobs, found.results, strict=True):
                self._results[number] = replace(result, place=place)

    def _again(self, share: _Share, reason: str) -> None:
        """Let another server do a share, unless too many were lost with it."""
        self._losses += 1
        if share.lost + 1 < TRIES:
            self._waiting.put(replace(share, lost=share.lost + 1))
            return
        error = f"{TRIES} RPC servers were lost while they measured it: {reason}"
        with self._lock:
            for number in share.jobs:
                self._results[number] = TimingResult((), error, self._nowhere)

    def _report_round(self, share: _Share, done: int, total: int, rejected: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._rounds[share.number] = (done, total, rejected)
            dones, totals, rejections = zip(*self._rounds.values(), strict=True)
            self._progress(min(dones), max(totals), sum(rejections))


def divide(jobs: Sequence[Job], parts: int) -> list[tuple[int, ...]]:
    """Divide the numbers of jobs into at most so many parts of similar size, none empty.

    Jobs of one workload stay together, as they are to be compared.
    """
    groups: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault(job.workload if isinstance(job, KernelJob) else number, []).append(number)
    shares: list[list[int]] = [[] for _ in range(min(parts, len(groups)))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return [tuple(sorted(share)) for share in shares]


class _RemoteProgram:
    """The measuring program on some server of a device, for one share of the jobs."""

    def __init__(self, device: Device, files: Mapping[str, Path], settings: Settings) -> None:
        self.command = _CLIENT_COMMAND
        self.references = references_of(device.name, settings)
        self.patience_seconds = settings.stall_seconds + PATIENCE_SECONDS
        self._device = device
        self._files = files
        self._looks: list[MachineFacts] = []
        self._hung = False
        self._lost: str | None = None
        self._status: int | None = None

    def script(self, jobs: Sequence[Job], settings: Settings, sentinels: Sentinels) -> str:
        libraries = [one.library for one in (*jobs, settings.anchor) if one is not None]
        names = {path: f"library{n}.so" for n, path in enumerate(dict.fromkeys(libraries))}
        request = replace(
            _request(
                _remote(self._device),
                {**self._files, **{name: path for path, name in names.items()}},
            ),
            command=(f"./{HARNESS}",),
            threads=settings.threads,
            stall_seconds=settings.stall_seconds,
        )
        lines = job_lines(jobs, settings, lambda path: f"./{names[path]}")
        self._hung, self._lost, self._status = False, None, None
        self._looks = []
        cache_bytes = _remote(self._device).own_cache_bytes
        settled = setting_lines(settings, sentinels, cache_bytes)
        return request.to_line() + "\n".join([*settled, *lines, "run", ""])

    def heed(self, line: str) -> None:
        if line.startswith(Sign.MACHINE):
            facts = _facts(line)
            _require_same(self._device, facts)
            self._looks.append(facts)
        elif line.startswith(Sign.ENDED):
            self._status = int(_rest(line))
        elif line.startswith(Sign.HUNG):
            self._hung = True
        elif line.startswith(Sign.LOST):
            self._lost = _rest(line)
        elif line.startswith(Sign.REFUSED):
            raise RemoteError(_rest(line))

    def ending(self, status: int, silent: bool) -> str:
        if self._hung:
            return SILENT
        if self._status is not None:
            number = self._status
            return f"stopped with status {SIGNALLED - number if number > SIGNALLED else number}"
        if silent:
            raise ServerLostError("the RPC server fell silent")
        raise ServerLostError(self._lost or f"the client of TVM's RPC ended with status {status}")

    def environment(self, switches: int) -> Environment:
        first, last = self._looks[0], self._looks[-1]
        return last.environment_since(first, switches, last.cores_for(self._device.threads))

    def place(self, environment: Environment) -> Place:
        """Return the machine of the last server."""
        last = self._looks[-1]
        return Place(last.node, last.runtime, environment)


_CLIENT_COMMAND: Final = (sys.executable, "-m", CLIENT)


def _talk(request: Request, script: str, patience_seconds: float) -> Iterator[str]:
    """Yield the lines of a client process; one that says nothing for so long is a lost server."""
    process = subprocess.Popen(
        _CLIENT_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    silent = threading.Event()
    with process, ended_when_silent(process, silent, patience_seconds) as alive:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request.to_line() + script)
            process.stdin.close()
        for line in process.stdout:
            alive()
            if line.startswith(Sign.REFUSED):
                raise RemoteError(_rest(line))
            if line.startswith(Sign.LOST):
                raise ServerLostError(_rest(line))
            yield line
    if silent.is_set():
        raise ServerLostError("the RPC server fell silent")


def _remote(device: Device) -> Remote:
    if device.remote is None:
        raise MeasurementError(f"device {device.name!r} is not reached through RPC")
    return device.remote


def _request(remote: Remote, files: Mapping[str, Path] | None = None) -> Request:
    uploads = {name: str(path) for name, path in (files or {}).items()}
    return Request(remote.host, remote.port, remote.key, uploads)


def _launching_files(target: Target) -> dict[str, Path]:
    """Return what every session uploads: the launcher, and the script that describes."""
    folder = resources.files("bignas.latency")
    source = folder.joinpath("launcher.c").read_bytes()
    describer = folder.joinpath(DESCRIBER).read_bytes()

    def link() -> bytes:
        return link_shared_library({"launcher.c": source}, (), target)

    name = f"launcher-{_digest(source)}-{target.architecture}.so"
    return {
        LAUNCHER: _kept(name, link),
        DESCRIBER: _kept(f"machine-{_digest(describer)}.sh", lambda: describer),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _kept(name: str, make: Callable[[], bytes]) -> Path:
    """Return a derived file of the cache, made when it is missing."""
    path = cache_folder() / name
    if not path.exists():
        write_atomically(path, make())
    return path


def _require_same(device: Device, facts: MachineFacts) -> None:
    obstacle = _obstacle(device, facts)
    if obstacle is not None:
        raise RemoteError(obstacle)


def _obstacle(device: Device, facts: MachineFacts) -> str | None:
    """Return why a server's machine is not the device, None if it is."""
    obstacle = obstacle_to_measuring(replace(device, remote=None), facts.device)
    if obstacle is None:
        return None
    return f"the RPC server on {facts.node} ({facts.device.cpu_model}) does not fit: {obstacle}"


def _rest(line: str) -> str:
    return line.partition(" ")[2].strip()


def _facts(line: str) -> MachineFacts:
    return MachineFacts.parse(json.loads(_rest(line)))

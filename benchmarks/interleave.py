"""Times processes in turn: one runs while all others are stopped.

Worker threads that spin while they wait for work, and thread pools that wake up, would disturb the
next engine. So every engine has a process of its own, on the same cores, and only the one that is
asked for a sample is not stopped by SIGSTOP. The order is drawn anew in each round.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["WorkerCommand", "WorkerError", "run_worker", "sample_in_turn"]

LOG_LINES = 5


class WorkerError(Exception):
    """A worker process ended or said something else than a number."""


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How to start a worker: its command, environment variables, and a file for what it prints.

    The worker replies with one JSON line when it is ready, and with {"us": microseconds} to each
    line that it is sent.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


def sample_in_turn(
    workers: Mapping[str, WorkerCommand], rounds: int, cores: Sequence[int], seed: int = 3
) -> dict[str, list[float]]:
    """Return `rounds` samples of each worker, in microseconds, all pinned to the same cores.

    Raises:
        WorkerError: a worker failed; the message ends with the last lines of its log.
    """
    samples: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    order = np.random.default_rng(seed)
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(_started(command, cores)) for name, command in workers.items()
        }
        for _ in range(rounds):
            for index in order.permutation(len(names)):
                name = names[int(index)]
                samples[name].append(running[name].sample_us())
    return samples


def run_worker(worker: WorkerCommand) -> None:
    """Run a worker to its end, without requests.

    Raises:
        WorkerError: it failed; the message ends with the last lines of its log.
    """
    with _log(worker) as log:
        result = subprocess.run(
            list(worker.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(worker.environment),
            check=False,
        )
    if result.returncode:
        raise WorkerError(_failure(worker))


class _Worker:
    """A started worker, stopped except while it works."""

    def __init__(self, command: WorkerCommand, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.command = command
        self.process = process
        self.requests: IO[str] = process.stdin
        self.replies: IO[str] = process.stdout

    def sample_us(self) -> float:
        """Let the worker go on, ask for a sample, and stop it again."""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.requests.write("\n")
            self.requests.flush()
        us = self.reply().get("us")
        self.stop()
        if not isinstance(us, float) or us <= 0.0:
            raise WorkerError(f"no microseconds: {_failure(self.command)}")
        return us

    def reply(self) -> dict[str, Any]:
        """Wait for the next reply."""
        line = self.replies.readline()
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise WorkerError(_failure(self.command))
        return content

    def stop(self) -> None:
        """Stop the process with all its threads, and wait until it is."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


@contextlib.contextmanager
def _started(worker: WorkerCommand, cores: Sequence[int]) -> Iterator[_Worker]:
    """Start a worker and yield it when it is ready, stopped."""
    with _log(worker) as log, _pinned(cores):
        process = subprocess.Popen(
            list(worker.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=dict(worker.environment),
        )
    try:
        running = _Worker(worker, process)
        running.reply()
        running.stop()
        yield running
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and the processes it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _log(worker: WorkerCommand) -> IO[str]:
    worker.log.parent.mkdir(parents=True, exist_ok=True)
    return worker.log.open("w", encoding="utf-8")


def _failure(worker: WorkerCommand) -> str:
    lines = worker.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"a worker failed: {' '.join(worker.command)}", *lines[-LOG_LINES:]])

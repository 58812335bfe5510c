"""A tracker and servers of TVM's RPC on loopback, each with all its processes in a group."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bignas.device_db.errors import RemoteError
from bignas.latency.rpc_tracker import Tracker

HOST = "127.0.0.1"
KEY = "bench"
START_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


class Network:
    """What was started; `kill` ends one server with everything it started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("rpc_tracker", "--port", str(self.port), "--port-end", str(self.port + 1))

    def add_server(self, key: str = KEY, environment: Mapping[str, str] | None = None) -> int:
        """Start a server and return its number."""
        port = free_port()
        arguments = ("--port", str(port), "--port-end", str(port + 1), "--key", key)
        tracker = f"{HOST}:{self.port}"
        self._start("rpc_server", *arguments, "--tracker", tracker, environment=environment)
        return len(self._processes) - 1

    def _start(
        self, program: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        log = self._folder / f"{program}-{len(self._processes)}.log"
        with log.open("wb") as file:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"tvm.exec.{program}", "--host", HOST, *arguments],
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **(environment or {})},
                    cwd=self._folder,
                    start_new_session=True,
                )
            )

    def wait_for(self, servers: int, key: str = KEY) -> None:
        """Wait until so many servers of a key are registered."""
        deadline = time.monotonic() + START_SECONDS
        while self.count(key) != servers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.count(key)} of {servers} servers of {key}")
            time.sleep(0.2)

    def count(self, key: str = KEY) -> int:
        """Return how many servers of a key are registered."""
        with contextlib.suppress(RemoteError), Tracker(HOST, self.port) as tracker:
            return tracker.count(key)
        return 0

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to all processes of a server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[number].pid, what)

    def kill(self, number: int) -> None:
        """End a server with everything it started, as a power cut would."""
        self.signal(number, signal.SIGKILL)
        self._processes[number].wait()

    def close(self) -> None:
        """End everything."""
        for number in reversed(range(len(self._processes))):
            self.kill(number)


@contextlib.contextmanager
def network(folder: Path, servers: int) -> Iterator[Network]:
    """Give a tracker with so many servers, ready to be used."""
    opened = Network(folder)
    try:
        while not opened.count() and servers:  # the tracker first: servers retry every 5 seconds
            with contextlib.suppress(RemoteError), Tracker(HOST, opened.port):
                break
            time.sleep(0.2)
        for _ in range(servers):
            opened.add_server()
        if servers:
            opened.wait_for(servers)
        yield opened
    finally:
        opened.close()

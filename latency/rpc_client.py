"""The program that talks to one server of TVM's RPC, in a process of its own.

`python -m bignas.latency.rpc_client` reads a request (JSON, one line) and then what the remote
program is to read. It asks the tracker for a free server of the key, uploads the files, lets
launcher.c start the program there, and passes its output on, line by line. So whoever measures has
the same kind of process before it, wherever the program runs, and can end it when it says nothing:
calls of TVM's client wait for ever when the other machine has vanished.

What is about the server, and not the program's own, is said in lines that begin with a `Sign`.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tvm import rpc

from bignas.device_db.errors import BignasError, RemoteError, ServerLostError
from bignas.latency.machine import MachineFacts
from bignas.latency.rpc_request import DESCRIBER, LAUNCHER, Request, Sign
from bignas.latency.rpc_tracker import Tracker

__all__ = ["main"]

POLL_MILLISECONDS: Final = 500
DESCRIBING_SECONDS: Final = 30
RUNNING: Final = -1  # of launcher.c
CANNOT_RUN: Final = 127
_MISMATCH: Final = "protocol version mismatch"  # in TVM's message about it
_OLD_LIBRARY: Final = "GLIBC_"  # in that of a dynamic linker


class _Session:
    """The files and the program of one request on one server; use it as a context manager.

    Its end must be in order, between two calls: TVM's server (tvm/rpc/server.py) stops serving for
    good when a connection is reset. So `ending` is looked at after each one.
    """

    def __init__(
        self, request: Request, host: str, port: int, word: str, ending: "_Ending"
    ) -> None:
        self._request = request
        self._ending = ending
        self._place = f"{host}:{port}"
        with self._errors():
            self._remote = rpc.connect(host, port, word, session_timeout=request.session_seconds)
            _say(Sign.ALIVE)
            self._folder = self._remote.get_function("tvm.rpc.server.workpath")("")
        for name, path in request.uploads.items():
            with self._errors():
                self._remote.upload(path, name)
            _say(Sign.ALIVE)
        self._start, self._wait, self._stop = self._load()

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_: object) -> None:
        del self._start, self._wait, self._stop
        del self._remote  # the last reference to the connection says good-bye to the server

    def describe(self) -> MachineFacts:
        """Print what the machine is and does, and return it."""
        status = self._run(("/bin/sh", DESCRIBER), DESCRIBING_SECONDS)
        text = self._download("output").decode(errors="replace")
        if status:
            raise RemoteError(f"the RPC server {self._place} cannot run {DESCRIBER}: {status}")
        _say(Sign.MACHINE, json.dumps(text))
        return MachineFacts.parse(text)

    def run(self, script: str) -> None:
        """Run the program of the request, passing on what it writes."""
        self._begin(self._request.command, script, self._request.session_seconds)
        passed, silent_since = 0, time.monotonic()
        while True:
            with self._errors():
                status = int(self._wait(POLL_MILLISECONDS))
            whole = self._download("output")
            written = whole if status != RUNNING else whole[: whole.rfind(b"\n") + 1]
            if len(written) > passed:
                _write(written[passed:].decode(errors="replace"))
                passed, silent_since = len(written), time.monotonic()
            _say(Sign.ALIVE)
            if status != RUNNING:
                break
            if time.monotonic() - silent_since > self._request.stall_seconds:
                with self._errors():
                    self._stop()
                    self._wait(POLL_MILLISECONDS)
                _say(Sign.HUNG)
                return
        self._check(status)
        for name, path in self._request.downloads.items():
            if not status:
                Path(path).write_bytes(self._download(name))
        _say(Sign.ENDED, str(status))

    def _check(self, status: int) -> None:
        """Tell why a program failed; refuse a server that cannot start it at all."""
        if not status:
            return
        errors = self._download("errors").decode(errors="replace")
        reason = " ".join(errors.split())
        if _OLD_LIBRARY in reason:
            raise RemoteError(
                f"the C library of the RPC server {self._place} is older than the one that"
                f" programs are linked with here: {reason}"
            )
        if status == CANNOT_RUN:
            raise RemoteError(f"the RPC server {self._place} cannot run programs: {reason}")
        _say(Sign.ERRORS, json.dumps(errors))

    def _run(self, command: tuple[str, ...], seconds: int) -> int:
        self._begin(command, "", seconds)
        status, deadline = RUNNING, time.monotonic() + seconds + 1
        while status == RUNNING and time.monotonic() < deadline:
            with self._errors():
                status = int(self._wait(POLL_MILLISECONDS))
        return status

    def _begin(self, command: tuple[str, ...], script: str, seconds: int) -> None:
        with self._errors():
            # a file of no bytes cannot be uploaded
            self._remote.upload(bytearray((script or "\n").encode()), "input")
            self._remote.upload(bytearray("\n".join(command).encode()), "command")
            error = int(self._start(self._folder, seconds))
        if error:
            raise ServerLostError(
                f"the RPC server {self._place} cannot start programs: error {error}"
            )

    def _download(self, name: str) -> bytes:
        with self._errors():
            return bytes(self._remote.download(name))

    def _load(self) -> tuple[Any, Any, Any]:
        try:
            module = self._remote.load_module(LAUNCHER)
            return module["bignas_start"], module["bignas_wait"], module["bignas_stop"]
        except (RuntimeError, AttributeError, OSError) as error:
            raise RemoteError(
                f"the RPC server {self._place} cannot load code for this target: {_text(error)}"
            ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of TVM's client into ours; only those of different versions are hopeless."""
        try:
            yield
        except (RuntimeError, AttributeError, OSError, ValueError) as error:
            if _MISMATCH in str(error):
                raise RemoteError(
                    f"the RPC server {self._place} runs another version of TVM:"
                    f" {_text(error).rpartition('server  ')[2]}"
                ) from None
            raise ServerLostError(f"the RPC server {self._place} fails: {_text(error)}") from None
        self._ending.heed()


def _text(error: BaseException) -> str:
    """Return the message of an error in one line, without the trace that TVM's bring."""
    lines = [one.strip() for one in str(error).splitlines() if one.strip()]
    return lines[-1] if lines else type(error).__name__


def _say(sign: Sign, text: str = "") -> None:
    _write(f"{sign} {text}\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Ending:
    """Whether SIGTERM came. Its handler raises nothing: TVM's client calls it inside of a call."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self._asked = True

    def heed(self) -> None:
        """End the program if it is asked to."""
        if self._asked:
            raise SystemExit(1)


def _serve(request: Request, script: str, ending: _Ending) -> None:
    def waiting() -> None:
        _say(Sign.ALIVE)
        ending.heed()

    with Tracker(request.host, request.port) as tracker:
        tracker.count(request.key)
        place = tracker.request(request.key, waiting)
    with _Session(request, *place, ending) as session:
        facts = session.describe()
        if not request.command:
            return
        cores = facts.cores_for(request.threads) if request.threads else ()
        session.run("".join(f"cpu {core}\n" for core in cores) + script)
        session.describe()


def main() -> None:
    """Read a request and the program's input, and do it."""
    ending = _Ending()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    request = Request.from_line(sys.stdin.readline())
    try:
        _serve(request, sys.stdin.read(), ending)
    except ServerLostError as error:
        _say(Sign.LOST, str(error))
    except BignasError as error:
        _say(Sign.REFUSED, str(error))


if __name__ == "__main__":
    main()

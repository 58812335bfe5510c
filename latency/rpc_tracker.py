"""Asks a tracker of TVM's RPC for servers, in its own messages: a length, then JSON.

TVM's client for it (tvm/rpc/client.py) waits for ever, and importing it takes a second; these are
the messages that are needed, with time limits.
"""

import contextlib
import json
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final

from bignas.device_db.errors import RemoteError, ServerLostError

__all__ = ["Tracker", "parse_tracker"]

MAGIC: Final = 0x2F271  # what both sides say first
LONGEST_MESSAGE: Final = 1 << 20
CONNECT_SECONDS: Final = 10.0
QUEUE_SECONDS: Final = 300.0  # others' measurements end within minutes
BEAT_SECONDS: Final = 2.0
_SERVER: Final = "server:"
_LENGTH: Final = struct.Struct("<i")


class _Code(IntEnum):
    """Of messages and answers, as in tvm/rpc/base.py."""

    SUCCESS = 0
    REQUEST = 4
    SUMMARY = 6


def parse_tracker(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an address of IPv6 stands in brackets.

    Raises:
        RemoteError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise RemoteError(f"{text!r} is no address of an RPC tracker, expected HOST:PORT")
    return host, int(port)


class Tracker:
    """A connection to a tracker; use it as a context manager.

    Raises:
        RemoteError: nothing answers there in time, or what answers is no tracker.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._place = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except (OSError, OverflowError, UnicodeError) as error:
            raise RemoteError(
                f"cannot reach an RPC tracker at {self._place}: {_reason(error)}"
            ) from error
        try:
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def count(self, key: str) -> int:
        """Return how many servers of the key there are, free or not; at least one.

        Raises:
            RemoteError: there is none; the message lists the keys that there are.
        """
        with self._errors():
            self._send([_Code.SUMMARY])
            entries = self._answer()["server_info"]
            keys = [str(one["key"]).removeprefix(_SERVER) for one in entries]
        if key not in keys:
            known = ", ".join(sorted(set(keys))) or "none"
            raise RemoteError(
                f"no server of key {key!r} is registered at the RPC tracker {self._place};"
                f" keys there: {known}"
            )
        return keys.count(key)

    def request(self, key: str, waiting: Callable[[], None]) -> tuple[str, int, str]:
        """Return host, port and password of a free server; `waiting` is called until there is one.

        Raises:
            RemoteError: there is no server of the key any more.
            ServerLostError: none became free.
        """
        deadline = time.monotonic() + QUEUE_SECONDS
        with self._errors():
            self._send([_Code.REQUEST, key, "", 1])
            while not select.select([self._socket], [], [], BEAT_SECONDS)[0]:
                waiting()
                with Tracker(self._host, self._port) as other:
                    other.count(key)
                if time.monotonic() > deadline:
                    raise ServerLostError(
                        f"no RPC server of key {key!r} was free for {QUEUE_SECONDS:.0f} s"
                    )
            host, port, password = self._answer()
            return str(host), int(port), str(password)

    def _greet(self) -> None:
        with self._errors():
            self._socket.sendall(_LENGTH.pack(MAGIC))
            (magic,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        if magic != MAGIC:
            raise RemoteError(f"what answers at {self._place} is no RPC tracker")

    def _send(self, message: list[Any]) -> None:
        data = json.dumps(message).encode()
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def _answer(self) -> Any:
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        if not 0 < length <= LONGEST_MESSAGE:
            raise ValueError(f"a message of {length} bytes")
        code, value = json.loads(self._receive(length))
        if code != _Code.SUCCESS:
            raise ValueError(f"it answers with code {code}")
        return value

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError("it closed the connection")
            data += part
        return data

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RemoteError(
                f"what answers at {self._place} does not speak as an RPC tracker: {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""What answers like a tracker of TVM's RPC, or like something else."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bignas.latency.rpc_tracker import MAGIC
from tests.latency.rpc_network import HOST

HELLO = struct.pack("<i", MAGIC)


def packed(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<i", len(data)) + data


def summary(*keys: str) -> bytes:
    servers = [{"key": f"server:{key}", "addr": [HOST, 1]} for key in keys]
    return packed([0, {"queue_info": {}, "server_info": servers}])


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """Give the port of a process that sends one answer for each message, then hangs up."""

    def serve(listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    for answer in answers:
                        if not connection.recv(1 << 16):
                            break
                        connection.sendall(answer)

    listener = socket.create_server((HOST, 0))
    thread = threading.Thread(target=serve, args=(listener,), daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

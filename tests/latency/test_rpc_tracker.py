"""What is asked of a tracker, and everything that may answer instead of one."""

import socket
import struct
import threading
from collections.abc import Callable

import pytest

from bignas.device_db.errors import InputError, RemoteError
from bignas.latency import rpc_tracker
from bignas.latency.rpc_tracker import Tracker, parse_tracker
from tests.latency.fake_tracker import HELLO, answering, packed, summary
from tests.latency.rpc_network import HOST, free_port


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as caught:
        action()
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def count(port: int, key: str = "a") -> int:
    with Tracker(HOST, port) as tracker:
        return tracker.count(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pi.local:9190", ("pi.local", 9190)),
        ("[::1]:80", ("::1", 80)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_an_address_is_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_tracker(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", ":9190", "host:port", "host:-1", "host:१"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert "HOST:PORT" in refusal(lambda: parse_tracker(text))


@pytest.mark.parametrize("host", [HOST, "no.such.host.invalid", "a" * 300])
def test_a_host_that_cannot_be_reached_is_refused(host: str) -> None:
    assert "cannot reach" in refusal(lambda: Tracker(host, free_port()))


def test_servers_of_a_key_are_counted() -> None:
    with answering(HELLO, summary("a", "b", "a")) as port:
        assert count(port) == 2


def test_an_unknown_key_names_the_known_ones() -> None:
    with answering(HELLO, summary("pi5", "pi4", "pi4")) as port:
        assert "keys there: pi4, pi5" in refusal(lambda: count(port))
    with answering(HELLO, summary()) as port:
        assert "keys there: none" in refusal(lambda: count(port))


@pytest.mark.parametrize(
    "answers",
    [
        (),
        (b"HTTP/1.1 400 Bad Request",),
        (HELLO,),
        (HELLO, b"\x05"),
        (HELLO, struct.pack("<i", -4)),
        (HELLO, struct.pack("<i", 1 << 30)),
        (HELLO, struct.pack("<i", 3) + b"abc"),
        (HELLO, packed([1, {}])),
        (HELLO, packed([0, {}])),
        (HELLO, packed([0, {"server_info": [{"addr": 1}]}])),
        (HELLO, packed(7)),
    ],
)
def test_what_is_no_tracker_is_refused(answers: tuple[bytes, ...]) -> None:
    with answering(*answers) as port:
        assert "tracker" in refusal(lambda: count(port))


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_tracker, "CONNECT_SECONDS", 0.2)
    with socket.create_server((HOST, 0)) as listener:
        assert "timed out" in refusal(lambda: Tracker(HOST, listener.getsockname()[1]))


def test_a_free_server_is_handed_out() -> None:
    with (
        answering(HELLO, packed([0, ["10.0.0.7", 9090, "a:0.5"]])) as port,
        Tracker(HOST, port) as tracker,
    ):
        assert tracker.request("a", lambda: None) == ("10.0.0.7", 9090, "a:0.5")


def test_waiting_ends_when_the_last_server_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that waits gets no answer; the next one is told that there is no server."""
    monkeypatch.setattr(rpc_tracker, "BEAT_SECONDS", 0.05)
    with socket.create_server((HOST, 0)) as silent:
        connections: list[socket.socket] = []

        def serve() -> None:
            for answers in ((HELLO,), (HELLO, summary("other"))):
                connection, _ = silent.accept()
                connections.append(connection)
                for answer in answers:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        beats: list[int] = []
        with Tracker(HOST, silent.getsockname()[1]) as tracker:
            assert "other" in refusal(lambda: tracker.request("a", lambda: beats.append(1)))
        assert beats
        thread.join()
        for one in connections:
            one.close()

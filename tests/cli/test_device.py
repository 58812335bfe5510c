"""bignas device."""

import json
from pathlib import Path

import pytest

from bignas.device_db.device import Remote
from bignas.device_db.presets import PRESETS
from bignas.device_db.probe import probe_local
from bignas.device_db.store import Store
from tests.cli.helpers import refused, run, run_json
from tests.device_db import samples
from tests.device_db.samples import kernel
from tests.latency.fake_tracker import HELLO, answering, summary
from tests.latency.rpc_network import HOST, free_port


def test_local_always_exists() -> None:
    assert run_json("device", "list") == [probe_local().to_dict()]
    shown = run_json("device", "show", "local")
    assert (shown["name"], shown["threads"], shown["kernel_measurements"]) == ("local", 1, 0)
    assert probe_local().target.cpu in run("device", "show", "local").stdout
    assert "local" in run("device", "list").stdout


def test_a_device_is_added_by_preset_or_triple() -> None:
    here = probe_local()
    added = run_json("device", "add", "same", "--threads", "2")
    assert (added["target"], added["cores"], added["threads"]) == (
        here.target.to_dict(),
        here.cores,
        2,
    )
    added = run_json("device", "add", "board", "--target", "cortex-a72", "--memory-mb", "512")
    assert added["target"] == PRESETS["cortex-a72"].to_dict()
    assert (added["cpu_model"], added["memory_bytes"]) == ("cortex-a72", 512 << 20)
    arguments = ("--target", "riscv64-linux-gnu", "--cpu", "generic-rv64", "--feature", "+v")
    added = run_json("device", "add", "risc", *arguments)
    assert added["target"]["features"] == ["+v"]
    assert [one["name"] for one in run_json("device", "list")] == ["board", "local", "risc", "same"]


def test_what_is_no_device_is_refused() -> None:
    run("device", "add", "other")
    assert "known devices: local, other" in refused("device", "show", "nobody")
    assert "nobody" in refused("device", "export", "nobody")
    assert "this machine" in refused("device", "add", "local")
    assert "cortex-a72" in refused("device", "add", "x", "--target", "nonsense")
    assert "--cpu" in refused("device", "add", "x", "--target", "aarch64-linux-gnu")
    assert "sparc" in refused("device", "add", "x", "--target", "sparc-linux-gnu", "--cpu", "v9")
    assert "feature" in refused("device", "add", "x", "--feature", "avx2")
    assert "malformed device name" in refused("device", "add", "a/b")
    assert "'other' already" in refused("device", "add", "other", "--threads", "4")
    assert run("device", "add", "other", "--threads", "4", "--replace").exit_code == 0


def test_a_device_travels_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("device", "add", "board", "--target", "cortex-a72")
    with Store.open() as store:
        store.add_measurements([kernel(name="board")])
    exported = run_json("device", "export", "board")
    assert json.loads(run("device", "export", "board").stdout) == exported
    written = run_json("device", "export", "board", "--out", "board.json")
    assert written["measurements"] == 1
    assert json.loads(Path("board.json").read_text()) == exported
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{tmp_path / 'another.sqlite'}")
    assert run_json("device", "import", "board.json", "--name", "second")["name"] == "second"
    assert run_json("device", "show", "second")["kernel_measurements"] == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"format": "bignas-device"}'])
def test_a_file_that_is_no_device_is_refused(content: bytes) -> None:
    Path("bad.json").write_bytes(content)
    refused("device", "import", "bad.json")
    assert "missing.json" in refused("device", "import", "missing.json")
    assert len(run_json("device", "list")) == 1


def test_a_remote_device_that_cannot_be_reached_is_refused() -> None:
    add = ("device", "add", "pi", "--target", "cortex-a72", "--key", "pi4", "--rpc")
    assert "cannot reach" in refused(*add, f"{HOST}:{free_port()}")
    assert "HOST:PORT" in refused(*add, "nowhere")
    with answering(b"HTTP/1.1 400 Bad Request") as port:
        assert "no RPC tracker" in refused(*add, f"{HOST}:{port}")
    with answering(HELLO, summary("pi5")) as port:
        assert "keys there: pi5" in refused(*add, f"{HOST}:{port}")
    assert len(run_json("device", "list")) == 1


def test_options_of_a_remote_device_belong_together() -> None:
    assert "belong together" in refused("device", "add", "pi", "--rpc", "a:1", "--key", "k")
    assert "belong together" in refused("device", "add", "pi", "--key", "k")
    add = ("device", "add", "pi", "--rpc", "a:1", "--key", "k", "--target", "cortex-a72")
    assert "the machine tells" in refused(*add, "--cores", "4")
    assert "malformed RPC key" in refused(*add[:5], "--key", "a b", *add[7:])


def test_commands_refuse_a_remote_device_without_servers(space_file: Path, bundle: Path) -> None:
    with Store.open() as store:
        store.add_device(samples.device("pi", remote=Remote(HOST, free_port(), "pi4", 1 << 20)))
    assert "key pi4" in run("device", "show", "pi").stdout
    for command in (
        ("profile", space_file),
        ("predictor", "evaluate", space_file),
        ("bench", bundle),
        ("verify", bundle),
    ):
        assert "cannot reach" in refused(*command, "--device", "pi")

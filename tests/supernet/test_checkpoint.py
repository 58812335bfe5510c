"""Checkpoints come back as they were, and everything else is refused in one line."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bignas.device_db.errors import CheckpointError
from bignas.supernet.checkpoint import (
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    shipped_checkpoints,
    write_tensors,
)
from bignas.supernet.data import ImageData
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace


@pytest.fixture
def checkpoint(tiny_space: SearchSpace) -> Checkpoint:
    return Checkpoint(
        tiny_space,
        Supernet(tiny_space, seed=4).state_dict(),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        tuple(map(str, range(10))),
        "toy",
        "digest",
        7,
        1,
        {"seed": 4},
    )


def test_round_trip(checkpoint: Checkpoint, out: Path) -> None:
    save_checkpoint(out, checkpoint)
    first = out.read_bytes()
    network, again = load_checkpoint(str(out))
    for item in dataclasses.fields(Checkpoint):
        if item.name != "weights":
            assert getattr(again, item.name) == getattr(checkpoint, item.name)
    for name, value in network.state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])
    save_checkpoint(out, again)
    assert out.read_bytes() == first


def test_halved_weights_are_rounded_once(checkpoint: Checkpoint, out: Path) -> None:
    save_checkpoint(out, checkpoint)
    whole = out.stat().st_size
    save_checkpoint(out, checkpoint, halved=True)
    first = out.read_bytes()
    assert len(first) < 0.75 * whole  # descriptions are not halved
    again = read_checkpoint(out)
    assert again.digest != checkpoint.digest
    for name, value in again.weights.items():
        assert value.dtype is torch.float32
        assert torch.equal(value, checkpoint.weights[name].half().float())
    save_checkpoint(out, again, halved=True)
    assert out.read_bytes() == first
    save_checkpoint(out, again)
    assert read_checkpoint(out).digest == again.digest


def test_weights_beyond_float16_are_not_halved(checkpoint: Checkpoint, out: Path) -> None:
    name = next(iter(checkpoint.weights))
    weights = {**checkpoint.weights, name: torch.full_like(checkpoint.weights[name], 1e5)}
    with pytest.raises(CheckpointError, match="too large for float16"):
        save_checkpoint(out, dataclasses.replace(checkpoint, weights=weights), halved=True)
    assert not out.exists()


def test_what_is_no_checkpoint(checkpoint: Checkpoint, out: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(out)
    save_checkpoint(out, checkpoint)
    content = out.read_bytes()
    for broken in (b"", b"PK\x03\x04 zip", content[:100], content[:-10]):
        out.write_bytes(broken)
        with pytest.raises(CheckpointError, match="not a readable checkpoint") as caught:
            load_checkpoint(out)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        load_checkpoint(out.parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "training state"}, "not a bignas supernet"),
        ({"format": 2}, "format 2"),
        ({"space": {"name": "x"}}, "malformed"),
        ({"step": None}, "malformed"),
    ],
)
def test_foreign_and_newer_files(
    checkpoint: Checkpoint, out: Path, change: dict[str, object], words: str
) -> None:
    save_checkpoint(out, checkpoint)
    with safetensors.safe_open(out, "pt") as file:
        header = json.loads(file.metadata()["bignas"]) | change
    weights = {name: value.contiguous() for name, value in checkpoint.weights.items()}
    safetensors.torch.save_file(weights, out, {"bignas": json.dumps(header)})
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(out)
    safetensors.torch.save_file(weights, out, {})
    with pytest.raises(CheckpointError, match="not a bignas supernet"):
        load_checkpoint(out)
    write_tensors(out, "training state", weights, {})
    with pytest.raises(CheckpointError, match="not a bignas supernet"):
        read_checkpoint(out)


def test_weights_must_fit(checkpoint: Checkpoint, out: Path) -> None:
    space = dataclasses.replace(checkpoint.space, head_channels=(16, 33))
    save_checkpoint(out, dataclasses.replace(checkpoint, space=space))
    with pytest.raises(CheckpointError, match="do not fit space"):
        load_checkpoint(out)
    bad = {name: value.clone() for name, value in checkpoint.weights.items()}
    bad["classifier.bias"][0] = float("nan")
    save_checkpoint(out, dataclasses.replace(checkpoint, weights=bad))
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(out)


def test_shipped_names_load() -> None:
    for name in shipped_checkpoints():
        network, checkpoint = load_checkpoint(name)
        assert network.space == checkpoint.space


def test_classes_must_match(checkpoint: Checkpoint, toy_data: ImageData) -> None:
    with pytest.raises(CheckpointError, match="10 classes"):
        checkpoint.check_data(toy_data)

"""bignas train and evaluate, for a few steps of a tiny supernet."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bignas.supernet.checkpoint import load_checkpoint, read_checkpoint
from tests.cli.helpers import refused, run, run_json

FEW = ("--data", "digits", "--batch-size", 64, "--max-images", 128, "--threads", 1)


def test_training_writes_a_checkpoint_and_goes_on_from_it(space_file: Path) -> None:
    arguments = ("train", space_file, *FEW, "--out", "c.safetensors", "--epochs", 1, "--seed", 3)
    found = run_json(*arguments)
    assert (found["space"], found["classes"], found["steps"], found["epochs"]) == ("tiny", 10, 2, 1)
    written = Path("c.safetensors").read_bytes()
    assert read_checkpoint(Path("c.safetensors")).config["seed"] == 3
    assert run_json(*arguments) == found
    assert Path("c.safetensors").read_bytes() == written
    for other in (("--epochs", 2), ("--seed", 4), ("--learning-rate", 0.5)):
        assert "another file" in refused(*arguments, *other)
    assert Path("c.safetensors").read_bytes() == written


def test_training_of_another_space_is_refused(other_space_file: Path, checkpoint: Path) -> None:
    arguments = ("train", other_space_file, *FEW, "--out", checkpoint, "--epochs", 1)
    assert "another search space" in refused(*arguments)
    elsewhere = ("train", other_space_file, *FEW, "--out", "c.safetensors", "--epochs", 1)
    assert "another search space" in refused(*elsewhere, "--from", checkpoint)


def test_training_goes_on_from_other_weights(space_file: Path, checkpoint: Path) -> None:
    arguments = ("train", space_file, *FEW, "--out", "c.safetensors", "--epochs", 1)
    run_json(*arguments, "--from", checkpoint)
    start = read_checkpoint(Path("c.safetensors")).start
    assert start is not None
    assert start.digest == read_checkpoint(checkpoint).digest
    assert "other weights" in refused(*arguments)
    assert "no checkpoint" in refused(*arguments, "--from", "absent.safetensors")


@pytest.mark.parametrize(
    "option", [("--epochs", 0), ("--batch-size", 1), ("--learning-rate", "nan"), ("--seed", -1)]
)
def test_numbers_that_make_no_sense(option: tuple[str, object], space_file: Path) -> None:
    name = option[0].removeprefix("--").replace("-", "_")
    assert name in refused("train", space_file, *FEW, "--out", "c", *option)


def test_too_few_images_and_a_folder_in_the_place(space_file: Path) -> None:
    few = ("--max-images", 32, "--epochs", 1)
    assert "batch" in refused("train", space_file, *FEW, "--out", "c", *few)
    Path("folder").mkdir()
    assert "folder" in refused("train", space_file, *FEW, "--out", "folder", "--epochs", 1)


def test_evaluation_is_a_list_in_the_order_asked_for(checkpoint: Path) -> None:
    network, _ = load_checkpoint(checkpoint)
    arguments = ("evaluate", checkpoint, "--data", "digits", "--arch", "biggest", "--arch")
    found = run_json(*arguments, "smallest", "--split", "validation", "--max-images", 50)
    space = network.space
    assert [one["arch"] for one in found] == [
        space.biggest().to_dict(),
        space.smallest().to_dict(),
    ]
    for one, architecture in zip(found, (space.biggest(), space.smallest()), strict=True):
        assert 0 <= one["top1"] <= 1
        assert math.isclose(one["top1"] * 50, round(one["top1"] * 50))
        assert one["macs"] == space.macs(architecture)
        assert one["params"] == space.params(architecture)
    shown = run(*arguments, "random:2", "--max-images", 10)
    assert (len(shown.stdout.splitlines()), shown.stderr) == (4, "")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_trained(space_file: Path) -> None:
    program = str(Path(sys.executable).with_name("bignas"))
    arguments = [str(one) for one in ("train", space_file, *FEW, "--epochs", 1000)]
    process = subprocess.Popen(
        [program, *arguments, "--out", "c.safetensors"], stderr=subprocess.PIPE, text=True
    )
    metrics = Path("c.safetensors.metrics.jsonl")
    for _ in range(600):
        if metrics.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines() == [
        "error: interrupted; what was finished is kept, the same command goes on from there"
    ]
    assert 0 < read_checkpoint(Path("c.safetensors")).step < 2000

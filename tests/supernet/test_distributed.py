"""Several processes train as one does: the same losses, the same weights, one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bignas.supernet.checkpoint import load_checkpoint
from tests.supernet.test_train import SPACE_FILE, metrics_of

OPTIONS = (
    "--data", "digits", "--epochs", "4", "--batch-size", "64", "--max-images", "320",
    "--learning-rate", "0.05",
)  # fmt: skip
BIGNAS = [sys.executable, "-c", "from bignas.cli.main import main; main()"]


def torchrun(processes: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
        "--nproc-per-node", str(processes),
    ]  # fmt: skip


def run(command: list[str], space: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, "train", str(space), "--out", str(out), "--json", *OPTIONS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same losses at the same global batch; a run of two is resumed by one."""
    space, two, one = tmp_path / "space.toml", tmp_path / "two", tmp_path / "one"
    space.write_text(SPACE_FILE)
    together = run([*torchrun(2), *BIGNAS], space, two)
    assert together.returncode == 0, together.stderr
    assert json.loads(together.stdout)["steps"] == 20
    alone = run(BIGNAS, space, one)
    assert alone.returncode == 0, alone.stderr
    curves = [
        [json.loads(line) for line in metrics_of(path).read_text().splitlines()]
        for path in (two, one)
    ]
    assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
    for shared, whole in zip(*curves, strict=True):
        assert shared["losses"] == pytest.approx(whole["losses"], rel=2e-3)
    weights = [load_checkpoint(path)[1].weights for path in (two, one)]
    for name, value in weights[1].items():
        assert torch.allclose(weights[0][name], value, atol=2e-3), name
    again = run(BIGNAS, space, two)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text(SPACE_FILE)
    failed = run([*torchrun(3), *BIGNAS], space, tmp_path / "net")
    assert failed.returncode != 0
    assert "a batch of 64 cannot be shared by 3 processes" in failed.stderr
    assert not (tmp_path / "net").exists()

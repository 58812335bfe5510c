"""The benchmarks on recorded tables: their documents, their errors, and the published tables."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.latency.transfer_tables import OPTIONS, POSITIONS, device, one_hot

ROOT = Path(__file__).parents[2]
TABLES = ROOT.parent / "shared" / "data" / "latency"


@pytest.fixture
def tables() -> Path:
    """The published tables. Without them the test is skipped, or fails where CI=true."""
    if not TABLES.is_dir():
        message = f"no published latency tables at {TABLES}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return TABLES


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of unknown operators and devices."""
    features = one_hot()
    path = tmp_path / "table.npz"
    np.savez(
        path,
        arch=features.reshape(-1, POSITIONS, OPTIONS).argmax(axis=2),
        op_names=np.array(["one", "two", "three", "skip"]),
        devices=np.array(["p_1", "p_2", "q", "r"]),
        latency_ms=np.array([device(features, seed) for seed in range(4)]),
    )
    return path


def run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=280, check=False
    )


def document(name: str, *arguments: str) -> dict[str, Any]:
    done = run(name, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_transfer_scores_every_target_and_baseline(table: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    arguments = (
        "--data", str(table), "--source", "p_1,p_2", "--target", "q,r",
        "--samples", "10", "--seeds", "1", "--results", str(results),
    )  # fmt: skip
    first = document("transfer", *arguments)
    assert set(first["targets"]) == {"q", "r"}
    for scores in first["targets"].values():
        assert set(scores) == {"spearman", "mape", "within_10"}
    assert first["baselines"].pop("flops") is None  # these operators have none
    assert set(first["baselines"]) == {
        "ridge_one_hot", "xgboost_one_hot", "xgboost_aggregate", "mean_of_sources", "ridge_sources",
    }  # fmt: skip
    document("transfer", *arguments)
    assert len(json.loads(results.read_text())) == 1  # the same run takes the place of the older


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "p_1", "--target", "nobody"), "no device 'nobody'; it has p_1"),
        (("--source", "p_1", "--target", "q", "--samples", "399"), "--samples must lie between"),
        (("--source", "p_1", "--target", "q", "--seeds", "0"), "--seeds must be"),
        (("--source", "p_1"), "--target"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, table: Path
) -> None:
    done = run("transfer", "--data", str(table), *arguments, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_active_reports_a_share_for_each_device(table: Path) -> None:
    found = document("active", "--data", str(table), "--target", "q", "--seeds", "1")
    assert set(found["targets"]) == {"q"}


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["fbnet", "nasbench201"])
def test_transfer_beats_every_baseline_on_published_tables(name: str, tables: Path) -> None:
    found = document(
        "transfer", "--data", str(tables / f"{name}.npz"), "--leave-out-families",
        "--target", "eyeriss,fpga,gold_6240,titanxp_1", "--samples", "20", "--seeds", "2",
    )  # fmt: skip
    ranks = {method: scores["spearman"] for method, scores in found["mean"].items()}
    assert ranks["bignas"] > max(ranks[method] for method in found["baselines"])
    assert ranks["bignas"] > 0.965


@pytest.mark.slow
@pytest.mark.shared_data
def test_transformers_beat_the_baselines_on_published_tables(tables: Path) -> None:
    for path in sorted((tables / "hat").glob("*.csv")):
        errors = document("transformers", "--csv", str(path), "--seeds", "1")["mape"]
        assert errors["bignas"] < min(errors["xgboost"], errors["linear_interactions"])

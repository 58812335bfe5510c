"""bignas search: its budget, and the loop on a tiny space."""

from pathlib import Path

import pytest

from bignas.cli.output import chance
from bignas.latency.predictor import LatencyPredictor
from tests.cli.helpers import refused, run, run_json


@pytest.mark.parametrize("budget", ["1.5", "0ms", "-1ms", "ms", "1 hour", "nanms", "1e999s", ""])
def test_what_is_no_budget(budget: str) -> None:
    arguments = ("search", "c", "--data", "digits", "--out", "made", "--budget", budget)
    assert "budget" in refused(*arguments)


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, "> 99.9%"), (0.999, "99.9%"), (0.5, "50.0%")],
)
def test_nearly_certain_is_not_certain(probability: float, text: str) -> None:
    assert chance(probability) == text


def test_a_budget_that_no_child_keeps(checkpoint: Path, predictor: LatencyPredictor) -> None:
    arguments = ("search", checkpoint, "--data", "digits", "--out", "made", "--budget", "0.001us")
    line = refused(*arguments, code=1)
    assert "ask for at least" in line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--device", "local:1ms", "--device", "local:2ms"), "given twice"),
        (("--device", "local:1ms", "--budget", "2ms"), "contradicts"),
        (("--device", "local"), "has no budget"),
        (("--device", "local:1"), "no unit"),
        (("--device", "nowhere:1ms"), "unknown device"),
        (("--budget", "1ms", "--confidence", "1"), "confidence must lie between 0 and 1"),
        (("--budget", "1ms", "--confidence", "-0.5"), "confidence must lie between 0 and 1"),
        (("--budget", "1ms", "--confidence", "nan"), "confidence must lie between 0 and 1"),
        (("--budget", "1ms", "--max-macs", "0"), "limit"),
        (("--budget", "1ms", "--max-params", "many"), "limit"),
        (("--budget", "1ms", "--max-memory", "5"), "unit"),
        (("--budget", "1ms", "--max-bundle", "-1MB"), "limit"),
        (("--budget", "1ms", "--objective", "speed"), "objective"),
    ],
)
def test_limits_that_make_no_sense(
    checkpoint: Path, predictor: LatencyPredictor, options: tuple[str, ...], complaint: str
) -> None:
    line = refused("search", checkpoint, "--data", "digits", "--out", "made", *options)
    assert complaint in line


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (("--max-macs", "10"), "limit of 10 macs"),
        (("--max-params", "100"), "limit of 100 params"),
        (("--max-memory", "1kB"), "limit of 1000 memory_bytes"),
        (("--max-bundle", "1kB"), "limit of 1000 bundle_bytes"),
        (("--device", "local:0.001us"), "budget 1e-06ms on local"),
    ],
)
def test_infeasible_limits_name_the_limit_and_the_nearest_child(
    checkpoint: Path, predictor: LatencyPredictor, options: tuple[str, ...], limit: str
) -> None:
    budget = () if "--device" in options else ("--budget", "1s")
    arguments = ("search", checkpoint, "--data", "digits", "--out", "made", *budget, *options)
    line = refused(*arguments, code=1)
    assert limit in line
    assert "ask for at least" in line
    assert predictor.space.smallest().key in line
    if budget:
        assert "on local" not in line


def test_a_device_without_a_table(checkpoint: Path, predictor: LatencyPredictor) -> None:
    added = run("device", "add", "older", "--target", "x86-64-v2")
    assert added.exit_code == 0, added.stderr
    devices = ("--device", "local:1s", "--device", "older:1s")
    line = refused("search", checkpoint, "--data", "digits", "--out", "made", *devices)
    assert "bignas profile SPACE --device older" in line


def test_a_run_folder_of_another_version(checkpoint: Path, predictor: LatencyPredictor) -> None:
    folder = Path("made")
    folder.mkdir()
    (folder / "search.json").write_text('{"format_version": 1}')
    arguments = ("search", checkpoint, "--data", "digits", "--out", "made", "--budget", "1s")
    assert "format version 1" in refused(*arguments)


def test_what_a_search_needs(
    checkpoint: Path, space_file: Path, other_space_file: Path, predictor: LatencyPredictor
) -> None:
    arguments = ("search", checkpoint, "--data", "digits", "--out", "made", "--budget", "1ms")
    assert "evolution, exhaustive" in refused(*arguments, "--strategy", "guess")
    few = ("--data", "digits", "--batch-size", 64, "--max-images", 64, "--epochs", 1)
    assert run("train", other_space_file, *few, "--out", "o.safetensors").exit_code == 0
    line = refused("search", "o.safetensors", *arguments[2:])
    assert "bignas profile SPACE" in line


@pytest.mark.slow
def test_the_loop_on_a_tiny_space(checkpoint: Path, space_file: Path) -> None:
    profiled = run_json("profile", space_file, "--minutes", 0.2, "--subnets", 4)
    assert profiled["kernels"] == profiled["kernels_of_space"] == 16
    assert profiled["subnets"] >= 4
    assert run_json("predictor", "fit", space_file)["networks"] == profiled["subnets"]
    evaluated = run_json("predictor", "evaluate", space_file, "--subnets", 2)
    assert evaluated["n"] >= 1
    keys = {"mape", "within_5", "within_10", "spearman", "coverage", "n", "repeatability"}
    assert keys <= evaluated.keys()

    few = ("--evaluations", 3, "--finalists", 1, "--budget", "1ms", "--out", "made")
    found = run_json("search", checkpoint, "--data", "digits", *few)
    figures = {"arch", "top1", "macs", "params", "predicted_ms", "interval_ms", "measured_ms"}
    assert {"device", "budget_ms", "best", "front", "bundle"} <= found.keys()
    assert all(figures <= one.keys() for one in (found["best"], *found["front"]))
    assert found["best"]["measured_ms"] <= found["budget_ms"] == 1.0
    assert run_json("verify", Path("made") / found["bundle"])["ok"]

    shown = run("search", checkpoint, "--data", "digits", *few)
    assert shown.exit_code == 0
    assert str(Path("made") / found["bundle"]) in shown.stdout
    assert "another search" in refused("search", checkpoint, "--data", "digits", *few, "--seed", 1)

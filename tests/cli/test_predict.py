"""bignas predict and predictor: the figures of the library, in the form that scripts read."""

import json
import math
from pathlib import Path

import pytest

from bignas.latency.predictor import LatencyPredictor
from tests.cli.helpers import refused, run, run_json


def test_predictions_are_those_of_the_predictor(
    space_file: Path, predictor: LatencyPredictor
) -> None:
    space = predictor.space
    architectures = [space.biggest(), space.smallest()]
    Path("two.json").write_text(json.dumps([one.to_dict() for one in architectures]))
    found = run_json("predict", space_file, "--arch", "two.json", "--device", "local")
    expected = predictor.predict(architectures)
    assert [one["arch"] for one in found] == [one.to_dict() for one in architectures]
    for index, one in enumerate(found):
        assert set(one) == {"arch", "latency_ms", "interval_ms"}
        assert one["latency_ms"] == expected.latency_ms[index]
        assert one["interval_ms"] == [expected.low_ms[index], expected.high_ms[index]]


def test_architectures_may_be_named_several_times(
    space_file: Path, predictor: LatencyPredictor
) -> None:
    arguments = ("predict", space_file, "--arch", "smallest", "--arch", "random:3")
    found = run_json(*arguments, "--seed", 4)
    assert len(found) == 4
    assert found[0]["arch"] == predictor.space.smallest().to_dict()
    assert run_json(*arguments, "--seed", 4) == found
    shown = run(*arguments)
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) == 5
    assert shown.stderr == ""


def test_without_a_predictor_the_commands_to_run_are_named(space_file: Path) -> None:
    line = refused("predict", space_file, "--arch", "biggest")
    assert "bignas profile" in line
    assert "bignas predictor fit" in line


def test_a_predictor_serves_its_space_and_device_only(
    space_file: Path, other_space_file: Path, predictor: LatencyPredictor
) -> None:
    refused("predict", other_space_file, "--arch", "biggest")
    run("device", "add", "avx2", "--target", "x86-64-v3")
    assert "'avx2'" in refused("predict", space_file, "--arch", "biggest", "--device", "avx2")


def test_a_damaged_predictor_is_refused(space_file: Path, predictor: LatencyPredictor) -> None:
    (path,) = Path("../data").rglob("*.json")
    path.write_bytes(path.read_bytes()[:-10])
    assert "damaged" in refused("predict", space_file, "--arch", "biggest")


def test_fitting_needs_measurements(space_file: Path) -> None:
    assert "bignas profile" in refused("predictor", "fit", space_file, code=1)


def test_fitting_writes_what_predict_reads(space_file: Path, measured: None) -> None:
    found = run_json("predictor", "fit", space_file, "--confidence", "0.8")
    assert Path(found["path"]).is_file()
    assert (found["kernels"], found["networks"], found["confidence"]) == (16, 0, 0.8)
    (one,) = run_json("predict", space_file, "--arch", "biggest")
    low, high = one["interval_ms"]
    assert 0 < low < one["latency_ms"] < high < math.inf
    assert "16" in run("predictor", "fit", space_file).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "cortex-a72"), "cannot be measured on this"),
        (("--target", "x86-64-v2", "--threads", "999"), "999 threads"),
        (("--target", "x86-64-v2", "--cpu-model", "another"), "another machine"),
    ],
)
def test_only_this_machine_can_be_measured(
    options: tuple[str, ...], words: str, space_file: Path
) -> None:
    assert run("device", "add", "far", *options).exit_code == 0
    assert words in refused("profile", space_file, "--device", "far")
    assert words in refused("predictor", "evaluate", space_file, "--device", "far")
    search = ("search", "c", "--data", "digits", "--budget", "1ms", "--out", "made")
    assert words in refused(*search, "--device", "far")

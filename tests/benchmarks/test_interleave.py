"""The coordinator, with processes that only pretend to be engines."""

import itertools
import os
import sys
from pathlib import Path

import psutil
import pytest
from interleave import WorkerCommand, WorkerError, run_worker, sample_in_turn

FAKE = Path(__file__).with_name("fake_worker.py")
ROUNDS = 8


def fake(folder: Path, name: str, microseconds: float, *options: str) -> WorkerCommand:
    command = [sys.executable, str(FAKE), str(microseconds), str(folder / name), *options]
    return WorkerCommand(command, os.environ, folder / f"{name}.log")


def cores() -> list[int]:
    return [max(os.sched_getaffinity(0))]


def times_ns(path: Path) -> list[int]:
    return [int(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]


def test_every_worker_is_asked_in_every_round(tmp_path: Path) -> None:
    workers = {"slow": fake(tmp_path, "slow", 50.0), "fast": fake(tmp_path, "fast", 20.0)}
    samples = sample_in_turn(workers, ROUNDS, cores())
    assert samples == {"slow": [50.0] * ROUNDS, "fast": [20.0] * ROUNDS}


def test_a_worker_stands_still_while_another_one_is_timed(tmp_path: Path) -> None:
    workers = {name: fake(tmp_path, name, 1.0) for name in ("first", "second")}
    sample_in_turn(workers, ROUNDS, cores())
    noted = [(time, name) for name in workers for time in times_ns(tmp_path / name)]
    names = [name for _, name in sorted(noted)]
    changes = sum(one != other for one, other in itertools.pairwise(names))
    assert len(names) > 4 * ROUNDS  # each notes several times while it is timed
    assert 1 < changes <= 2 * ROUNDS + 1  # in turn: at most one change a sample


def test_the_affinity_of_the_coordinator_is_left_as_it_was(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    sample_in_turn({"one": fake(tmp_path, "one", 1.0)}, 1, cores())
    assert os.sched_getaffinity(0) == before


def test_a_worker_that_breaks_is_named_with_what_it_said(tmp_path: Path) -> None:
    workers = {"good": fake(tmp_path, "good", 1.0), "bad": fake(tmp_path, "bad", 1.0, "2")}
    with pytest.raises(WorkerError, match=r"fake_worker.py 1.0 .*bad(.|\n)*the engine broke"):
        sample_in_turn(workers, ROUNDS, cores())


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    missing = WorkerCommand([sys.executable, "-c", "raise SystemExit('no')"], {}, tmp_path / "log")
    with pytest.raises(WorkerError, match="no"):
        sample_in_turn({"missing": missing}, 1, cores())
    with pytest.raises(WorkerError, match="no"):
        run_worker(missing)


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    sample_in_turn({name: fake(tmp_path, name, 1.0) for name in "ab"}, 2, cores())
    assert psutil.Process().children(recursive=True) == before

"""Progress: bars on a terminal, lines now and then elsewhere, never on stdout."""

import math

import pytest

from bignas.cli import progress
from bignas.cli.demo import STEPS
from bignas.cli.progress import Bars, Step, count_step
from bignas.latency.profile import Phase, ProfileProgress
from bignas.search.context import SearchProgress
from bignas.supernet.train import TrainProgress


def shown(step: Step, capsys: pytest.CaptureFixture[str]) -> str:
    with Bars() as bars:
        bars(step)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_short_work_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shown(Step("kernels", 1, 2, 60.0), capsys) == ""


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Step("kernels", 24, 300, 62.4, "a note"), "kernels: 24 of 300, 1:02 left, a note"),
        (Step("kernels", 24, 300, 3723.0), "kernels: 24 of 300, 1:02:03 left"),
        (Step("kernels", 0, 300, math.inf), "kernels: 0 of 300, ? left"),
        (Step("kernels", 0, 300, math.nan), "kernels: 0 of 300"),
        (Step("kernels", 3, 300, 0.0), "kernels: 3 of 300"),
        (Step("kernels", 300, 300, 0.0), "kernels: 300 of 300, done"),
    ],
)
def test_long_work_says_a_line_now_and_then(
    step: Step, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    assert shown(step, capsys) == line + "\n"


def test_a_terminal_shows_a_bar_for_each_phase(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Bars() as bars:
        bars(Step("kernels", 300, 300, 0.0))
        bars(Step("subnets", 5, 40, 42.0, "[a note]"))
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("kernels", "300/300", "done", "subnets", "0:42 left", "[a note]"):
        assert words in captured.err


def test_the_library_s_progress_becomes_steps() -> None:
    assert STEPS["train"](TrainProgress(7, 10, 2, 0.5, 80.0, 4.0, {})) == Step(
        "training", 7, 10, 4.0, "epoch 3, loss 0.500, 80 images/s"
    )
    assert STEPS["profile"](ProfileProgress(Phase.KERNELS, 7, 10, 0, 4.0)).note == ""
    assert "3 noisy" in STEPS["profile"](ProfileProgress(Phase.KERNELS, 7, 10, 3, 4.0)).note
    known = STEPS["profile"](ProfileProgress(Phase.SUBNETS, 7, 10, 3, 4.0, 0.0123))
    assert known == Step("subnets", 7, 10, 4.0, "error 1.23%, 3 noisy rounds repeated")
    assert STEPS["search"](SearchProgress("explore", 7, 10, 4.0, "best")).note == "best"
    step = count_step("counting")
    assert step(0, 3).eta_seconds == math.inf
    assert step(3, 3).eta_seconds == 0.0

import os
from types import SimpleNamespace

import psutil
import pytest

from bignas.cli.environment import PRIMITIVES, SLEEPING, SPINNING, WAITING, prepare_environment
from bignas.cli.main import COMMANDS, main


def share_of_others(monkeypatch: pytest.MonkeyPatch, **shares: float) -> None:
    found = SimpleNamespace(**{"user": 0.0, "nice": 0.0, "system": 0.0, "idle": 100.0} | shares)
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: found)


@pytest.mark.parametrize(
    ("lasting", "shares", "policy"),
    [
        (True, {"user": 2.0, "system": 1.0}, SPINNING),
        (True, {"nice": 90.0}, SPINNING),
        (True, {"user": 50.0}, SLEEPING),
        (True, {"system": 30.0}, SLEEPING),
        (False, {}, SLEEPING),
    ],
)
def test_threads_spin_where_they_disturb_nobody(
    monkeypatch: pytest.MonkeyPatch, lasting: bool, shares: dict[str, float], policy: str
) -> None:
    share_of_others(monkeypatch, **shares)
    monkeypatch.setenv(WAITING, "")  # so that what is set below goes with the test
    monkeypatch.delenv(WAITING)
    prepare_environment(lasting)
    assert os.environ[WAITING] == policy


def test_what_the_user_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    share_of_others(monkeypatch)
    for policy in (SLEEPING, "passive", SPINNING):
        monkeypatch.setenv(WAITING, policy)
        prepare_environment(lasting=True)
        assert os.environ[WAITING] == policy


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_measure_never_spin(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("bignas.cli.application.prepare_environment", seen.append)
    main([command, "--help"], standalone_mode=False)
    assert seen == [command in ("train", "evaluate")]


@pytest.mark.parametrize(("before", "after"), [(None, "20000"), ("7", "7")])
def test_generated_code_is_kept_unless_the_user_says_how_much(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv(PRIMITIVES, before or "")
    if before is None:
        monkeypatch.delenv(PRIMITIVES)
    prepare_environment(lasting=False)
    assert os.environ[PRIMITIVES] == after

"""Latency budgets: what a user may type, and what comes back when it is no budget."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bignas.device_db.errors import BudgetError
from bignas.search.constraint import LatencyBudget


@pytest.mark.parametrize(
    ("text", "budget_ms"),
    [
        ("1.5ms", 1.5),
        ("800us", 0.8),
        ("0.01s", 10.0),
        (" 2 ms ", 2.0),
        ("1e3us", 1.0),
        (".5ms", 0.5),
        ("3.ms", 3.0),
    ],
)
def test_budgets_with_a_unit_are_read(text: str, budget_ms: float) -> None:
    assert LatencyBudget.parse(text).budget_ms == pytest.approx(budget_ms)


UNREADABLE = (
    "1.5 ms ms",
    "--1ms",
    "1,5ms",
    "1.5ms2",
    "\N{ARABIC-INDIC DIGIT ONE}ms",
    *("", "1.5", "ms", "fast", "1.5 m", "1.5min", "1.5MS"),
    *("0ms", "-1ms", "nan", "nanms", "inf", "infms", "1e999ms", "1e-999ms"),
)


@pytest.mark.parametrize("text", UNREADABLE)
def test_anything_else_is_refused_in_one_line_that_says_what_to_type(text: str) -> None:
    with pytest.raises(BudgetError) as refusal:
        LatencyBudget.parse(text)
    message = str(refusal.value)
    assert "\n" not in message
    assert "ms" in message


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_printed_budget_can_be_read_again(budget_ms: float) -> None:
    budget = LatencyBudget(budget_ms)
    assert LatencyBudget.parse(str(budget)).budget_ms == pytest.approx(budget_ms, rel=1e-5)


def test_a_budget_allows_its_own_value_and_refuses_the_unknown() -> None:
    budget = LatencyBudget(1.0)
    assert budget.allows(1.0)
    assert not budget.allows(1.0001)
    assert not budget.allows(math.nan)


@given(st.text(max_size=12))
def test_parsing_never_fails_in_another_way(text: str) -> None:
    with contextlib.suppress(BudgetError):
        assert LatencyBudget.parse(text).budget_ms > 0

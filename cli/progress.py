"""Progress of long work on stderr: bars on a terminal, otherwise a line now and then.

The library reports values of its own; the functions at the end turn them into steps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:  # the libraries behind these take seconds to import
    from bignas.latency.profile import ProfileProgress
    from bignas.search.context import SearchProgress
    from bignas.supernet.train import TrainProgress

__all__ = ["Bars", "Step", "count_step", "profile_step", "search_step", "train_step"]

_SECONDS_BETWEEN_LINES = 15.0
_BAR_COLUMNS = 20  # leaves room for the words on a terminal of 80 columns


@dataclass(frozen=True, slots=True)
class Step:
    """Where a phase of the work stands, and how many seconds it will still take; 0: not known."""

    phase: str
    done: int
    total: int
    eta_seconds: float
    note: str = ""


class Bars:
    """Shows steps; use as a context manager and call it with each step."""

    def __init__(self) -> None:
        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(_BAR_COLUMNS),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                redirect_stdout=False,
            )
        self._tasks: dict[str, TaskID] = {}
        self._line_at = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, step: Step) -> None:
        """Show a step."""
        left = _left(step)
        if self._bars is not None:
            if step.phase not in self._tasks:
                self._tasks[step.phase] = self._bars.add_task(step.phase, left="", note="")
            self._bars.update(
                self._tasks[step.phase],
                completed=step.done,
                total=step.total,
                left=left,
                note=step.note,
            )
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + _SECONDS_BETWEEN_LINES
            parts = (f"{step.phase}: {step.done} of {step.total}", left, step.note)
            click.echo(", ".join(part for part in parts if part), err=True)


def _left(step: Step) -> str:
    if step.done >= step.total:
        return "done"
    return f"{_duration(step.eta_seconds)} left" if step.eta_seconds > 0 else ""


def _duration(seconds: float) -> str:
    """Return a time such as 0:42 or 1:02:03; ? when it is endless."""
    if not seconds < 1e7:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def profile_step(progress: "ProfileProgress") -> Step:
    """Return the step of profiling."""
    notes = []
    if progress.held_out_error is not None:
        notes.append(f"error {progress.held_out_error:.2%}")
    if progress.rejected:
        notes.append(f"{progress.rejected} noisy rounds repeated")
    phase, note = progress.phase.value, ", ".join(notes)
    return Step(phase, progress.done, progress.total, progress.eta_seconds, note)


def train_step(progress: "TrainProgress") -> Step:
    """Return the step of training."""
    note = (
        f"epoch {progress.epoch + 1}, loss {progress.loss:.3f},"
        f" {progress.images_per_second:.0f} images/s"
    )
    return Step("training", progress.step, progress.total_steps, progress.eta_seconds, note)


def search_step(progress: "SearchProgress") -> Step:
    """Return the step of a search."""
    return Step(progress.phase, progress.done, progress.total, progress.eta_seconds, progress.note)


def count_step(phase: str) -> Callable[[int, int], Step]:
    """Return what turns (done, total) into steps of a phase that begins now."""
    start = time.monotonic()

    def step(done: int, total: int) -> Step:
        left = (time.monotonic() - start) / done * (total - done) if done else float("inf")
        return Step(phase, done, total, left)

    return step

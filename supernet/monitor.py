"""What training tells about itself: metrics as JSON lines, and the same for TensorBoard.

Files, for `--out CKPT`
- CKPT.metrics.jsonl: one JSON object a line; lines after the step that is resumed from are dropped.
- CKPT.tensorboard/: the scalars of those lines as events. It is derived: written anew from the
  lines when training starts.
"""

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from bignas.device_db.errors import OutputError, TrainingError
from bignas.device_db.files import write_atomically

__all__ = ["DivergenceDetector", "MetricsLog"]


class MetricsLog:
    """Appends metrics to both files, from the step that training resumes at. Raises OutputError."""

    def __init__(self, checkpoint: Path, step: int) -> None:
        self._path = checkpoint.with_name(f"{checkpoint.name}.metrics.jsonl")
        folder = checkpoint.with_name(f"{checkpoint.name}.tensorboard")
        try:
            lines = self._keep_until(step)
            shutil.rmtree(folder, ignore_errors=True)
            self._events = SummaryWriter(str(folder))
        except OSError as error:
            raise OutputError(f"cannot write {error.filename}: {error.strerror}") from None
        for line in lines:
            self._add_events(line)

    def append(self, line: Mapping[str, Any]) -> None:
        """Log one line; it has a "step"."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._add_events(line)
            self._events.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """End the event file."""
        self._events.close()

    def _keep_until(self, step: int) -> list[dict[str, Any]]:
        """Forget what will be logged again; a line that a crash cut short goes with it."""
        if not self._path.exists():
            return []
        kept = []
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                if line["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return kept

    def _add_events(self, line: Mapping[str, Any]) -> None:
        for tag, value in _scalars("", line):
            if tag != "step":
                self._events.add_scalar(tag, value, line["step"])


class DivergenceDetector:
    """Raises TrainingError when the biggest child has long been far worse than guessing."""

    _STEPS = 50

    def __init__(self, classes: int) -> None:
        self._limit = 2.0 * math.log(classes)
        self._losses: deque[float] = deque(maxlen=self._STEPS)

    def check(self, step: int, losses: list[float], gradient_norm: float, rate: float) -> None:
        """Look at the losses of a step, the biggest child's first, before weights are changed."""
        hint = f"lower the learning rate ({rate:g}); what was saved before stays as it was"
        if not all(map(math.isfinite, [*losses, gradient_norm])):
            raise TrainingError(f"the loss is not finite at step {step}: {hint}")
        self._losses.append(losses[0])
        if len(self._losses) == self._STEPS and min(self._losses) > self._limit:
            raise TrainingError(
                f"training has diverged at step {step}: for {self._STEPS} steps the loss of the"
                f" biggest child was above {self._limit:.1f}, twice that of guessing: {hint}"
            )


def _scalars(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a line, named by where they stand: losses/0, top1/biggest."""
    if isinstance(value, int | float):
        yield tag, float(value)
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        yield from _scalars(f"{tag}/{key}" if tag else str(key), item)

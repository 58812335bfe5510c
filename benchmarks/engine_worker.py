"""One engine with one model, in a process of its own that is told over a pipe what to time.

    python benchmarks/engine_worker.py convert ENGINE FOLDER
    python benchmarks/engine_worker.py time ENGINE FOLDER LIBRARY THREADS TARGET

`convert` writes the engine's own files of a model. `time` writes the engine's output to a file,
then replies with one JSON line that says how many runs fill a sample, and with one more, the
microseconds of a run, for each line of standard input. What libraries print goes to standard
error.

The loop that is timed is the same for all engines. Before each sample the network runs untimed,
because other engines have had the caches since the last one.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from engines import ENGINES, ModelFiles, Task

__all__ = ["serve"]

SAMPLE_US = 3000.0
FIRST_RUNS = 30
WARM_SHARE = 0.2  # of a sample's runs, but at least
MIN_WARM_RUNS = 2  # come before it untimed


def main() -> None:
    """Convert, or serve requests until standard input ends."""
    replies = _replies()
    action, name, folder, *rest = sys.argv[1:]
    engine, files = ENGINES[name], ModelFiles(Path(folder))
    if action == "convert":
        if engine.convert is not None:
            engine.convert(files)
        return
    library, threads, target = rest
    runner = engine.prepare(Task(files, Path(library), int(threads), target))
    np.save(files.output(name), runner.output())
    serve(runner.run, sys.stdin, replies)


def serve(run: Callable[[], Any], requests: Iterable[str], replies: TextIO) -> None:
    """Warm up, reply with the runs in a sample, then with a sample for every request."""
    _time_us(run, FIRST_RUNS)
    inner = max(1, round(SAMPLE_US / _time_us(run, FIRST_RUNS)))
    _reply(replies, {"runs": inner})
    warm = max(MIN_WARM_RUNS, round(inner * WARM_SHARE))
    for _ in requests:
        _time_us(run, warm)
        _reply(replies, {"us": _time_us(run, inner)})


def _time_us(run: Callable[[], Any], inner: int) -> float:
    """Return the microseconds of one of `inner` runs in a row."""
    start = time.perf_counter_ns()
    for _ in range(inner):
        run()
    return (time.perf_counter_ns() - start) / inner / 1e3


def _reply(replies: TextIO, content: dict[str, float]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


def _replies() -> TextIO:
    """Return the pipe to the coordinator; libraries that print get standard error instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


if __name__ == "__main__":
    main()

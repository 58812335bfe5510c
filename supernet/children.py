"""Accuracies of many children: each evaluated once, remembered in the store, by several processes.

Decisions
- What is known of the same weights, images and architecture is looked up; the rest is evaluated and
  written to the store child by child, so that an interrupted run goes on where it stopped.
- Processes, each with a share of the threads, do more than as many threads in one process: the
  layers of small children are too short to be divided. They are started anew (`spawn`), as forking
  a process with running OpenMP threads hangs, and end when their parent is gone. Starting takes
  seconds, so a `with` block keeps them; while they wait they use no processor time.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import DataError, MeasurementError
from bignas.device_db.store import Store
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData, Split, SplitName
from bignas.supernet.evaluate import count_correct
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["ChildEvaluator", "evaluation_processes"]

_SPAWN = get_context("spawn")
_PATIENCE_SECONDS = 5.0  # for a process to end by itself
_DIED = "a process that evaluates children ended; is there enough memory?"


def evaluation_processes() -> int:
    """How many processes evaluate children fastest here: one for each processor of this one."""
    return len(os.sched_getaffinity(0))


class ChildEvaluator:
    """Evaluates children of one supernet on the first `max_images` images of a split.

    `calibration_images` bounds those that batch norms are recalibrated with. Results are fractions
    from 0 to 1. Raises CheckpointError when the data have other classes than the supernet, and
    DataError for an unknown split.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: ImageData,
        store: Store,
        split: str = SplitName.VALIDATION,
        max_images: int | None = None,
        calibration_images: int | None = None,
    ) -> None:
        aligned = checkpoint.align(data)
        calibration = _first(aligned.calibration, calibration_images)
        images = _first(aligned.split(split), max_images)
        self.setting = EvaluationSetting(
            checkpoint.digest, data.digest, str(split), len(images), len(calibration)
        )
        self._checkpoint = checkpoint
        self._store = store
        self._keeps = False
        self._workers: list[_Worker] = []
        self._data = dataclasses.replace(  # no more than what is needed
            aligned, train=calibration, calibration=calibration, validation=images, test=images
        )

    def known(self) -> dict[str, float]:
        """What the store knows, by the key of the architecture."""
        counts = self._store.accuracies(self.setting)
        return {key: count / self.setting.images for key, count in counts.items()}

    def evaluate(
        self,
        archs: Sequence[Architecture],
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[float]:
        """Accuracies of `archs`, in their order.

        `progress` is told (done, total) of those that the store does not know.

        One process is this one. Several are started for this call, or the first one of a `with`
        block. Raises ArchitectureError for an architecture outside the space, before anything is
        evaluated, and MeasurementError when a process dies.
        """
        for arch in archs:
            self._checkpoint.space.check(arch)
        known = self.known()
        missing = [arch for arch in dict.fromkeys(archs) if arch.key not in known]
        with contextlib.closing(self._evaluated(missing, processes)) as results:
            for done, (arch, count) in enumerate(results, 1):
                self._store.add_accuracies(self.setting, {arch.key: count})
                known[arch.key] = count / self.setting.images
                if progress is not None:
                    progress(done, len(missing))
        return [known[arch.key] for arch in archs]

    def __enter__(self) -> "ChildEvaluator":
        """Keep the processes between calls of `evaluate`, until the block ends."""
        self._keeps = True
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._keeps = False
        self._end_workers()

    def _evaluated(
        self, archs: Sequence[Architecture], processes: int
    ) -> Generator[tuple[Architecture, int], None, None]:
        """Architectures with the number of images that they classify correctly, one by one."""
        if archs and processes > 1 and (len(archs) > 1 or self._workers):
            if not self._workers:
                self._start_workers(processes if self._keeps else min(processes, len(archs)))
            yield from self._by_workers(archs)
        elif archs:
            network = self._checkpoint.network()
            for arch in archs:
                yield arch, count_correct(network, arch, self._data, self._data.test)

    def _by_workers(
        self, archs: Sequence[Architecture]
    ) -> Generator[tuple[Architecture, int], None, None]:
        waiting = list(reversed(archs))
        at_work: dict[Connection, Architecture] = {}
        finished = False
        try:
            for worker in self._workers:
                _hand_out(worker.connection, waiting, at_work)
            while at_work:
                for connection in wait(list(at_work)):
                    assert isinstance(connection, Connection)
                    try:
                        correct = int(connection.recv())
                    except (EOFError, ConnectionResetError):
                        raise MeasurementError(_DIED) from None
                    yield at_work.pop(connection), correct
                    _hand_out(connection, waiting, at_work)
            finished = True
        finally:
            if not (finished and self._keeps):
                self._end_workers()

    def _start_workers(self, count: int) -> None:
        weights = {name: value.numpy() for name, value in self._checkpoint.weights.items()}
        work = _Work(self._checkpoint.space, weights, self._data)
        threads = max(1, torch.get_num_threads() // count)
        try:
            while len(self._workers) < count:
                self._workers.append(_Worker(work, threads))
        except BaseException:
            self._end_workers()
            raise

    def _end_workers(self) -> None:
        while self._workers:
            self._workers.pop().end()


def _hand_out(
    connection: Connection, waiting: list[Architecture], at_work: dict[Connection, Architecture]
) -> None:
    """Give the next child, if there is one, to a process that has nothing to do."""
    if waiting:
        at_work[connection] = waiting.pop()
        try:
            connection.send(at_work[connection])
        except (BrokenPipeError, ConnectionResetError):
            raise MeasurementError(_DIED) from None


@dataclass(frozen=True, eq=False)
class _Work:
    """All that a process needs to evaluate children, on the test images."""

    space: SearchSpace
    weights: Mapping[str, np.ndarray]
    data: ImageData

    def network(self) -> Supernet:
        """The supernet, from its weights."""
        network = Supernet(self.space)
        network.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        return network.requires_grad_(False)


class _Worker:
    """A process that is sent architectures, and answers each with a number of images."""

    def __init__(self, work: _Work, threads: int) -> None:
        self.connection, its_end = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(work, threads, its_end), daemon=True)
        self._process.start()
        its_end.close()  # the process holds it, so that its death closes the connection

    def end(self) -> None:
        """Let it end, which it does when nobody can send any more; kill it when it is busy."""
        self.connection.close()
        self._process.join(_PATIENCE_SECONDS)
        self._process.terminate()
        self._process.join()


def _run(work: _Work, threads: int, connection: Connection) -> None:
    """What a process does: evaluate what it is sent, until nobody sends or listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    torch.set_num_threads(threads)
    network = work.network()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(count_correct(network, connection.recv(), work.data, work.data.test))


def _first(split: Split, count: int | None) -> Split:
    if count is not None and count < 1:
        raise DataError(f"an evaluation needs at least one image, not {count}")
    return split if count is None or count >= len(split) else split.take(np.arange(count))

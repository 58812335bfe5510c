"""Accuracies of many children: each evaluated once, remembered in the store, by several processes.

Decisions
- What is known of the same weights, images and architecture is looked up; the rest is evaluated and
  written to the store child by child, so that an interrupted run goes on where it stopped.
- Processes, each with a share of the threads, do more than as many threads in one process: the
  layers of small children are too short to be divided. They are started anew (`spawn`), as forking
  a process with running OpenMP threads hangs, and end when their parent is gone.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import DataError, MeasurementError
from bignas.device_db.store import Store
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData, Split, SplitName
from bignas.supernet.evaluate import evaluate, extract_calibrated
from bignas.supernet.fused import keep_freed_memory
from bignas.supernet.network import Supernet
from bignas.supernet.space import Architecture, SearchSpace

__all__ = ["ChildEvaluator", "evaluation_processes"]

_SPAWN = get_context("spawn")
_PATIENCE_SECONDS = 5.0  # for a process to end by itself


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

        One process is this one, which then keeps the memory that it frees. Raises ArchitectureError
        for an architecture outside the space, before anything is evaluated, and MeasurementError
        when a process dies.
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

    def _evaluated(
        self, archs: Sequence[Architecture], processes: int
    ) -> Generator[tuple[Architecture, int], None, None]:
        """Architectures with the number of images that they classify correctly, one by one."""
        if processes > 1 and len(archs) > 1:
            yield from self._by_workers(archs, min(processes, len(archs)))
        elif archs:
            keep_freed_memory()
            network = self._checkpoint.network()
            for arch in archs:
                yield arch, _correct(network, arch, self._data)

    def _by_workers(
        self, archs: Sequence[Architecture], count: int
    ) -> Generator[tuple[Architecture, int], None, None]:
        threads = max(1, torch.get_num_threads() // count)
        with contextlib.ExitStack() as stack:
            shares: dict[Connection, list[Architecture]] = {}
            for number in range(count):
                share = list(archs[number::count])
                shares[stack.enter_context(_worker(self._work(share), threads))] = share
            while shares:
                for receiver in wait(list(shares)):
                    assert isinstance(receiver, Connection)
                    try:
                        correct = int(receiver.recv())
                    except EOFError:
                        raise MeasurementError(
                            "a process that evaluates children ended; is there enough memory?"
                        ) from None
                    yield shares[receiver].pop(0), correct
                    if not shares[receiver]:
                        del shares[receiver]

    def _work(self, archs: Sequence[Architecture]) -> "_Work":
        weights = {name: value.numpy() for name, value in self._checkpoint.weights.items()}
        return _Work(self._checkpoint.space, weights, self._data, tuple(archs))


@dataclass(frozen=True, eq=False)
class _Work:
    """All that a process needs to evaluate its share of the children, on the test images."""

    space: SearchSpace
    weights: Mapping[str, np.ndarray]
    data: ImageData
    archs: tuple[Architecture, ...]

    def network(self) -> Supernet:
        """The supernet, from its weights."""
        network = Supernet(self.space)
        network.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        return network.requires_grad_(False)


def _correct(network: Supernet, arch: Architecture, data: ImageData) -> int:
    """How many test images the child classifies correctly."""
    child = extract_calibrated(network, arch, data)
    return round(evaluate(child, data.test, data.mean, data.std) * len(data.test))


@contextlib.contextmanager
def _worker(work: _Work, threads: int) -> Iterator[Connection]:
    """A process at work, as the connection that its results come from; it ends with the block."""
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_run, args=(work, threads, sender), daemon=True)
    process.start()
    sender.close()  # the process holds the other end, so that its death closes the connection
    try:
        yield receiver
        process.join(_PATIENCE_SECONDS)
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _run(work: _Work, threads: int, sender: Connection) -> None:
    """What a process does: send a number for each child, until all are done or nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    torch.set_num_threads(threads)
    keep_freed_memory()
    network = work.network()
    with contextlib.suppress(BrokenPipeError):
        for arch in work.archs:
            sender.send(_correct(network, arch, work.data))


def _first(split: Split, count: int | None) -> Split:
    if count is not None and count < 1:
        raise DataError(f"an evaluation needs at least one image, not {count}")
    return split if count is None or count >= len(split) else split.take(np.arange(count))

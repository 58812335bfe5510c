"""Training a supernet once, so that all its children work as they are (BigNAS).

Each step sums the gradients of the biggest child, the smallest and a few random ones (sandwich
rule); the biggest learns from the labels, the others from its outputs (in-place distillation; in
the first epoch they learn from the labels too, as long as there is little to learn from it); then
the optimizer takes one step. `recipe.py` says what a step consists of.

Files, for `--out CKPT`
- CKPT: the weights, the deliverable.
- CKPT.state: weights and momentum at some step, all that resuming needs. It is written first; a
  crash between the two leaves CKPT one save behind, and the next run brings it up to date.
- CKPT.metrics.jsonl, CKPT.tensorboard/: losses, rates and accuracies, see `monitor.py`.

A run that was killed and started again computes the weights of an uninterrupted run, to the bit, on
the same machine with the same number of threads.

Source: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models",
ECCV 2020.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bignas.device_db.errors import CheckpointError, DataError
from bignas.device_db.files import require_writable
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import (
    Checkpoint,
    Start,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from bignas.supernet.data import ImageData, Split, SplitName, preprocess
from bignas.supernet.distributed import ALONE, Workers, workers
from bignas.supernet.evaluate import evaluate_architectures
from bignas.supernet.memory import keep_freed_memory
from bignas.supernet.monitor import DivergenceDetector, MetricsLog
from bignas.supernet.network import Supernet
from bignas.supernet.optimizer import SupernetOptimizer
from bignas.supernet.precision import is_mixed, training_execution
from bignas.supernet.recipe import (
    Purpose,
    Regularize,
    Schedule,
    TrainConfig,
    draw_architectures,
    draw_batch,
    generator,
    learning_rate,
)
from bignas.supernet.space import SearchSpace
from bignas.supernet.whitening import whiten_stem

__all__ = ["Regularize", "Schedule", "TrainConfig", "TrainProgress", "train"]

_STATE_KIND = "training state"
_WEIGHTS = "weights."
_MOMENTUM = "momentum."
_AVERAGE = "average."
_CLASSIFIER = "classifier."


@dataclass(frozen=True)
class TrainProgress:
    """Where training stands after a step.

    `loss` is that of the first (biggest) child, `top1` the last known validation accuracy of the
    smallest, a middle and the biggest child.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    images_per_second: float
    eta_seconds: float
    top1: Mapping[str, float]


def train(
    space: SearchSpace,
    data: ImageData,
    out: Path,
    config: TrainConfig | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    start: Checkpoint | None = None,
) -> Checkpoint:
    """Train a supernet of `space` for the classes of `data` and write it to `out`.

    It starts from random weights, or from those of `start`, a supernet of the same space: a further
    cycle of the schedule (warm restarts: Loshchilov and Hutter, "SGDR", ICLR 2017), or other images
    to learn. For other classes the classifier begins anew.

    Resumes when the files of an earlier run exist; returns at once when that run was complete.
    `progress` is called after every step. On Ctrl-C the step is finished and saved, then
    KeyboardInterrupt is raised.

    Raises DataError (fewer images than a batch), CheckpointError (`out` belongs to another space,
    data, configuration or start, or is no checkpoint; `start` is of another space), OutputError,
    and TrainingError when a loss is not finite; the last saved state stays as it was.
    """
    config = TrainConfig() if config is None else config
    space = space.with_classes(len(data.classes))
    require_writable(out)
    if config.keep_memory:
        keep_freed_memory()
    with (
        workers() as group,
        closing(_Run(space, data, out, config, group, start)) as run,
        _threads(config.threads),
        _deferred_interrupt() as interrupt,
    ):
        run.restore()
        try:
            while run.step < run.total_steps:
                run.advance()
                if progress is not None:
                    progress(run.progress())
                if group.any(interrupt.is_set()):
                    break
        except KeyboardInterrupt:
            run.save()
            raise
        if run.step < run.total_steps or interrupt.is_set():
            run.save()
            raise KeyboardInterrupt
        return run.checkpoint()


class _Run:
    """One training run: network, optimizer, step and files."""

    def __init__(
        self,
        space: SearchSpace,
        data: ImageData,
        out: Path,
        config: TrainConfig,
        group: Workers = ALONE,
        start: Checkpoint | None = None,
    ) -> None:
        group.check_batch(config.batch_size)
        self._group = group
        self._space = space
        self._data = data
        self._config = config
        self._out = out
        self._state_path = out.with_name(f"{out.name}.state")
        self._train = _subset(data.train, config)
        self._steps_per_epoch = len(self._train) // config.batch_size
        if self._steps_per_epoch == 0:
            raise DataError(
                f"data {data.name!r} has {len(self._train)} training images, fewer than a batch of"
                f" {config.batch_size}"
            )
        self.total_steps = config.epochs * self._steps_per_epoch
        self.step = 0
        self._network = Supernet(space, seed=config.seed, zero_gamma=config.zero_gamma)
        self._start = None if start is None else Start(start.digest, start.all_epochs)
        if config.whiten_stem:
            whiten_stem(self._network, data, self._train)
        if start is not None:
            _copy_weights(start, self._network, data.classes)
        self._network.to(group.device).train()
        mixed = group.any(is_mixed(config.precision, group.device))  # workers agree
        self._execution = group.execution(training_execution(fused=config.fused, mixed=mixed))
        self._optimizer = SupernetOptimizer(
            self._network,
            rate=config.learning_rate,
            orthogonal_rate=config.orthogonal_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            orthogonal_decay=config.orthogonal_decay,
            keep_norms=config.keep_norms,
            mixed=mixed,
        )
        self._average = [p.detach().clone() for p in self._averaged()]
        self._divergence = DivergenceDetector(space.classes)
        self._metrics: MetricsLog | None = None
        self._losses: list[float] = []
        self._top1: Mapping[str, float] = {}
        self._first_step = 0
        self._busy_seconds = 0.0
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._torn = False

    def advance(self) -> None:
        """Take one step; log and save when due."""
        started = time.perf_counter()
        rate = learning_rate(self._config, self.step, self._steps_per_epoch)
        self._optimizer.zero_gradients()
        self._losses = self._backward()
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._config.gradient_clip)
        self._divergence.check(self.step + 1, self._losses, float(norm), self._config.learning_rate)
        self._torn = True
        self._optimizer.step(rate / self._config.learning_rate)
        self.step += 1
        self._update_average()
        self._torn = False
        self._busy_seconds += time.perf_counter() - started
        last = self.step == self.total_steps
        evaluating = self._is_evaluation_due(last)
        if last or evaluating or self.step % self._config.log_every_steps == 0:
            self._log(rate, float(norm), evaluating)
        overdue = time.monotonic() - self._saved_at >= self._config.save_every_seconds
        if last or overdue or self.step % self._config.save_every_steps == 0:
            self.save()

    def progress(self) -> TrainProgress:
        """Where the run stands."""
        done = self.step - self._first_step
        speed = done * self._config.batch_size / self._busy_seconds if done else 0.0
        left = (self.total_steps - self.step) * self._config.batch_size
        return TrainProgress(
            self.step,
            self.total_steps,
            self._epoch,
            self._losses[0] if self._losses else math.nan,
            speed,
            left / speed if speed else math.inf,
            self._top1,
        )

    def checkpoint(self) -> Checkpoint:
        """The weights as they are now."""
        return Checkpoint(
            self._space,
            self._delivered(),
            self._data.mean,
            self._data.std,
            self._data.classes,
            self._data.name,
            self._data.digest,
            self.step,
            self.step // self._steps_per_epoch,
            self._config.to_dict(),
            self._start,
        )

    def close(self) -> None:
        """Release files."""
        if self._metrics is not None:
            self._metrics.close()

    def save(self) -> None:
        """Write the state, then the checkpoint; not from the middle of an optimizer step.

        Of several workers the first one writes.
        """
        if self._torn or self.step in (0, self._saved_step) or not self._group.is_first:
            return
        tensors: dict[str, Tensor] = {}
        momenta = self._optimizer.momenta()
        for (name, parameter), momentum in zip(
            self._network.named_parameters(), momenta, strict=True
        ):
            tensors[_WEIGHTS + name] = parameter
            tensors[_MOMENTUM + name] = momentum
        if self._average:
            tensors |= {_AVERAGE + name: value for name, value in self._delivered().items()}
        description = {"step": self.step, **self._identity()}
        write_tensors(self._state_path, _STATE_KIND, tensors, description)
        save_checkpoint(self._out, self.checkpoint())
        self._saved_step = self.step
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Continue from the files of an earlier run, if there are any; the first worker reads."""
        if self._group.is_first:
            self._read()
        (self.step,) = map(int, self._group.sum_of([self.step]))
        momenta = self._optimizer.momenta()
        self._group.copy_from_first([*self._network.parameters(), *momenta, *self._average])
        self._first_step = self.step
        self._saved_step = self.step
        if self._group.is_first:
            self._metrics = MetricsLog(self._out, self.step)

    def _read(self) -> None:
        written = self._earlier_checkpoint()
        if self._state_path.exists():
            tensors, description = read_tensors(self._state_path, _STATE_KIND)
            self._require_same(description, self._state_path)
            self._load(tensors, description)
            if written is None or written.step != self.step:
                save_checkpoint(self._out, self.checkpoint())
        elif written is not None:
            if written.step != self.total_steps:
                raise CheckpointError(
                    f"{self._out} is an unfinished checkpoint without its {self._state_path.name}:"
                    " training cannot resume, choose another file"
                )
            self._network.load_state_dict(written.network().state_dict())
            self._average = [p.detach().clone() for p in self._averaged()]
            self.step = written.step

    @property
    def _epoch(self) -> int:
        return max(0, self.step - 1) // self._steps_per_epoch

    def _backward(self) -> list[float]:
        """Add up the gradients of all children of this step; return their losses."""
        config, group = self._config, self._group
        images, labels = draw_batch(config, self._train, self.step, self._data.mirrorable)
        images = images[group.share]
        targets = torch.from_numpy(labels[group.share]).to(group.device)
        inputs: dict[int, Tensor] = {}
        teacher: Tensor | None = None
        beginning = self.step < config.label_epochs * self._steps_per_epoch
        losses = []
        for index, arch in enumerate(draw_architectures(config, self._space, self.step)):
            if arch.resolution not in inputs:
                inputs[arch.resolution] = preprocess(
                    images, arch.resolution, self._data.mean, self._data.std
                ).to(group.device)
            biggest = config.sandwich and index == 0
            regularized = biggest or config.regularize is Regularize.ALL
            logits = self._logits(inputs[arch.resolution], arch, index, regularized)
            if teacher is None:
                smoothing = config.label_smoothing if regularized else 0.0
                loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
            else:
                loss = -(teacher * logits.log_softmax(1)).sum(1).mean()
                if config.label_weight > 0.0:
                    loss = torch.lerp(
                        loss, functional.cross_entropy(logits, targets), config.label_weight
                    )
            loss = loss / group.count
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if biggest and config.distillation and not beginning:
                teacher = logits.detach().softmax(1)
        group.sum_in_place([one for p in self._network.parameters() if (one := p.grad) is not None])
        return group.sum_of([loss.item() for loss in losses])

    def _logits(self, images: Tensor, arch: Architecture, index: int, regularized: bool) -> Tensor:
        features = self._network.features(images, arch, self._execution)
        rate = self._config.dropout
        if regularized and rate > 0.0:
            rng = generator(self._config, Purpose.DROPOUT, self.step * 1000 + index)
            shape = (self._config.batch_size, features.shape[1])
            keep = (rng.random(shape, dtype=np.float32) >= rate)[self._group.share]
            features = features * torch.from_numpy(keep).to(features.device) / (1.0 - rate)
        return self._network.classify(features)

    def _averaged(self) -> list[Tensor]:
        return list(self._network.parameters()) if self._config.average_decay > 0.0 else []

    def _update_average(self) -> None:
        """Move the average towards the weights; at first quickly, as those still change much."""
        parameters = self._averaged()
        if parameters:
            decay = min(self._config.average_decay, self.step / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(self._average, parameters, 1.0 - decay)

    def _delivered(self) -> dict[str, Tensor]:
        """A copy of the weights that count: the average, where there is one."""
        names = [name for name, _ in self._network.named_parameters()]
        values = self._average or [*self._network.parameters()]
        return {name: value.detach().clone() for name, value in zip(names, values, strict=True)}

    def _is_evaluation_due(self, last: bool) -> bool:
        every = round(self._config.evaluate_every_epochs * self._steps_per_epoch)
        return every > 0 and (last or self.step % every == 0)

    def _evaluate(self) -> dict[str, float]:
        """Validation accuracy of three children as they would be delivered now."""
        network = Supernet(self._space)
        network.load_state_dict(self._delivered())
        archs = {
            "smallest": self._space.smallest(),
            "middle": self._space.middle(),
            "biggest": self._space.biggest(),
        }
        mine = list(archs)[self._group.share]
        evaluations = evaluate_architectures(
            network, [archs[name] for name in mine], self._data, SplitName.VALIDATION,
            self._config.evaluate_images,
        )  # fmt: skip
        found = {name: one.top1 for name, one in zip(mine, evaluations, strict=True)}
        return dict(
            zip(archs, self._group.sum_of([found.get(name, 0.0) for name in archs]), strict=True)
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "space": self._space.to_dict(),
            "data_digest": self._data.digest,
            "config": self._config.identity(),
            "start": None if self._start is None else self._start.to_dict(),
        }

    def _earlier_checkpoint(self) -> Checkpoint | None:
        if not self._out.exists():
            return None
        written = read_checkpoint(self._out)
        operational = self._config.to_dict().keys() - self._config.identity().keys()
        found = {
            "space": written.space.to_dict(),
            "data_digest": written.data_digest,
            "config": {k: v for k, v in written.config.items() if k not in operational},
            "start": None if written.start is None else written.start.to_dict(),
        }
        self._require_same(found, self._out)
        return written

    def _require_same(self, found: dict[str, Any], path: Path) -> None:
        expected = self._identity()
        hint = "choose another file to train anew"
        if found.get("space") != expected["space"]:
            raise CheckpointError(f"{path} belongs to another search space: {hint}")
        if found.get("data_digest") != expected["data_digest"]:
            raise CheckpointError(f"{path} was trained on other data: {hint}")
        if found.get("start") != expected["start"]:
            raise CheckpointError(f"{path} started from other weights: {hint}")
        config = found.get("config")
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} has a malformed description")
        for key, value in expected["config"].items():
            if config.get(key) != value:
                raise CheckpointError(
                    f"{path} was trained with {key} = {config.get(key)}, not {value}: {hint}"
                )

    def _load(self, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        step = description.get("step")
        names = [name for name, _ in self._network.named_parameters()]
        prefixes = (_WEIGHTS, _MOMENTUM, _AVERAGE) if self._average else (_WEIGHTS, _MOMENTUM)
        if not isinstance(step, int) or not 0 < step <= self.total_steps:
            raise CheckpointError(f"{self._state_path} has a malformed step")
        if tensors.keys() != {prefix + name for name in names for prefix in prefixes}:
            raise CheckpointError(f"{self._state_path} does not hold the weights of its space")
        parameters = dict(self._network.named_parameters())
        momenta = dict(zip(names, self._optimizer.momenta(), strict=True))
        targets: dict[str, Mapping[str, Tensor]] = {_WEIGHTS: parameters, _MOMENTUM: momenta}
        if self._average:
            targets[_AVERAGE] = dict(zip(names, self._average, strict=True))
        with torch.no_grad():
            for prefix, kind in targets.items():
                for name, target in kind.items():
                    value = tensors[prefix + name]
                    if value.shape != target.shape:
                        raise CheckpointError(f"{self._state_path}: {name} has another shape")
                    target.copy_(value)
        self.step = step

    def _log(self, rate: float, norm: float, evaluating: bool) -> None:
        progress = self.progress()
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": progress.epoch,
            "losses": self._losses,
            "learning_rate": rate,
            "gradient_norm": norm,
            "images_per_second": progress.images_per_second,
        }
        if evaluating:
            self._top1 = line["top1"] = self._evaluate()
        if self._metrics is not None:
            self._metrics.append(line)


def _copy_weights(start: Checkpoint, network: Supernet, classes: tuple[str, ...]) -> None:
    """Give a network the weights of a checkpoint, but for other classes no classifier."""
    space = network.space
    if start.space.with_classes(space.classes) != space:
        raise CheckpointError(
            f"the weights to start from belong to another search space than {space.name!r}"
        )
    weights = dict(start.network().state_dict())
    if start.classes != classes:
        weights |= {k: v for k, v in network.state_dict().items() if k.startswith(_CLASSIFIER)}
    network.load_state_dict(weights)


def _subset(train: Split, config: TrainConfig) -> Split:
    if config.max_train_images is None or config.max_train_images >= len(train):
        return train
    order = generator(config, Purpose.SUBSET, 0).permutation(len(train))
    return train.take(np.sort(order[: config.max_train_images]))


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Use so many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun, on this machine
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, so that it cannot tear a step; a second one acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)

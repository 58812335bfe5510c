"""The whole search: a budget in, a bundle that keeps it out, everything measured on the way kept.

1. explore     a strategy suggests architectures; the predictor rejects slow ones for nothing, the
               others are evaluated as they are, on validation images
2. finalists   the best ones and the Pareto front are compiled and measured, interleaved
3. deliver     the most accurate finalist that keeps the budget becomes a bundle; its own binary is
               verified and measured again, and the next finalist takes its place if it fails
4. report      test images are looked at once, for the winner; result.json says what each figure is
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bignas.compile.bundle import Bundle, record_measured, verify
from bignas.compile.codegen import code_hash
from bignas.compile.manifest import Latency
from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workloads
from bignas.device_db.errors import (
    InfeasibleBudgetError,
    InputError,
    MeasurementError,
    VerificationError,
)
from bignas.device_db.files import require_writable, write_atomically
from bignas.device_db.records import Device
from bignas.device_db.store import Store
from bignas.latency.bench import bench_bundle
from bignas.latency.predictor import LatencyPredictor, Predictions
from bignas.latency.recording import Recorder
from bignas.latency.subnets import measure_subnets, typical_weights_bytes
from bignas.latency.tuning import ensure_networks_tuned
from bignas.search.constraint import LatencyBudget
from bignas.search.deliver import align_data, deliver_child
from bignas.search.pareto import pareto_front
from bignas.search.strategy import DEFAULT_STRATEGY, create_strategy
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData, preprocess
from bignas.supernet.evaluate import evaluate, extract_calibrated, predict
from bignas.supernet.network import Supernet
from bignas.supernet.space import Architecture, SearchSpace

__all__ = ["Candidate", "SearchConfig", "SearchProgress", "SearchResult", "run_search"]

BATCH = 16
CALIBRATION_IMAGES = 512  # while exploring; finalists get the whole calibration split
SUGGESTIONS_PER_EVALUATION = 60  # bound on how long a strategy may look for feasible architectures
FRONT_MEMBERS = 8
FASTEST_OF = 256  # random architectures beside the smallest, to know the fastest
BUNDLE = "bundle"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What a search is asked for. Raises InputError when a number makes no sense."""

    budget_ms: float
    strategy: str = DEFAULT_STRATEGY
    evaluations: int = 150  # architectures whose accuracy is measured while exploring
    finalists: int = 5  # that are compiled and measured, beside the front
    seed: int = 0
    validation_images: int = 2000  # while exploring; finalists are evaluated on all

    def __post_init__(self) -> None:
        LatencyBudget(self.budget_ms)
        for name in ("evaluations", "finalists", "validation_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Where a search stands; `note` names the best so far."""

    phase: str
    done: int
    total: int
    eta_seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One architecture: accuracy (0 to 1) on validation images, latencies in ms."""

    architecture: Architecture
    top1: float
    macs: int
    params: int
    predicted_ms: float
    interval_ms: tuple[float, float]
    measured_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "arch": self.architecture.to_dict(),
            "top1": self.top1,
            "macs": self.macs,
            "params": self.params,
            "predicted_ms": self.predicted_ms,
            "interval_ms": list(self.interval_ms),
            "measured_ms": self.measured_ms,
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search delivers; `test_top1` and `binary_agreement` are of the winner's binary.

    `binary_agreement` is the share of test images on which the binary and the supernet's child give
    the same class.
    """

    device: str
    space: str
    config: SearchConfig
    best: Candidate
    front: tuple[Candidate, ...]
    bundle: str
    test_top1: float
    binary_agreement: float
    evaluated: int
    suggested: int

    def to_dict(self) -> dict[str, Any]:
        """Return result.json's content."""
        return {
            "device": self.device,
            "space": self.space,
            "budget_ms": self.config.budget_ms,
            "best": {**self.best.to_dict(), "test_top1": self.test_top1},
            "front": [candidate.to_dict() for candidate in self.front],
            "bundle": self.bundle,
            "binary_agreement": self.binary_agreement,
            "strategy": self.config.strategy,
            "seed": self.config.seed,
            "evaluated": self.evaluated,
            "suggested": self.suggested,
            "kinds": {
                "predicted_ms": "predicted",
                "interval_ms": "predicted",
                "measured_ms": "measured",
                "top1": "measured on validation images",
                "test_top1": "measured on test images with the binary",
            },
        }


Report = Callable[[SearchProgress], None]


def run_search(
    network: Supernet,
    checkpoint: Checkpoint,
    data: ImageData,
    device: Device,
    store: Store,
    cache: ObjectCache,
    predictor: LatencyPredictor,
    config: SearchConfig,
    out: Path,
    progress: Report | None = None,
) -> SearchResult:
    """Find the most accurate architecture that keeps the budget, deliver and prove its binary.

    Goes on where an interrupted search in `out` stopped.

    Raises:
        InfeasibleBudgetError: no architecture keeps the budget; the fastest one is named.
        InputError: an unknown strategy, or a folder with another search in it.
        CheckpointError, OutputError, MeasurementError, ToolchainError, VerificationError.
    """
    search = _Search(
        network, align_data(checkpoint, data), device, store, cache, predictor, config, out,
        progress or (lambda _: None),
    )  # fmt: skip
    require_writable(out / RESULT)
    search.require_feasible()
    trials, suggested = search.explore(_question(network.space, checkpoint, device, config))
    result = search.finish(checkpoint, trials, suggested)
    text = json.dumps(result.to_dict(), indent=1) + "\n"
    write_atomically(out / RESULT, text.encode())
    return result


def _question(
    space: SearchSpace, checkpoint: Checkpoint, device: Device, config: SearchConfig
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(config),
        "space": space.digest,
        "data": checkpoint.data_digest,
        "step": checkpoint.step,
        "device": device.name,
        "code_hash": code_hash(),
    }


class _Search:
    """The parts of one search, which share its question."""

    def __init__(
        self,
        network: Supernet,
        data: ImageData,
        device: Device,
        store: Store,
        cache: ObjectCache,
        predictor: LatencyPredictor,
        config: SearchConfig,
        out: Path,
        report: Report,
    ) -> None:
        self.network = network
        self.space = network.space
        self.data = data
        self.device = device
        self.store = store
        self.cache = cache
        self.predictor = predictor.for_space(network.space)
        self.budget = LatencyBudget(config.budget_ms)
        self.config = config
        self.out = out
        self.report = report

    def require_feasible(self) -> None:
        """Raise InfeasibleBudgetError when even the fastest architecture misses the budget.

        The smallest one is the fastest as a rule; random ones guard against exceptions.
        """
        random = np.random.default_rng(self.config.seed)
        some = [self.space.smallest(), *(self.space.sample(random) for _ in range(FASTEST_OF))]
        predictions = self.predictor.predict(some)
        fastest = int(np.argmin(predictions.latency_ms))
        if not self.budget.allows(float(predictions.latency_ms[fastest])):
            raise InfeasibleBudgetError(
                f"no architecture of space {self.space.name!r} keeps {self.budget} on"
                f" {self.device.name}: the fastest, {some[fastest].key}, is predicted at"
                f" {predictions.latency_ms[fastest]:.4g} ms; ask for at least"
                f" {predictions.high_ms[fastest]:.4g}ms"
            )
        self._cautious = self.budget.allows(float(predictions.high_ms[fastest]))

    def explore(self, question: dict[str, Any]) -> tuple[list[Trial], int]:
        """Let the strategy look around; return all trials and how many were suggested."""
        log = TrialLog(self.out, question)
        strategy = create_strategy(self.config.strategy, self.space, self.config.seed)
        trials: list[Trial] = []
        for batch in log.read():
            strategy.tell(batch)
            trials += batch
        limit = self.config.evaluations * SUGGESTIONS_PER_EVALUATION
        start, before = time.monotonic(), _evaluated(trials)
        while _evaluated(trials) < self.config.evaluations and len(trials) < limit:
            suggestions = strategy.suggest(BATCH)
            if not suggestions:
                break
            for architecture in suggestions:
                self.space.check(architecture)
            batch = self._evaluate_batch(suggestions, _evaluated(trials))
            log.append(batch)
            strategy.tell(batch)
            trials += batch
            self._report_exploring(trials, start, before)
        return trials, len(trials)

    def _evaluate_batch(self, suggestions: Sequence[Architecture], done: int) -> list[Trial]:
        predictions = self.predictor.predict(suggestions)
        limits = predictions.high_ms if self._cautious else predictions.latency_ms
        small = dataclasses.replace(
            self.data,
            calibration=_first(self.data, "calibration", CALIBRATION_IMAGES),
            validation=_first(self.data, "validation", self.config.validation_images),
        )
        batch: list[Trial] = []
        for index, architecture in enumerate(suggestions):
            feasible = self.budget.allows(float(limits[index]))
            top1 = None
            if feasible and done < self.config.evaluations:
                child = extract_calibrated(self.network, architecture, small)
                top1 = evaluate(child, small.validation, small.mean, small.std)
                done += 1
            latency_ms = float(predictions.latency_ms[index])
            batch.append(Trial(architecture, latency_ms, feasible, top1))
        return batch

    def _report_exploring(self, trials: Sequence[Trial], start: float, before: int) -> None:
        done, total = _evaluated(trials), self.config.evaluations
        pace = (time.monotonic() - start) / max(1, done - before)
        best = max((one.top1 or 0.0 for one in trials if one.feasible), default=0.0)
        note = f"best {best:.2%}" if best else "nothing feasible yet"
        self.report(SearchProgress("explore", done, total, pace * (total - done), note))

    def finish(
        self, checkpoint: Checkpoint, trials: Sequence[Trial], suggested: int
    ) -> SearchResult:
        """Measure the finalists and the front, deliver the best that keeps the promise."""
        feasible = [one for one in trials if one.feasible and one.top1 is not None]
        if not feasible:
            raise InfeasibleBudgetError(
                f"the strategy {self.config.strategy!r} found no architecture that keeps"
                f" {self.budget} in {suggested} suggestions; allow more evaluations"
            )
        feasible.sort(key=lambda one: (-(one.top1 or 0.0), one.latency_ms))
        front = pareto_front(feasible)[-FRONT_MEMBERS:]
        chosen = dict.fromkeys([*feasible[: self.config.finalists], *front])
        candidates = self._measure([one.architecture for one in chosen])
        keeping = [one for one in candidates if self.budget.allows(one.measured_ms)]
        keeping.sort(key=lambda one: (-one.top1, one.measured_ms))
        for number, candidate in enumerate(keeping):
            self.report(SearchProgress("deliver", number, len(keeping), 0.0, ""))
            bundle, measured = self._deliver(checkpoint, candidate.architecture)
            if self.budget.allows(measured.latency_ms):
                best = dataclasses.replace(candidate, measured_ms=measured.latency_ms)
                return self._result(bundle, best, candidates, trials)
        raise InfeasibleBudgetError(
            f"none of {len(candidates)} finalists keeps {self.budget} when measured; the fastest"
            f" takes {min(one.measured_ms for one in candidates):.4g} ms"
        )

    def _measure(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Evaluate architectures on all validation images, compile and measure them together."""
        layers = [workloads(self.space, architecture) for architecture in architectures]
        kernels = ensure_networks_tuned(
            layers,
            self.device,
            self.store,
            self.cache,
            self._report_tuning,
            typical_weights_bytes(self.space),
        )
        top1: list[float] = []
        for number, architecture in enumerate(architectures):
            self.report(SearchProgress("finalists", number, len(architectures), 0.0, ""))
            child = extract_calibrated(self.network, architecture, self.data)
            top1.append(evaluate(child, self.data.validation, self.data.mean, self.data.std))
        recorder = Recorder(self.device.name)
        records = measure_subnets(
            self.space, architectures, kernels, self.device, self.cache, recorder
        )
        self.store.add_measurements(records)
        predictions = self.predictor.predict(architectures)
        return [
            self._candidate(architecture, accuracy, predictions, index, record.p50_ns / 1e6)
            for index, (architecture, accuracy, record) in enumerate(
                zip(architectures, top1, records, strict=True)
            )
            if record.ok
        ]

    def _report_tuning(self, done: int, total: int, rejected: int) -> bool:
        note = f"{rejected} groups of samples repeated"
        self.report(SearchProgress("kernels", done, total, 0.0, note))
        return True

    def _candidate(
        self,
        architecture: Architecture,
        top1: float,
        predictions: Predictions,
        index: int,
        measured_ms: float,
    ) -> Candidate:
        return Candidate(
            architecture,
            top1,
            self.space.macs(architecture),
            self.space.params(architecture),
            float(predictions.latency_ms[index]),
            (float(predictions.low_ms[index]), float(predictions.high_ms[index])),
            measured_ms,
        )

    def _deliver(
        self, checkpoint: Checkpoint, architecture: Architecture
    ) -> tuple[Bundle, Latency]:
        bundle = deliver_child(
            self.network, checkpoint, architecture, self.data, self.device, self.store,
            self.cache, self.out / BUNDLE, self.predictor,
        )  # fmt: skip
        verification = verify(bundle)
        if not verification.ok:
            raise VerificationError(
                f"the binary differs from its ONNX model by {verification.max_abs_error:.2g}"
            )
        measured = bench_bundle(bundle)
        return record_measured(bundle, measured), measured

    def _result(
        self,
        bundle: Bundle,
        best: Candidate,
        candidates: Sequence[Candidate],
        trials: Sequence[Trial],
    ) -> SearchResult:
        test_top1, agreement = self._prove(bundle, best.architecture)
        measured = [
            Trial(one.architecture, one.measured_ms, True, one.top1)
            for one in candidates
            if self.budget.allows(one.measured_ms)
        ]
        on_front = {trial.architecture for trial in pareto_front(measured)}
        front = [one for one in candidates if one.architecture in on_front]
        return SearchResult(
            device=self.device.name,
            space=self.space.name,
            config=self.config,
            best=best,
            front=tuple(sorted(front, key=lambda one: one.measured_ms)),
            bundle=BUNDLE,
            test_top1=test_top1,
            binary_agreement=agreement,
            evaluated=_evaluated(trials),
            suggested=len(trials),
        )

    def _prove(self, bundle: Bundle, architecture: Architecture) -> tuple[float, float]:
        """Run the binary on the test images: its accuracy, and its agreement with the child."""
        test = self.data.test
        self.report(SearchProgress("test", 0, len(test), 0.0, ""))
        child = extract_calibrated(self.network, architecture, self.data)
        expected = predict(child, test.images, self.data.mean, self.data.std).argmax(axis=1)
        library = bundle.open_library()
        size = architecture.resolution
        if library.input_floats != self.space.in_channels * size * size:
            raise MeasurementError("the binary's input does not fit the architecture")
        classes = []
        for start in range(0, len(test), 256):
            images = test.images[start : start + 256]
            inputs = preprocess(images, size, self.data.mean, self.data.std)
            classes.append(library.run(inputs.numpy()).argmax(axis=1))
        found = np.concatenate(classes)
        return float(np.mean(found == test.labels)), float(np.mean(found == expected))


def _evaluated(trials: Sequence[Trial]) -> int:
    return sum(1 for one in trials if one.top1 is not None)


def _first(data: ImageData, split: str, count: int) -> Any:
    chosen = data.split(split)
    return chosen.take(np.arange(min(count, len(chosen))))

"""The whole search: budgets in, a bundle that keeps them out, everything measured on the way kept.

1. explore     a strategy suggests architectures; the predictor rejects what breaks a limit for
               nothing, the others are evaluated as they are, on validation images; with an
               accuracy predictor the strategy is told predictions, and only what looks best is
               evaluated
2. finalists   the best ones and the Pareto front are evaluated on all validation images, and so are
               children around them that use what the best one leaves of its limits; the best of all
               these are compiled and measured, interleaved, in several processes: how much the same
               binary differs says how much of a budget has to be left; then the same once more
               with what the best one leaves as measured
3. deliver     the most accurate finalist that keeps all budgets becomes a bundle; its own binary is
               verified and measured again, and the next finalist takes its place if it fails; when
               none is left, the predictor is conditioned on what was measured, and tells which
               further finalists to take
4. report      test images are looked at once, for the winner; result.json says what each figure is
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bignas.compile.bundle import Bundle, record_measured
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
from bignas.latency.bench import PROCESSES, bench_bundle
from bignas.latency.metrics import spread
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import Recorder
from bignas.latency.remote_bundle import BundleRunner, verify_on
from bignas.latency.subnets import measure_subnets, typical_weights_bytes
from bignas.latency.tuning import ensure_networks_tuned
from bignas.search.anatomy import anatomy
from bignas.search.deliver import deliver_child
from bignas.search.pareto import pareto_front
from bignas.search.preselect import preselect
from bignas.search.refine import refinements
from bignas.search.requirements import Requirements, Site
from bignas.search.resources import delivered
from bignas.search.result import (
    BUNDLE,
    RESULT,
    AccuracyUse,
    Candidate,
    LatencyAt,
    Objective,
    SearchConfig,
    SearchResult,
)
from bignas.search.strategy import create_strategy
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.data import ImageData, SplitName, preprocess
from bignas.supernet.evaluate import extract_calibrated, predict
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["SearchProgress", "run_search"]

BATCH = 16
PRESELECTED_BATCH = 8  # evaluated before they are logged, where predictions chose them
CALIBRATION_IMAGES = 512  # while exploring; finalists get the whole calibration split
SUGGESTIONS_PER_EVALUATION = 60  # bound on how long a strategy may look for feasible architectures
FRONT_MEMBERS = 8
ROUNDS = 4  # of finalists, until one keeps the promise
REFINEMENTS = 24  # at most, evaluated where finalists leave room; half of them before measuring
REFINEMENT_BATCH = 4  # of them, before it is asked again where there is room
MEDIANS = math.sqrt(math.pi / PROCESSES)  # deviation between medians of so many, in single ones
HEADROOM = (
    0.005  # of a budget, at least: on a quiet machine binaries came out up to 0.4% slower later
)
DEVIATIONS = 2.5  # of the same binary in another process, that are left of a budget
BUNDLES = "bundles"  # those for further devices


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Where a search stands; `note` names the best so far."""

    phase: str
    done: int
    total: int
    eta_seconds: float
    note: str


Report = Callable[[SearchProgress], None]
Array = NDArray[np.float64]


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
    others: Sequence[Site] = (),
    accuracy: AccuracyPredictor | None = None,
    processes: int = 1,
) -> SearchResult:
    """Find the most accurate architecture that keeps all limits, deliver and prove its binary.

    `config.budget_ms` is the budget on `device`; `others` are devices on which the architecture has
    to keep a budget too. `accuracy` chooses what is evaluated, in so many `processes` at a time.
    Goes on where an interrupted search in `out` stopped.

    Raises:
        InfeasibleBudgetError: no architecture keeps all limits; the nearest one is named.
        InputError: an unknown or faulty strategy, a folder with another search in it, or an
            accuracy predictor of other weights or data.
        CheckpointError, OutputError, MeasurementError, ToolchainError, VerificationError.
    """
    sites = (Site(device, cache, predictor, config.budget_ms), *others)
    search = _Search(
        network, checkpoint, checkpoint.align(data), store, sites, config, out,
        progress or (lambda _: None), accuracy, processes,
    )  # fmt: skip
    require_writable(out / RESULT)
    search.requirements.require_feasible(config.seed)
    question = _question(network.space, checkpoint, sites, config, accuracy)
    with search.exploring, search.final:
        result = search.finish(checkpoint, search.explore(question))
    text = json.dumps(result.to_dict(), indent=1) + "\n"
    write_atomically(out / RESULT, text.encode())
    return result


def _question(
    space: SearchSpace,
    checkpoint: Checkpoint,
    sites: Sequence[Site],
    config: SearchConfig,
    accuracy: AccuracyPredictor | None,
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(config),
        "space": space.digest,
        "data": checkpoint.data_digest,
        "step": checkpoint.step,
        "devices": {site.device.name: site.budget_ms for site in sites},
        "code_hash": code_hash(),
        "accuracy_predictor": None if accuracy is None else accuracy.digest,
    }


class _Search:
    """The parts of one search, which share its question."""

    def __init__(
        self,
        network: Supernet,
        checkpoint: Checkpoint,
        data: ImageData,
        store: Store,
        sites: Sequence[Site],
        config: SearchConfig,
        out: Path,
        report: Report,
        accuracy: AccuracyPredictor | None = None,
        processes: int = 1,
    ) -> None:
        self.network = network
        self.space = network.space
        self.data = data
        self.store = store
        self.sites = tuple(
            dataclasses.replace(site, predictor=site.predictor.for_space(self.space))
            for site in sites
        )
        self.config = config
        self.out = out
        self.report = report
        self.accuracy = _fitting(accuracy, checkpoint, data)
        self.final = ChildEvaluator(checkpoint, data, store)
        self.exploring = self.final if accuracy is not None else ChildEvaluator(
            checkpoint, data, store, SplitName.VALIDATION, config.validation_images,
            CALIBRATION_IMAGES,
        )  # fmt: skip
        self.processes = processes
        self.predicted = 0  # accuracies, to choose what is evaluated
        lasting = max(site.predictor.repeatability for site in self.sites)
        self.headroom = max(HEADROOM, DEVIATIONS * lasting)
        self.requirements = Requirements(
            self.space, self.sites, config.confidence, config.limits
        ).leaving(self.headroom, config.seed)

    # --- exploring --------------------------------------------------------------------------------

    def explore(self, question: dict[str, Any]) -> list[Trial]:
        """Let the strategy look around; return all trials."""
        log = TrialLog(self.out, question)
        if self.accuracy is not None:
            return self._explore_preselected(log, self.accuracy)
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
            batch = self._evaluate_batch(suggestions, _evaluated(trials))
            log.append(batch)
            strategy.tell(batch)
            trials += batch
            self._report_exploring(trials, start, before)
        return trials

    def _explore_preselected(self, log: TrialLog, accuracy: AccuracyPredictor) -> list[Trial]:
        """Let the strategy look around by prediction; evaluate what it finds best."""

        def judge(suggestions: Sequence[Architecture]) -> list[Trial]:
            tops = accuracy.predict(suggestions).tolist()
            return [
                Trial(architecture, latency_ms, load, top1 if load <= 1 else None)
                for (architecture, latency_ms, load), top1 in zip(
                    self._priced(suggestions), tops, strict=True
                )
            ]

        config = self.config
        self.report(SearchProgress("predict", 0, 1, 0.0, ""))
        strategy = create_strategy(config.strategy, self.space, config.seed)
        front = config.objective is Objective.ACCURACY_AND_LATENCY
        found = preselect(strategy, judge, config.evaluations, front=front)
        self.report(SearchProgress("predict", 1, 1, 0.0, ""))
        self.predicted = found.predicted
        trials = [one for batch in log.read() for one in batch]
        start, before = time.monotonic(), _evaluated(trials)
        known = {one.architecture for one in trials}
        waiting = [one for one in found.chosen if one not in known]
        waiting = waiting[: config.evaluations - before]
        for first in range(0, len(waiting), PRESELECTED_BATCH):
            chosen = waiting[first : first + PRESELECTED_BATCH]
            batch = self._evaluate_batch(chosen, _evaluated(trials))
            log.append(batch)
            trials += batch
            self._report_exploring(trials, start, before)
        return trials

    def _evaluate_batch(self, suggestions: Sequence[Architecture], done: int) -> list[Trial]:
        priced = self._priced(suggestions)
        keeping = [architecture for architecture, _, load in priced if load <= 1]
        chosen = keeping[: max(0, self.config.evaluations - done)]
        top1 = dict(zip(chosen, self.exploring.evaluate(chosen, self.processes), strict=True))
        return [
            Trial(architecture, latency_ms, load, top1.get(architecture))
            for architecture, latency_ms, load in priced
        ]

    def _priced(
        self, architectures: Sequence[Architecture]
    ) -> list[tuple[Architecture, float, float]]:
        """Architectures with their predicted latency in ms and their load."""
        latencies_ms = self.sites[0].predictor.predict(architectures).latency_ms
        loads = self.requirements.loads(architectures)
        return list(zip(architectures, latencies_ms.tolist(), loads.tolist(), strict=True))

    def _report_exploring(self, trials: Sequence[Trial], start: float, before: int) -> None:
        done, total = _evaluated(trials), self.config.evaluations
        pace = (time.monotonic() - start) / max(1, done - before)
        best = max((one.top1 or 0.0 for one in trials if one.feasible), default=0.0)
        note = f"best {best:.2%}" if best else "nothing feasible yet"
        self.report(SearchProgress("explore", done, total, pace * (total - done), note))

    # --- finalists --------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint, trials: Sequence[Trial]) -> SearchResult:
        """Measure the finalists and the front, deliver the best that keeps the promise."""
        waiting = [one for one in trials if one.feasible and one.top1 is not None]
        if not waiting:
            raise InfeasibleBudgetError(
                f"the strategy {self.config.strategy!r} found no architecture that keeps all"
                f" limits in {len(trials)} suggestions; allow more evaluations"
            )
        requirements = self.requirements
        looked_at = {one.architecture: one for one in trials}
        final: list[Trial] = []  # evaluated on all validation images
        measured: list[Candidate] = []
        for _ in range(ROUNDS):
            chosen = self._finalists(waiting)
            final += self._evaluate([one.architecture for one in chosen], requirements)
            final += self._refine(trials, final, requirements, REFINEMENTS // 2)
            candidates = self._measure(self._finalists(_unmeasured(final, measured)))
            candidates += self._spend_rest(trials, final, [*measured, *candidates])
            measured += candidates
            looked_at |= {one.architecture: one for one in final}
            delivered = self._deliver_best(checkpoint, candidates, self.headroom)
            if delivered is not None:
                return self._result(*delivered, measured, list(looked_at.values()))
            requirements = self._informed(measured)
            waiting = _reloaded([one for one in waiting if one not in chosen], requirements)
            final = _reloaded(final, requirements)
            if not waiting and not _unmeasured(final, measured):
                break
        delivered = self._deliver_best(checkpoint, measured, headroom=0.0)
        if delivered is not None:
            return self._result(*delivered, measured, list(looked_at.values()))
        fastest = min((one.measured_ms for one in measured), default=float("nan"))
        raise InfeasibleBudgetError(
            f"none of {len(measured)} finalists keeps all limits when measured; the fastest takes"
            f" {fastest:.4g} ms on {self.sites[0].device.name}"
        )

    def _finalists(self, waiting: Sequence[Trial]) -> list[Trial]:
        """The most accurate ones and, when latency counts too, the front."""
        ranked = sorted(waiting, key=lambda one: (-(one.top1 or 0.0), one.latency_ms))
        chosen = ranked[: self.config.finalists]
        if self.config.objective is Objective.ACCURACY_AND_LATENCY:
            chosen += pareto_front(ranked)[-FRONT_MEMBERS:]
        return list(dict.fromkeys(chosen))

    def _evaluate(
        self, architectures: Sequence[Architecture], requirements: Requirements
    ) -> list[Trial]:
        """Evaluate architectures on all validation images."""
        latencies_ms = requirements.sites[0].predictor.predict(architectures).latency_ms
        loads = requirements.loads(architectures)
        self.report(SearchProgress("finalists", 0, len(architectures), 0.0, ""))
        top1 = self.final.evaluate(
            architectures,
            self.processes,
            lambda done, total: self.report(SearchProgress("finalists", done, total, 0.0, "")),
        )
        return [
            Trial(*one)
            for one in zip(architectures, latencies_ms.tolist(), loads.tolist(), top1, strict=True)
        ]

    def _refine(
        self,
        told: Sequence[Trial],
        final: Sequence[Trial],
        requirements: Requirements,
        most: int,
    ) -> list[Trial]:
        """Evaluate up to so many that use what the best final one leaves, until that is little."""
        most = min(most, self.config.evaluations)
        refined: list[Trial] = []
        while len(refined) < most:
            count = min(REFINEMENT_BATCH, most - len(refined))
            proposed = refinements(
                self.space, told, [*final, *refined], requirements.loads, count
            )  # fmt: skip
            if not proposed:
                break
            refined += self._evaluate(proposed, requirements)
        return refined

    def _spend_rest(
        self, told: Sequence[Trial], final: list[Trial], measured: Sequence[Candidate]
    ) -> list[Candidate]:
        """Refine with what was measured, and measure what is more accurate than the best so far.

        What was predicted to fill a budget may break it, and the next best leave a part of it. What
        is evaluated is added to `final`.
        """
        keeping = [one.top1 for one in measured if one.keeps(self.headroom)]
        if not keeping:
            return []
        informed = self._informed(measured)
        known = {one.architecture: one for one in _loaded(final, informed)}
        known |= {one.architecture: one for one in self._as_measured(measured, informed)}
        refined = self._refine(told, list(known.values()), informed, REFINEMENTS // 2)
        final += refined
        promising = [
            one
            for one in _unmeasured([*known.values(), *refined], measured)
            if (one.top1 or 0.0) > max(keeping)
        ]
        return self._measure(self._finalists(promising))

    def _informed(self, measured: Sequence[Candidate]) -> Requirements:
        """The requirements with all that measuring has told."""
        return self.requirements.leaving(self.headroom, self.config.seed).conditioned(
            [one.architecture for one in measured],
            [[at.measured_ms for at in one.latencies] for one in measured],
        )

    def _as_measured(self, measured: Sequence[Candidate], informed: Requirements) -> list[Trial]:
        """What was measured, with loads of the budgets as measured."""
        found = []
        for one in measured:
            shares = {
                name: float(share[0]) for name, share in informed.shares([one.architecture]).items()
            }
            for site, at in zip(self.sites, one.latencies, strict=True):
                shares[site.limit] = at.measured_ms / (at.budget_ms * (1 - self.headroom))
            found.append(Trial(one.architecture, one.measured_ms, max(shares.values()), one.top1))
        return found

    def _measure(self, trials: Sequence[Trial]) -> list[Candidate]:
        """Compile architectures and measure them together; those that fail are left out.

        How much the same binary differs from process to process, and has differed from one minute
        to another, says how much of a budget to leave.
        """
        architectures = [one.architecture for one in trials]
        repeated_ms = np.array([self._measure_at(site, architectures) for site in self.sites])
        measured = np.isfinite(repeated_ms).all(axis=(0, 2))  # [sites, architectures, processes]
        if measured.any():
            now = max(spread(here_ms[measured]) for here_ms in repeated_ms)
            self.headroom = max(self.headroom, DEVIATIONS * MEDIANS * now)
        return [
            self._candidate(
                one.architecture,
                one.top1 or 0.0,
                np.median(repeated_ms[:, number], axis=1).tolist(),
            )
            for number, one in enumerate(trials)
            if measured[number]
        ]

    def _measure_at(self, site: Site, architectures: Sequence[Architecture]) -> Array:
        """Medians in ms on one device [architectures, processes], NaN where one failed.

        The store keeps the records for the next predictor.
        """
        if not architectures:
            return np.zeros((0, PROCESSES))
        layers = [workloads(self.space, architecture) for architecture in architectures]
        kernels = ensure_networks_tuned(
            layers,
            site.device,
            self.store,
            site.cache,
            self._report_tuning,
            typical_weights_bytes(self.space),
        )
        recorder = Recorder(site.device.name)
        records = measure_subnets(
            self.space, architectures, kernels, site.device, site.cache, recorder,
            processes=PROCESSES,
        )  # fmt: skip
        self.store.add_measurements(records)
        medians_ms = [one.p50_ns / 1e6 if one.ok else np.nan for one in records]
        return np.array(medians_ms).reshape(PROCESSES, len(architectures)).T

    def _report_tuning(self, done: int, total: int, rejected: int) -> bool:
        note = f"{rejected} groups of samples repeated"
        self.report(SearchProgress("kernels", done, total, 0.0, note))
        return True

    def _candidate(
        self, architecture: Architecture, top1: float, measured_ms: Sequence[float]
    ) -> Candidate:
        probabilities = self.requirements.probabilities(architecture)
        latencies: list[LatencyAt] = []
        for site, latency_ms in zip(self.sites, measured_ms, strict=True):
            prediction = site.predictor.predict([architecture])
            latencies.append(
                LatencyAt(
                    device=site.device.name,
                    budget_ms=site.budget_ms,
                    predicted_ms=float(prediction.latency_ms[0]),
                    interval_ms=(float(prediction.low_ms[0]), float(prediction.high_ms[0])),
                    probability=probabilities[site.device.name],
                    measured_ms=latency_ms,
                )
            )
        macs, params = self.space.macs(architecture), self.space.params(architecture)
        predicted_top1 = None
        if self.accuracy is not None:
            predicted_top1 = float(self.accuracy.predict([architecture])[0])
        return Candidate(architecture, top1, macs, params, tuple(latencies), predicted_top1)

    # --- delivering -------------------------------------------------------------------------------

    def _deliver_best(
        self, checkpoint: Checkpoint, candidates: Sequence[Candidate], headroom: float
    ) -> tuple[dict[str, Bundle], Candidate] | None:
        """Deliver the most accurate candidate that keeps its budgets, with headroom to spare.

        None when no candidate does, or none whose binary does.
        """
        keeping = [one for one in candidates if one.keeps(headroom)]
        keeping.sort(key=lambda one: (-one.top1, one.measured_ms))
        for number, candidate in enumerate(keeping):
            self.report(SearchProgress("deliver", number, len(keeping), 0.0, ""))
            bundles, best = self._deliver(checkpoint, candidate)
            if best.keeps(headroom) and self._is_small_enough(bundles):
                return bundles, best
        return None

    def _deliver(
        self, checkpoint: Checkpoint, candidate: Candidate
    ) -> tuple[dict[str, Bundle], Candidate]:
        """Write and measure a bundle for each device; also the candidate as measured then."""
        bundles: dict[str, Bundle] = {}
        latencies: list[LatencyAt] = []
        for site, latency in zip(self.sites, candidate.latencies, strict=True):
            bundle, measured = self._deliver_at(site, checkpoint, candidate.architecture)
            bundles[site.device.name] = bundle
            latencies.append(dataclasses.replace(latency, measured_ms=measured.latency_ms))
        return bundles, dataclasses.replace(candidate, latencies=tuple(latencies))

    def _deliver_at(
        self, site: Site, checkpoint: Checkpoint, architecture: Architecture
    ) -> tuple[Bundle, Latency]:
        bundle = deliver_child(
            self.network, checkpoint, architecture, self.data, site.device, self.store,
            site.cache, self.out / self._place(site), site.predictor,
        )  # fmt: skip
        verification = verify_on(bundle, site.device)
        if not verification.ok:
            raise VerificationError(
                f"the binary differs from its ONNX model by {verification.max_abs_error:.2g}"
            )
        measured = bench_bundle(bundle, device=site.device)
        return record_measured(bundle, measured), measured

    def _place(self, site: Site) -> str:
        return BUNDLE if site is self.sites[0] else f"{BUNDLES}/{site.device.name}"

    def _is_small_enough(self, bundles: dict[str, Bundle]) -> bool:
        """Whether the bundles keep the limits of resources, as their manifests tell."""
        limits = self.config.limits.given()
        return all(
            used <= limits.get(name, used)
            for bundle in bundles.values()
            for name, used in delivered(bundle.manifest).items()
        )

    def _result(
        self,
        bundles: dict[str, Bundle],
        best: Candidate,
        candidates: Sequence[Candidate],
        trials: Sequence[Trial],
    ) -> SearchResult:
        first = self.sites[0]
        bundle = bundles[first.device.name]
        test_top1, agreement = self._prove(bundle, first.device, best.architecture)
        keeping = [one for one in candidates if one.kept]
        measured = [Trial(one.architecture, one.measured_ms, 1.0, one.top1) for one in keeping]
        on_front = {trial.architecture for trial in pareto_front(measured)}
        front = [one for one in keeping if one.architecture in on_front]
        return SearchResult(
            space=self.space.name,
            config=self.config,
            best=best,
            front=tuple(sorted(front, key=lambda one: one.measured_ms)),
            finalists=tuple(sorted(candidates, key=lambda one: one.measured_ms)),
            bundles={site.device.name: self._place(site) for site in self.sites},
            kernels=anatomy(first.predictor, best.architecture),
            test_top1=test_top1,
            binary_agreement=agreement,
            evaluated=_evaluated(trials),
            suggested=len(trials),
            accuracy=None
            if self.accuracy is None
            else AccuracyUse(self.predicted, self.accuracy.error),
            headroom=self.headroom,
        )

    def _prove(
        self, bundle: Bundle, device: Device, architecture: Architecture
    ) -> tuple[float, float]:
        """Run the binary on the test images: its accuracy, and its agreement with the child."""
        test = self.data.test
        self.report(SearchProgress("test", 0, len(test), 0.0, ""))
        child = extract_calibrated(self.network, architecture, self.data)
        expected = predict(child, test.images, self.data.mean, self.data.std).argmax(axis=1)
        size = architecture.resolution
        runner = BundleRunner(bundle, device)
        if runner.input_floats != self.space.in_channels * size * size:
            raise MeasurementError("the binary's input does not fit the architecture")
        classes = []
        for start in range(0, len(test), runner.batch):
            images = test.images[start : start + runner.batch]
            inputs = preprocess(images, size, self.data.mean, self.data.std)
            classes.append(runner.run(inputs.numpy()).argmax(axis=1))
        found = np.concatenate(classes)
        return float(np.mean(found == test.labels)), float(np.mean(found == expected))


def _unmeasured(final: Sequence[Trial], measured: Sequence[Candidate]) -> list[Trial]:
    """The trials that keep all limits, as far as is known, and were not measured."""
    known = {one.architecture for one in measured}
    return [one for one in final if one.feasible and one.architecture not in known]


def _loaded(trials: Sequence[Trial], requirements: Requirements) -> list[Trial]:
    """The trials with their loads as they are known now."""
    loads = requirements.loads([one.architecture for one in trials])
    return [
        dataclasses.replace(one, load=load)
        for one, load in zip(trials, loads.tolist(), strict=True)
    ]


def _reloaded(trials: Sequence[Trial], requirements: Requirements) -> list[Trial]:
    """The trials with their loads as they are known now, without those that break a limit."""
    return [one for one in _loaded(trials, requirements) if one.feasible]


def _evaluated(trials: Sequence[Trial]) -> int:
    return sum(1 for one in trials if one.top1 is not None)


def _fitting(
    accuracy: AccuracyPredictor | None, checkpoint: Checkpoint, data: ImageData
) -> AccuracyPredictor | None:
    """Return the predictor; InputError when it is about other weights or data."""
    if accuracy is not None and not accuracy.matches(checkpoint.digest, data.digest):
        raise InputError("the accuracy predictor is about other weights or data")
    return accuracy

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
               verified and measured again, and if it fails, what is left is searched once more and
               the next finalist takes its place; when none is left, the predictor is conditioned on
               what was measured, and tells which further finalists to take
4. report      test images are looked at once, for the winner; result.json says what each figure is
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bignas.compile.bundle import Bundle
from bignas.compile.kernel_identity import code_hash
from bignas.compile.objects import ObjectCache
from bignas.compile.workload import workloads
from bignas.device_db.device import Device
from bignas.device_db.errors import (
    InfeasibleBudgetError,
)
from bignas.device_db.files import require_writable, write_atomically
from bignas.device_db.store import Store
from bignas.latency.bench import BENCH_DEVIATION, MEDIAN_DEVIATION, PROCESSES
from bignas.latency.metrics import spread
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.recording import Recorder
from bignas.latency.subnets import measure_subnets, typical_weights_bytes
from bignas.latency.tuning import ensure_networks_tuned
from bignas.search.anatomy import anatomy
from bignas.search.context import Report, SearchContext, SearchProgress
from bignas.search.delivery import Delivery
from bignas.search.explore import Explorer, evaluated
from bignas.search.pareto import pareto_front
from bignas.search.refine import quadratic_model, refinements
from bignas.search.requirements import Requirements, Site
from bignas.search.result import (
    RESULT,
    AccuracyUse,
    Candidate,
    LatencyAt,
    Objective,
    SearchConfig,
    SearchResult,
    expected_top1,
)
from bignas.search.trial import Trial
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.data import ImageData, SplitName
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["run_search"]

CALIBRATION_IMAGES = 512  # while exploring; finalists get the whole calibration split
FRONT_MEMBERS = 8
ROUNDS = 4  # of finalists, until one keeps the promise
REFINEMENTS = 24  # at most, evaluated where finalists leave room; half of them before measuring
PREDICTED_REFINEMENTS = 8  # where an accuracy predictor chooses them
REFINEMENT_BATCH = 4  # of them, before it is asked again where there is room
MEDIANS = math.sqrt(2) * MEDIAN_DEVIATION  # deviation between two medians, in single ones
BENCHES = math.sqrt(1 + 1 / 2) * BENCH_DEVIATION  # of one minutes later, from the mean of two
HEADROOM = 0.005  # of a budget, at least: on a quiet machine binaries were up to 0.4% slower later
DEVIATIONS = 2.5  # of the same binary in another process, that are left of a budget
RENEWALS = 3  # of what is measured, at most, when binaries do not keep the promise

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
    data = checkpoint.align(data)
    search = _Search(
        SearchContext(
            network, checkpoint, data, store,
            tuple(replace(one, predictor=one.predictor.for_space(network.space)) for one in sites),
            config, out, progress or (lambda _: None), accuracy,
            processes,
        )
    )  # fmt: skip
    require_writable(out / RESULT)
    search.requirements.require_feasible(config.seed)
    question = _question(network.space, checkpoint, sites, config, accuracy)
    with search.exploring, search.final:
        result = search.finish(search.explorer.explore(question))
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
        **asdict(config),
        "space": space.digest,
        "data": checkpoint.data_digest,
        "step": checkpoint.step,
        "devices": {site.device.name: site.budget_ms for site in sites},
        "code_hash": code_hash(),
        "accuracy_predictor": None if accuracy is None else accuracy.digest,
    }


class _Search:
    """The parts of one search, which share its question."""

    def __init__(self, context: SearchContext) -> None:
        checkpoint, data, store = context.checkpoint, context.data, context.store
        config = context.config
        self.context = context
        self.space = context.space
        self.sites = context.sites
        self.config = config
        self.report = context.report
        self.final = ChildEvaluator(checkpoint, data, store)
        self.exploring = self.final if context.accuracy is not None else ChildEvaluator(
            checkpoint, data, store, SplitName.VALIDATION, config.validation_images,
            CALIBRATION_IMAGES,
        )  # fmt: skip
        lasting = max(site.predictor.repeatability.at(site.budget_ms) for site in self.sites)
        self.headroom = max(HEADROOM, DEVIATIONS * BENCHES * lasting)
        self.requirements = Requirements(
            self.space, self.sites, config.confidence, config.limits
        ).leaving(self.headroom, config.seed)
        self.explorer = Explorer(context, self.requirements, self.exploring)
        self.delivery = Delivery(context)
        self.top1: dict[Architecture, float] = {}  # on all validation images
        self.too_large: set[Architecture] = set()  # as bundles

    def finish(self, trials: Sequence[Trial]) -> SearchResult:
        """Measure the finalists and the front, deliver the best that keeps the promise."""
        waiting = self._expecting([one for one in trials if one.feasible and one.top1 is not None])
        if not waiting:
            raise InfeasibleBudgetError(
                f"the strategy {self.config.strategy!r} found no architecture that keeps all"
                f" limits in {len(trials)} suggestions; allow more evaluations"
            )
        requirements = self.requirements
        looked_at = {one.architecture: one for one in trials}
        final: list[Trial] = []  # evaluated on all validation images, with what is expected of them
        measured: list[Candidate] = []
        for _ in range(ROUNDS):
            chosen = self._finalists(waiting)
            final += self._evaluate([one.architecture for one in chosen], requirements)
            final += self._refine(trials, final, requirements)
            candidates = self._measure(self._finalists(_unmeasured(final, measured)))
            candidates += self._spend_rest(trials, final, [*measured, *candidates])
            measured += candidates
            delivered = self._deliver(trials, final, measured)
            looked_at |= {one.architecture: one for one in final}
            if delivered is not None:
                return self._result(*delivered, measured, list(looked_at.values()))
            requirements = self._informed(measured)
            waiting = _reloaded([one for one in waiting if one not in chosen], requirements)
            final = _reloaded(final, requirements)
            if not waiting and not _unmeasured(final, measured):
                break
        self.headroom = 0.0
        delivered = self._deliver(trials, final, measured)
        if delivered is not None:
            return self._result(*delivered, measured, list(looked_at.values()))
        fastest = min((one.measured_ms for one in measured), default=float("nan"))
        raise InfeasibleBudgetError(
            f"none of {len(measured)} finalists keeps all limits when measured; the fastest takes"
            f" {fastest:.4g} ms on {self.sites[0].device.name}"
        )

    def _deliver(
        self, told: Sequence[Trial], final: list[Trial], measured: list[Candidate]
    ) -> tuple[dict[str, Bundle], Candidate] | None:
        """Deliver the most accurate finalist whose binary keeps the promise; None without one.

        A binary that does not counts as it was measured then, and the room that all leave is
        searched once more: the next best may be far less accurate. `final` and `measured` grow.
        """
        attempts = renewals = 0
        while keeping := self._keeping(measured):
            best = min(keeping, key=lambda one: (-one.expected_top1, one.measured_ms))
            self.report(SearchProgress("deliver", attempts, attempts + 1, 0.0, ""))
            bundles, delivered = self.delivery.deliver(best)
            attempts += 1
            self.report(SearchProgress("deliver", attempts, attempts, 0.0, ""))
            if not self.delivery.are_small_enough(bundles):
                self.too_large.add(best.architecture)
            elif delivered.keeps_again(best, self.headroom):
                return bundles, delivered
            else:
                measured[measured.index(best)] = delivered
            if self.headroom > 0 and renewals < RENEWALS:  # at last no more is measured
                renewals += 1
                measured += self._spend_rest(told, final, measured)
        return None

    def _keeping(self, measured: Sequence[Candidate]) -> list[Candidate]:
        """What keeps all limits as measured, with headroom."""
        return [
            one
            for one in measured
            if one.keeps(self.headroom) and one.architecture not in self.too_large
        ]

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
            self.context.processes,
            lambda done, total: self.report(SearchProgress("finalists", done, total, 0.0, "")),
        )
        self.top1.update(zip(architectures, top1, strict=True))
        trials = zip(architectures, latencies_ms.tolist(), loads.tolist(), top1, strict=True)
        return self._expecting([Trial(*one) for one in trials])

    def _expecting(self, trials: Sequence[Trial]) -> list[Trial]:
        """Give evaluated trials the accuracy that is expected of them on other images."""
        if self.context.accuracy is None or not trials:
            return list(trials)
        predicted = self.context.accuracy.predict([one.architecture for one in trials])
        return [
            replace(one, top1=expected_top1(one.top1 or 0.0, float(top1)))
            for one, top1 in zip(trials, predicted, strict=True)
        ]

    def _refine(
        self,
        told: Sequence[Trial],
        final: Sequence[Trial],
        requirements: Requirements,
    ) -> list[Trial]:
        """Evaluate some that use what the best final one leaves, until that is little."""
        accuracy = self.context.accuracy
        top1 = quadratic_model(self.space, told) if accuracy is None else accuracy.predict
        most = (REFINEMENTS if accuracy is None else PREDICTED_REFINEMENTS) // 2
        most = min(most, self.config.evaluations)
        refined: list[Trial] = []
        while len(refined) < most:
            count = min(REFINEMENT_BATCH, most - len(refined))
            proposed = refinements(
                self.space, top1, [*final, *refined], requirements.loads, count
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
        keeping = [one.expected_top1 for one in self._keeping(measured)]
        if not keeping:
            return []
        informed = self._informed(measured)
        known = {one.architecture: one for one in _loaded(final, informed)}
        known |= {one.architecture: one for one in self._as_measured(measured, informed)}
        refined = self._refine(told, list(known.values()), informed)
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
            load = max(shares.values())
            found.append(Trial(one.architecture, one.measured_ms, load, one.expected_top1))
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
                self.top1.get(one.architecture, one.top1 or 0.0),
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
            self.context.store,
            site.cache,
            self._report_tuning,
            typical_weights_bytes(self.space),
        )
        recorder = Recorder(site.device.name)
        records = measure_subnets(
            self.space, architectures, kernels, site.device, site.cache, recorder,
            processes=PROCESSES,
        )  # fmt: skip
        self.context.store.add_measurements(records)
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
        if self.context.accuracy is not None:
            predicted_top1 = float(self.context.accuracy.predict([architecture])[0])
        return Candidate(architecture, top1, macs, params, tuple(latencies), predicted_top1)

    def _result(
        self,
        bundles: dict[str, Bundle],
        best: Candidate,
        candidates: Sequence[Candidate],
        trials: Sequence[Trial],
    ) -> SearchResult:
        first = self.sites[0]
        bundle = bundles[first.device.name]
        test_top1, agreement = self.delivery.prove(bundle, first.device, best.architecture)
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
            bundles={site.device.name: self.delivery.place(site) for site in self.sites},
            kernels=anatomy(first.predictor, best.architecture),
            test_top1=test_top1,
            binary_agreement=agreement,
            evaluated=evaluated(trials),
            suggested=len(trials),
            accuracy=None
            if self.context.accuracy is None
            else AccuracyUse(self.explorer.predicted, self.context.accuracy.error),
            headroom=self.headroom,
        )


def _unmeasured(final: Sequence[Trial], measured: Sequence[Candidate]) -> list[Trial]:
    """The trials that keep all limits, as far as is known, and were not measured."""
    known = {one.architecture for one in measured}
    return [one for one in final if one.feasible and one.architecture not in known]


def _loaded(trials: Sequence[Trial], requirements: Requirements) -> list[Trial]:
    """The trials with their loads as they are known now."""
    loads = requirements.loads([one.architecture for one in trials])
    return [replace(one, load=load) for one, load in zip(trials, loads.tolist(), strict=True)]


def _reloaded(trials: Sequence[Trial], requirements: Requirements) -> list[Trial]:
    """The trials with their loads as they are known now, without those that break a limit."""
    return [one for one in _loaded(trials, requirements) if one.feasible]

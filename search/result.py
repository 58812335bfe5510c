"""What a search found, as values and as the content of result.json."""

import math
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from bignas.device_db.errors import InputError
from bignas.search.anatomy import KernelShare
from bignas.search.constraint import LatencyBudget, Limits
from bignas.search.strategy import DEFAULT_STRATEGY
from bignas.supernet.accuracy import AccuracyError
from bignas.supernet.architecture import Architecture

__all__ = [
    "BUNDLE",
    "EVALUATIONS",
    "FORMAT_VERSION",
    "PRESELECTED_EVALUATIONS",
    "RESULT",
    "AccuracyUse",
    "Candidate",
    "LatencyAt",
    "Objective",
    "SearchConfig",
    "SearchResult",
]

FORMAT_VERSION = 2
# History: 1 first version, without a number; 2 several devices, all finalists, kernels.

BUNDLE = "bundle"
RESULT = "result.json"

EVALUATIONS = 150  # unless said
EVALUATION_SHARE = 0.25  # of what an evaluation differs from the prediction by
PRESELECTED_EVALUATIONS = 12  # unless said, where an accuracy predictor chooses them


class Objective(StrEnum):
    """What a search is after."""

    ACCURACY = "accuracy"  # the best architecture alone
    ACCURACY_AND_LATENCY = "accuracy-latency"  # the front below the budget, too


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What a search is asked for. Raises InputError when a number makes no sense."""

    budget_ms: float
    strategy: str = DEFAULT_STRATEGY
    evaluations: int = EVALUATIONS  # architectures whose accuracy is measured while exploring
    finalists: int = 5  # that are compiled and measured, beside the front
    seed: int = 0
    validation_images: int = 2000  # while exploring; finalists are evaluated on all
    confidence: float = 0.95  # probability of keeping a budget, as predicted, to be considered
    limits: Limits = field(default_factory=Limits)
    objective: Objective = Objective.ACCURACY_AND_LATENCY

    def __post_init__(self) -> None:
        LatencyBudget(self.budget_ms)
        for name in ("evaluations", "finalists", "validation_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1, not {self.confidence:g}")


@dataclass(frozen=True, slots=True)
class LatencyAt:
    """A network on one device: latencies in ms, and the probability of keeping the budget there."""

    device: str
    budget_ms: float
    predicted_ms: float
    interval_ms: tuple[float, float]
    probability: float
    measured_ms: float

    def keeps(self, headroom: float) -> bool:
        """Whether it keeps the budget as measured, with a share of it to spare."""
        return LatencyBudget(self.budget_ms * (1 - headroom)).allows(self.measured_ms)


def expected_top1(evaluated: float, predicted: float | None) -> float:
    """Return the accuracy to expect on other images, from that on validation images.

    Where there is a prediction, that, and a quarter of what the evaluation differs by: evaluations
    err by the images that they happen to have, and predictions of children of the shipped supernet
    by hardly anything else (docs/decisions.md, "A quarter of what an evaluation adds").
    """
    if predicted is None:
        return evaluated
    return predicted + EVALUATION_SHARE * (evaluated - predicted)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One architecture: accuracy (0 to 1) on validation images, latencies on each device in ms."""

    architecture: Architecture
    top1: float
    macs: int
    params: int
    latencies: tuple[LatencyAt, ...]
    predicted_top1: float | None = None  # where there is an accuracy predictor

    @property
    def expected_top1(self) -> float:
        """The accuracy to expect on other images, by which candidates are compared."""
        return expected_top1(self.top1, self.predicted_top1)

    @property
    def kept(self) -> bool:
        """Whether it keeps all budgets as measured."""
        return self.keeps(headroom=0.0)

    def keeps(self, headroom: float) -> bool:
        """Whether it keeps all budgets as measured, with a share of them to spare."""
        return all(one.keeps(headroom) for one in self.latencies)

    def keeps_again(self, before: "Candidate", headroom: float) -> bool:
        """Whether it keeps all budgets, and with what it was measured at before with some to spare.

        A latency known from two measurements is surer than one that passed a limit once, perhaps
        by luck.
        """
        both = [
            replace(now, measured_ms=(now.measured_ms + then.measured_ms) / 2)
            for now, then in zip(self.latencies, before.latencies, strict=True)
        ]
        return self.kept and all(one.keeps(headroom) for one in both)

    @property
    def measured_ms(self) -> float:
        """Its latency on the first device."""
        return self.latencies[0].measured_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        first = self.latencies[0]
        return {
            "arch": self.architecture.to_dict(),
            "top1": self.top1,
            "predicted_top1": self.predicted_top1,
            "expected_top1": self.expected_top1,
            "macs": self.macs,
            "params": self.params,
            "predicted_ms": first.predicted_ms,
            "interval_ms": list(first.interval_ms),
            "measured_ms": first.measured_ms,
            "probability": first.probability,
            "devices": [asdict(one) for one in self.latencies],
        }


@dataclass(frozen=True, slots=True)
class AccuracyUse:
    """How many accuracies were predicted to choose what is evaluated, and the predictor's error."""

    predicted: int
    error: AccuracyError

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rank = self.error.spearman
        return {
            "predicted": self.predicted,
            **asdict(self.error),
            "spearman": rank if math.isfinite(rank) else None,
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search delivers; `test_top1` and `binary_agreement` are of the winner's binary.

    `binary_agreement` is the share of test images on which the binary and the supernet's child give
    the same class. `front` and `finalists` were all measured. `bundles` are folders, by device.
    `headroom` is the share of each budget that was to be left, as the same binary is slower at
    times.
    """

    space: str
    config: SearchConfig
    best: Candidate
    front: tuple[Candidate, ...]
    finalists: tuple[Candidate, ...]
    bundles: dict[str, str]
    kernels: tuple[KernelShare, ...]  # of the best, on the first device
    test_top1: float
    binary_agreement: float
    evaluated: int
    suggested: int
    accuracy: AccuracyUse | None = None  # of the accuracy predictor, if there was one
    headroom: float = 0.0

    @property
    def device(self) -> str:
        """The first device."""
        return self.best.latencies[0].device

    @property
    def bundle(self) -> str:
        """The bundle for the first device."""
        return self.bundles[self.device]

    def to_dict(self) -> dict[str, Any]:
        """Return result.json's content."""
        return {
            "format_version": FORMAT_VERSION,
            "device": self.device,
            "space": self.space,
            "budget_ms": self.config.budget_ms,
            "confidence": self.config.confidence,
            "headroom": self.headroom,
            "limits": self.config.limits.given(),
            "objective": self.config.objective.value,
            "best": {**self.best.to_dict(), "test_top1": self.test_top1},
            "front": [candidate.to_dict() for candidate in self.front],
            "finalists": [candidate.to_dict() for candidate in self.finalists],
            "bundle": self.bundle,
            "bundles": self.bundles,
            "kernels": [asdict(one) for one in self.kernels],
            "binary_agreement": self.binary_agreement,
            "strategy": self.config.strategy,
            "seed": self.config.seed,
            "evaluated": self.evaluated,
            "suggested": self.suggested,
            "accuracy_predictor": None if self.accuracy is None else self.accuracy.to_dict(),
            "kinds": {
                "predicted_ms": "predicted",
                "interval_ms": "predicted",
                "probability": "predicted",
                "measured_ms": "measured",
                "top1": "measured on validation images",
                "predicted_top1": "predicted",
                "expected_top1": "predicted_top1, where there is one, and a quarter of what top1"
                " differs by; else top1",
                "test_top1": "measured on test images with the binary",
            },
        }

"""From evaluated children to an accuracy predictor, and how good it is on fresh ones."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bignas.device_db.errors import InputError
from bignas.supernet.accuracy import FEWEST_CHILDREN, AccuracyError, AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.drawing import draw_children, draw_fresh_children
from bignas.supernet.space import SearchSpace

__all__ = ["AccuracyEvaluation", "evaluate_accuracy", "fit_accuracy"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AccuracyEvaluation:
    """Predictions against fresh children: their error, and each of them (fractions from 0 to 1).

    `deviation` is the spread of the evaluated accuracies: the error of predicting their mean.
    """

    error: AccuracyError
    deviation: float
    children: tuple[tuple[Architecture, float, float], ...]  # predicted, evaluated

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            **asdict(self.error),
            "deviation": self.deviation,
            "children": [
                {"arch": arch.to_dict(), "predicted": predicted, "evaluated": evaluated}
                for arch, predicted, evaluated in self.children
            ],
        }


def fit_accuracy(
    evaluator: ChildEvaluator,
    space: SearchSpace,
    children: int,
    seed: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> AccuracyPredictor:
    """Evaluate so many children, those that the store does not know, and fit a predictor to them.

    Raises InputError for fewer than FEWEST_CHILDREN (or a space that has no more), and what
    `ChildEvaluator.evaluate` raises.
    """
    archs = draw_children(space, children, seed)
    if len(archs) < FEWEST_CHILDREN:
        raise InputError(
            f"an accuracy predictor needs at least {FEWEST_CHILDREN} children, not {len(archs)}"
        )
    top1 = evaluator.evaluate(archs, processes, progress)
    found = dict(zip(archs, top1, strict=True))
    return AccuracyPredictor.fit(space, evaluator.setting, found, seed)


def evaluate_accuracy(
    predictor: AccuracyPredictor,
    evaluator: ChildEvaluator,
    children: int,
    seed: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> AccuracyEvaluation:
    """Compare predictions with uniformly drawn children that the predictor was not fitted to.

    Raises InputError when the space has too few others, and what `ChildEvaluator.evaluate` raises.
    """
    space = predictor.space
    known = [space.at(row) for row in predictor.rows.tolist()]
    archs = draw_fresh_children(space, children, known, seed)
    if len(archs) < children:
        raise InputError(
            f"space {space.name!r} has {len(archs)} children that the predictor was not fitted to,"
            f" fewer than {children}"
        )
    evaluated = np.array(evaluator.evaluate(archs, processes, progress))
    predicted = predictor.predict(archs)
    pairs = zip(archs, predicted.tolist(), evaluated.tolist(), strict=True)
    error = AccuracyError.between(predicted, evaluated)
    return AccuracyEvaluation(error, float(evaluated.std()), tuple(pairs))

"""From evaluated children to an accuracy predictor, and how good it is on fresh ones."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bignas.device_db.errors import InputError
from bignas.supernet.accuracy import FEWEST_CHILDREN, AccuracyError, AccuracyPredictor
from bignas.supernet.children import ChildEvaluator
from bignas.supernet.space import Architecture, SearchSpace

__all__ = ["AccuracyEvaluation", "draw_children", "evaluate_accuracy", "fit_accuracy"]

_TILTED_EVERY = 4  # one in so many children
_FIT, _EVALUATE = 0, 1  # purposes of random numbers

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


def draw_children(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Distinct architectures to learn from: the first of `count` are those of a smaller `count`.

    Smallest, middle and biggest; the rest uniform, but for one in four: these draw how big all
    their options tend to be first, as uniform ones are seldom small or big altogether. Fewer come
    back where the space is smaller.
    """
    rng = np.random.default_rng((seed, _FIT))
    sizes = np.array([len(options) for _, options in space.dimensions()], dtype=np.int64)
    ends = dict.fromkeys([space.smallest(), space.middle(), space.biggest()])
    drawn = _fresh(space, max(0, count - len(ends)), ends, rng, sizes)
    return [*ends, *drawn][:count]


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
    rng = np.random.default_rng((seed, _EVALUATE))
    known = [space.at(row) for row in predictor.rows.tolist()]
    archs = _fresh(space, children, known, rng, None)
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


def _fresh(
    space: SearchSpace,
    count: int,
    taken: Collection[Architecture],
    rng: np.random.Generator,
    tilted_sizes: np.ndarray | None,
) -> list[Architecture]:
    """Up to `count` distinct architectures outside `taken`, some of them tilted if sizes are given.

    Tilted ones draw a common probability, and each option's number from its binomial distribution.
    """
    known = set(taken)
    if 2 * (count + len(known)) >= space.size():
        rest = [arch for arch in space.architectures() if arch not in known]
        return [rest[pick] for pick in rng.permutation(len(rest))[:count]]
    drawn: dict[Architecture, None] = {}
    turn = 0
    while len(drawn) < count:  # a uniform draw is new with a probability of more than one half
        turn += 1
        if tilted_sizes is not None and turn % _TILTED_EVERY == 0:
            arch = space.at(rng.binomial(tilted_sizes - 1, rng.random()).tolist())
        else:
            arch = space.sample(rng)
        if arch not in known:
            drawn[arch] = None
    return list(drawn)

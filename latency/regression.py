"""A regression that never does worse than leaving it out, as far as cross-validation can tell.

Both levels of the latency predictor learn a logarithmic correction to a physical estimate:
kernels to a roofline, networks to the sum of their kernels. From 20 or 5,000 noisy samples the
best correction may be none, a constant, a linear one or a nonlinear one, so:

- four models compete, from simple to complex: zero, constant (the median), ridge, and XGBoost
  trees grown on top of the ridge; cross-validated absolute errors decide, and the more complex
  one has to win by more than a standard error (Breiman et al., "Classification and regression
  trees", 1984). With few samples trees lose to ridge (Laube et al., "What to expect of hardware
  metric predictors in NAS", AutoML 2022);
- the out-of-fold residuals of the winner are kept, they calibrate the prediction intervals;
- inputs and linear parts are clipped to the ranges seen in training: a correction is not
  extrapolated, neither by one input nor by several that never went together;
- `xgboost.train` with explicit parameters, as the XGBModel class drops its `tree_method`; one
  thread and a fixed seed, so the same samples give the same model, bit for bit.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from bignas.latency.trees import Trees

__all__ = ["Correction", "Fit", "ModelKind", "Ridge", "fit_correction"]

Array = NDArray[np.float64]

FOLDS = 10
FOLDS_OF_MANY = 5  # enough for MANY samples
MANY = 200
STANDARD_ERRORS = 1.0  # by which a more complex model has to win
RIDGE_PENALTIES = tuple(10.0**exponent for exponent in np.arange(-2.0, 4.5, 0.5))
TREE_ROUNDS = 150
TREE_PARAMETERS = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 4,
    "eta": 0.08,
    "min_child_weight": 3,
    "lambda": 2.0,
    "max_bin": 128,
    "base_score": 0.0,
    "nthread": 1,
    "verbosity": 0,
}


class ModelKind(StrEnum):
    """The models, from simple to complex; a line (`latency/weight_line.py`) has no part in this."""

    ZERO = "zero"
    CONSTANT = "constant"
    LINE = "line"
    RIDGE = "ridge"
    TREES = "trees"


# Samples needed before a model may compete.
MINIMUM_SAMPLES = {
    ModelKind.ZERO: 0,
    ModelKind.CONSTANT: 3,
    ModelKind.RIDGE: 8,
    ModelKind.TREES: 16,
}


def _decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Singular value decomposition, thin.

    LAPACK's fast routine gives up on some matrices whose columns depend on each other, as those of
    options and their pairs do; then its slow one is asked.
    """
    try:
        left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        left, singular, right = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return left, singular, right


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear model on standardised features: `intercept + standardise(x) @ weights`."""

    intercept: float
    weights: Array
    centre: Array
    scale: Array
    low: Array
    high: Array
    least: float = -math.inf  # of the targets
    most: float = math.inf

    @classmethod
    def fit(cls, features: Array, targets: Array) -> "Ridge":
        """Choose the penalty by the exact leave-one-out error of each candidate."""
        centre, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-9 * (1 + np.abs(centre)), scale, np.inf)  # constant: no effect
        standardised = (features - centre) / scale
        intercept = float(targets.mean())
        left, singular, right = _decompose(standardised)
        projected = left.T @ (targets - intercept)
        best_error, best_shrinkage = np.inf, np.zeros_like(singular)
        for penalty in RIDGE_PENALTIES:
            shrinkage = singular**2 / (singular**2 + penalty)
            leverage = (left**2) @ shrinkage + 1 / len(targets)
            residuals = targets - intercept - left @ (shrinkage * projected)
            error = float(np.abs(residuals / np.maximum(1 - leverage, 1e-6)).mean())
            if error < best_error:
                best_error, best_shrinkage = error, shrinkage
        inverse = np.divide(
            best_shrinkage, singular, out=np.zeros_like(singular), where=singular > 1e-9
        )
        return cls(
            intercept=intercept,
            weights=right.T @ (inverse * projected),
            centre=centre,
            scale=np.where(np.isinf(scale), 0.0, scale),
            low=features.min(axis=0),
            high=features.max(axis=0),
            least=float(targets.min()),
            most=float(targets.max()),
        )

    def predict(self, features: Array) -> Array:
        """Values of rows of features [n, columns] -> [n]."""
        clipped = np.clip(features, self.low, self.high)
        slopes = np.divide(
            self.weights, self.scale, out=np.zeros_like(self.weights), where=self.scale > 0
        )
        values = self.intercept + (clipped - self.centre) @ slopes
        return np.asarray(np.clip(values, self.least, self.most), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "intercept": self.intercept,
            "weights": self.weights.tolist(),
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "least": self.least,
            "most": self.most,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Ridge":
        """Inverse of to_dict. Raises KeyError, TypeError or ValueError."""
        arrays = {
            name: np.array(values[name], dtype=np.float64)
            for name in ("weights", "centre", "scale", "low", "high")
        }
        if any(array.shape != arrays["weights"].shape for array in arrays.values()):
            raise ValueError("the arrays of a ridge model differ in length")
        return cls(
            intercept=float(values["intercept"]),
            least=float(values["least"]),
            most=float(values["most"]),
            **arrays,
        )


@dataclass(frozen=True, eq=False)
class Correction:
    """A fitted model of log(measured / estimated)."""

    kind: ModelKind
    constant: float = 0.0
    ridge: Ridge | None = None
    trees: Trees | None = None

    def predict(self, features: Array) -> Array:
        """Corrections (natural logarithm) of rows of features [n, columns] -> [n]."""
        if self.ridge is None:
            return np.full(len(features), self.constant)
        linear = self.constant + self.ridge.predict(features)
        if self.trees is None or len(features) == 0:
            return linear
        clipped = np.clip(features, self.ridge.low, self.ridge.high)
        return linear + self.trees.predict(clipped)

    def shifted(self, log_ratio: float) -> "Correction":
        """Return the same model with `log_ratio` added to whatever it predicts."""
        kind = ModelKind.CONSTANT if self.kind is ModelKind.ZERO else self.kind
        return replace(self, kind=kind, constant=self.constant + log_ratio)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the trees are XGBoost's own JSON."""
        return {
            "kind": self.kind.value,
            "constant": self.constant,
            "ridge": None if self.ridge is None else self.ridge.to_dict(),
            "trees": None if self.trees is None else self.trees.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Correction":
        """Inverse of to_dict. Raises KeyError, TypeError or ValueError."""
        return cls(
            kind=ModelKind(values["kind"]),
            constant=float(values["constant"]),
            ridge=None if values["ridge"] is None else Ridge.from_dict(values["ridge"]),
            trees=None if values["trees"] is None else Trees(values["trees"]),
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """The winner, fitted on all samples, and what cross-validation said about it."""

    correction: Correction
    residuals: Array  # out-of-fold target - prediction of the winner, one a sample
    errors: dict[ModelKind, float]  # cross-validated mean absolute error of each competitor


def fit_correction(
    features: Array, targets: Array, seed: int, margin: float = STANDARD_ERRORS
) -> Fit:
    """Fit the correction that cross-validation finds best.

    features: [n, columns], finite; targets: [n] logarithms of measured / estimated. n may be 0.
    margin: standard errors by which a more complex model has to win.
    """
    if features.ndim != 2 or targets.shape != (len(features),):
        raise ValueError(f"features {features.shape} do not fit targets {targets.shape}")
    kinds = [kind for kind, fewest in MINIMUM_SAMPLES.items() if len(targets) >= fewest]
    folds = _folds(len(targets), seed)
    held_out = {kind: np.zeros_like(targets) for kind in kinds}
    for fold in range(int(folds.max(initial=-1)) + 1):
        train, test = folds != fold, folds == fold
        for kind in kinds:
            model = _fit_kind(kind, features[train], targets[train], seed)
            held_out[kind][test] = model.predict(features[test])
    losses = {kind: np.abs(targets - predicted) for kind, predicted in held_out.items()}
    winner = kinds[0]
    for kind in kinds[1:]:
        gains = losses[winner] - losses[kind]
        if gains.mean() > margin * gains.std() / math.sqrt(len(gains)):
            winner = kind
    return Fit(
        correction=_fit_kind(winner, features, targets, seed),
        residuals=targets - held_out[winner],
        errors={kind: float(loss.mean()) if len(loss) else 0.0 for kind, loss in losses.items()},
    )


def _fit_kind(kind: ModelKind, features: Array, targets: Array, seed: int) -> Correction:
    match kind:
        case ModelKind.ZERO:
            return Correction(kind)
        case ModelKind.CONSTANT:
            return Correction(kind, constant=float(np.median(targets)))
        case ModelKind.RIDGE:
            return Correction(kind, ridge=Ridge.fit(features, targets))
        case ModelKind.TREES:
            ridge = Ridge.fit(features, targets)
            rest = targets - ridge.predict(features)
            trees = Trees.grow(features, rest, {**TREE_PARAMETERS, "seed": seed}, TREE_ROUNDS)
            return Correction(kind, ridge=ridge, trees=trees)
        case ModelKind.LINE:
            raise ValueError("a line is none of the competing models")


def _folds(count: int, seed: int) -> NDArray[np.int64]:
    """A fold number for each sample, balanced and shuffled; leave-one-out up to FOLDS samples."""
    folds = FOLDS_OF_MANY if count >= MANY else FOLDS
    return np.random.default_rng(seed).permutation(np.arange(count) % folds)

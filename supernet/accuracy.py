"""Predicting the accuracy of children that were never evaluated, with an uncertainty.

Decisions
- A Gaussian process over the options of an architecture and the logarithm of its MACs: a few
  hundred children are few, its spread says how far to trust it, and it has nothing to tune by hand.
  (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapters 2 and 5.)
- Three kernels compete: linear, quadratic (all pairs of options), and linear plus a smooth function
  with a length scale for each dimension. Cross-validated absolute errors decide, and the more
  complex one has to win by more than a standard error (Breiman et al., "Classification and
  regression trees", 1984).
- What is saved are the evaluated children and the parameters of the kernel: the file is JSON,
  explains itself and holds the evidence. It knows the weights it is about; nothing is unpickled.
- Nothing here needs torch.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

from bignas.device_db.accuracies import EvaluationSetting
from bignas.device_db.errors import BignasError, InputError
from bignas.supernet.architecture import Architecture
from bignas.supernet.ranking import spearman
from bignas.supernet.space import SearchSpace

__all__ = ["FEWEST_CHILDREN", "AccuracyError", "AccuracyKernel", "AccuracyPredictor"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

FORMAT = "bignas-accuracy-predictor"
FORMAT_VERSION = 1
FEWEST_CHILDREN = 10  # that can be fitted to and cross-validated
FOLDS = 5
_MOST_STEPS = 40  # when parameters are fitted
_CHUNK = 4096  # architectures predicted at once, which bounds the memory

# Bounds of the kernels' parameters; inputs lie in -1..1, targets have variance 1.
_VARIANCES = (1e-6, 1e4)
_NOISES = (1e-6, 10.0)
_LENGTHS = (0.3, 100.0)
_OFFSETS = (1e-3, 1e3)


class AccuracyKernel(StrEnum):
    """The competing models, from simple to complex."""

    LINEAR = "linear"
    QUADRATIC = "quadratic"
    SMOOTH = "smooth"


@dataclass(frozen=True, slots=True)
class AccuracyError:
    """How far predictions are from n evaluated children that they were not fitted to.

    `mae` is the mean absolute error of the accuracy as a fraction (0.004 are 0.4 points),
    `spearman` the rank correlation, NaN where it has no meaning.
    """

    mae: float
    spearman: float
    n: int

    @classmethod
    def between(cls, predicted: Array, evaluated: Array) -> Self:
        """Compare accuracies [n] with each other."""
        error = float(np.abs(predicted - evaluated).mean())
        return cls(error, spearman(predicted, evaluated), len(evaluated))


@dataclass(frozen=True, eq=False)
class AccuracyPredictor:
    """Predicts accuracies (0 to 1) of the children of one supernet. Made by `fit` or `from_bytes`.

    `rows` are the options of the evaluated children [n, dimensions] (`SearchSpace.positions`),
    `correct` how many images each classified correctly [n], `parameters` the logarithms of the
    kernel's, `held_out` the cross-validated error of each kernel. Raises ValueError when the parts
    do not fit each other.
    """

    space: SearchSpace
    setting: EvaluationSetting
    rows: Rows
    correct: Rows
    kernel: AccuracyKernel
    parameters: Array
    held_out: Mapping[AccuracyKernel, AccuracyError]
    _process: GaussianProcessRegressor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = [len(options) for _, options in self.space.dimensions()]
        fits = self.rows.shape == (len(self.correct), len(sizes)) and self.kernel in self.held_out
        if not fits or (self.rows < 0).any() or (self.rows >= sizes).any():
            raise ValueError("the children do not fit the space")
        if (self.correct < 0).any() or (self.correct > self.setting.images).any():
            raise ValueError("the accuracies do not fit the number of images")
        start = _kernel(self.kernel, len(sizes) + 1)
        if self.parameters.shape != start.theta.shape or not np.isfinite(self.parameters).all():
            raise ValueError("the parameters do not fit the kernel")
        process = GaussianProcessRegressor(
            start.clone_with_theta(self.parameters), optimizer=None, normalize_y=True
        )
        targets = self.correct / self.setting.images
        object.__setattr__(self, "_process", process.fit(_inputs(self.space, self.rows), targets))

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        setting: EvaluationSetting,
        children: Mapping[Architecture, float],
        seed: int = 0,
    ) -> Self:
        """Fit to evaluated children and their accuracies, fractions of the setting's images.

        Raises InputError for fewer than FEWEST_CHILDREN, and ArchitectureError for one outside the
        space.
        """
        if len(children) < FEWEST_CHILDREN:
            raise InputError(
                f"an accuracy predictor needs at least {FEWEST_CHILDREN} evaluated children, there"
                f" are {len(children)}"
            )
        for arch in children:
            space.check(arch)
        rows = _rows(space, list(children))
        targets = np.array(list(children.values()), dtype=np.float64)
        inputs = _inputs(space, rows)
        held_out = {kind: _held_out(kind, inputs, targets, seed) for kind in AccuracyKernel}
        kinds = list(AccuracyKernel)
        winner = kinds[0]
        for kind in kinds[1:]:
            gains = np.abs(held_out[winner] - targets) - np.abs(held_out[kind] - targets)
            if gains.mean() > gains.std() / math.sqrt(len(gains)):
                winner = kind
        return cls(
            space,
            setting,
            rows,
            np.rint(targets * setting.images).astype(np.int64),
            winner,
            np.asarray(_optimised(winner, inputs, targets).kernel_.theta, dtype=np.float64),
            {kind: AccuracyError.between(one, targets) for kind, one in held_out.items()},
        )

    @property
    def error(self) -> AccuracyError:
        """The cross-validated error of the kernel that is used."""
        return self.held_out[self.kernel]

    # --- predicting -------------------------------------------------------------------------------

    def predict(self, archs: Sequence[Architecture]) -> Array:
        """Accuracies [n] of architectures, which have to lie in the space."""
        return self.predict_rows(_rows(self.space, archs))

    def predict_rows(self, rows: Rows) -> Array:
        """Accuracies [n] of rows of `SearchSpace.positions` [n, dimensions]."""
        targets = self.correct / self.setting.images
        inputs, scale = _inputs(self.space, rows), float(targets.std()) or 1.0
        weights = self._process.alpha_ * scale
        parts = [
            self._covariances(inputs[start : start + _CHUNK]) @ weights + targets.mean()
            for start in range(0, len(rows), _CHUNK)
        ]
        return np.asarray(np.clip(np.concatenate([np.empty(0), *parts]), 0.0, 1.0))

    def _covariances(self, inputs: Array) -> Array:
        """The kernel between inputs [n, columns] and the children, without noise.

        As scikit-learn computes it, but with distances from one matrix product, which is all of
        the time.
        """
        parameters, children = np.exp(self.parameters), self._process.X_train_
        products = inputs @ children.T + parameters[1] ** 2
        if self.kernel is AccuracyKernel.QUADRATIC:
            return np.asarray(parameters[0] * products**2)
        products *= parameters[0]
        if self.kernel is AccuracyKernel.SMOOTH:
            first, second = inputs / parameters[3:-1], children / parameters[3:-1]
            exponents = first @ second.T
            exponents -= 0.5 * (first**2).sum(axis=1)[:, None]
            exponents -= 0.5 * (second**2).sum(axis=1)
            products += parameters[2] * np.exp(exponents, out=exponents)
        return np.asarray(products)

    def spread(self, archs: Sequence[Architecture]) -> Array:
        """Standard deviations [n] of what evaluating the architectures would give."""
        if not archs:
            return np.empty(0)
        inputs = _inputs(self.space, _rows(self.space, archs))
        _, deviation = self._process.predict(inputs, return_std=True)
        return np.asarray(deviation, dtype=np.float64)

    # --- what it is good for ----------------------------------------------------------------------

    def knows(self, arch: Architecture) -> bool:
        """Whether it was fitted to this child."""
        return bool((self.rows == np.array(self.space.positions(arch))).all(axis=1).any())

    def matches(self, weights: str, data: str) -> bool:
        """Whether it is about a checkpoint and data of these digests."""
        return self.setting.weights == weights and self.setting.data == data

    @property
    def digest(self) -> str:
        """Hash of all that decides its predictions."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    # --- saving -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """JSON text, the same for equal predictors."""
        content = {
            "space": self.space.to_dict(),
            "setting": asdict(self.setting),
            "rows": self.rows.tolist(),
            "correct": self.correct.tolist(),
            "kernel": self.kernel.value,
            "parameters": self.parameters.tolist(),
            "held_out": {
                kind.value: [error.mae, _finite(error.spearman), error.n]
                for kind, error in self.held_out.items()
            },
        }
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "sha256": _content_hash(content),
            "content": content,
        }
        return (json.dumps(document, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Inverse of `to_bytes`. Raises InputError for a foreign, damaged or newer file."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not an accuracy predictor, or a damaged one: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError("not an accuracy predictor, but some other JSON file")
        version = document.get("version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"the accuracy predictor has format version {version!r}, this bignas reads"
                f" {FORMAT_VERSION}; upgrade bignas or run `bignas accuracy fit` again"
            )
        damaged = "the accuracy predictor is damaged; run `bignas accuracy fit` again"
        content = document.get("content")
        if not isinstance(content, dict) or document.get("sha256") != _content_hash(content):
            raise InputError(damaged)
        try:
            return cls._from_content(content)
        except (KeyError, TypeError, ValueError, BignasError) as error:
            raise InputError(f"{damaged} ({type(error).__name__}: {error})") from error

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            SearchSpace.from_dict(content["space"]),
            EvaluationSetting(**content["setting"]),
            np.array(content["rows"], dtype=np.int64),
            np.array(content["correct"], dtype=np.int64),
            AccuracyKernel(content["kernel"]),
            np.array(content["parameters"], dtype=np.float64),
            {
                AccuracyKernel(kind): AccuracyError(
                    float(mae), float("nan") if rank is None else float(rank), int(count)
                )
                for kind, (mae, rank, count) in content["held_out"].items()
            },
        )


def _rows(space: SearchSpace, archs: Sequence[Architecture]) -> Rows:
    """Option numbers [n, dimensions] of architectures."""
    flat = [space.positions(arch) for arch in archs]
    return np.array(flat, dtype=np.int64).reshape(len(archs), len(space.dimensions()))


def _inputs(space: SearchSpace, rows: Rows) -> Array:
    """Options and log MACs, each from -1 (smallest) to 1 (biggest): [n, dimensions + 1]."""
    sizes = np.array([len(options) for _, options in space.dimensions()], dtype=np.float64)
    ends = np.stack([np.zeros_like(sizes), sizes - 1]).astype(np.int64)
    low, high = np.log(space.macs_at(ends))
    log_macs = (np.log(space.macs_at(rows)) - low) / max(high - low, 1e-9)
    return np.asarray(np.column_stack([rows / (sizes - 1), log_macs]) * 2.0 - 1.0)


def _kernel(kind: AccuracyKernel, columns: int) -> Any:
    """The kernel of this kind with parameters to start from."""
    linear = ConstantKernel(1.0, _VARIANCES) * DotProduct(1.0, _OFFSETS)
    noise = WhiteKernel(0.1, _NOISES)
    match kind:
        case AccuracyKernel.LINEAR:
            return linear + noise
        case AccuracyKernel.QUADRATIC:
            return ConstantKernel(0.01, _VARIANCES) * DotProduct(1.0, _OFFSETS) ** 2 + noise
        case AccuracyKernel.SMOOTH:
            smooth = ConstantKernel(1.0, _VARIANCES) * RBF(np.full(columns, 4.0), _LENGTHS)
            return linear + smooth + noise


def _minimise(objective: Any, start: Array, bounds: Array) -> tuple[Array, float]:
    """L-BFGS-B, as scikit-learn's, but for the number of steps: a flat end has no use."""
    found = minimize(
        objective, start, method="L-BFGS-B", jac=True, bounds=bounds,
        options={"maxiter": _MOST_STEPS},
    )  # fmt: skip
    return found.x, float(found.fun)


def _optimised(kind: AccuracyKernel, inputs: Array, targets: Array) -> GaussianProcessRegressor:
    """The process whose parameters make the targets most likely."""
    process = GaussianProcessRegressor(
        _kernel(kind, inputs.shape[1]), optimizer=_minimise, normalize_y=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is no harm
        return process.fit(inputs, targets)


def _held_out(kind: AccuracyKernel, inputs: Array, targets: Array, seed: int) -> Array:
    """Predictions for each child by a process that was fitted to the other folds."""
    folds = np.random.default_rng(seed).permutation(np.arange(len(targets)) % FOLDS)
    predicted = np.empty_like(targets)
    for fold in range(FOLDS):
        process = _optimised(kind, inputs[folds != fold], targets[folds != fold])
        predicted[folds == fold] = process.predict(inputs[folds == fold])
    return predicted


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _content_hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

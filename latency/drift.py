"""How much slower a machine is than predictions say, by subnets of its profile measured again.

A machine is not the one of an hour ago: networks of all sizes take a percent or more longer, or
less, which neither the anchor nor the shared cache shows. So subnets of the profile run beside what
is measured now, other ones in each batch, as each has changes of its own, too. They are compared
with what they are predicted, not with what they took: that is what predictions are shifted by, and
a prediction has less of what single measurements were off by.

Big networks change by another share than small ones, as more of what they read comes from the
shared cache: a slope over log latency, shrunk by as much of its square as chance explains.
Batches differ by what the machine does meanwhile and by which references they had. How much of it
is the machine's, the references of one batch tell, which differ by the latter alone: the mean of a
batch is shrunk towards that of all, as random effects are (Laird and Ware, "Random-effects models
for longitudinal data", Biometrics 38, 1982; moments as in DerSimonian and Laird, "Meta-analysis in
clinical trials", Controlled Clinical Trials 7, 1986). What a few references tell is not exact, and
wrong for all fresh networks alike: how far it may be off follows from what they differ by. So does
how far a single network is off at least: predictions were fitted to the references.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.supernet.architecture import Architecture

__all__ = ["Drift", "estimate_drift", "references"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Drift:
    """What networks take more than is predicted, as log(now / predicted).

    `batches` [batches] is that of a network of `centre` (log of milliseconds) in each batch,
    `slope` what it grows by with each e-fold of latency; the variances are those of their errors.
    `scatter` is the standard deviation of single references around it.
    """

    batches: Array
    slope: float
    centre: float
    batch_variances: Array
    slope_variance: float
    scatter: float

    @classmethod
    def none(cls, batches: int) -> "Drift":
        """Return that of a machine which is as it was."""
        return cls(np.zeros(batches), 0.0, 0.0, np.zeros(batches), 0.0, 0.0)

    def of(self, batch: NDArray[np.int64], latency_ms: Array) -> Array:
        """Return that of networks which take so long, by their batches, [n]."""
        return np.asarray(self.batches[batch] + self.slope * (np.log(latency_ms) - self.centre))

    def deviation(self, batch: NDArray[np.int64], latency_ms: Array) -> Array:
        """Return the standard deviation of the error of `of`, [n]."""
        distance = np.log(latency_ms) - self.centre
        return np.sqrt(self.batch_variances[batch] + self.slope_variance * distance**2)


def references(
    profiled: Sequence[tuple[Architecture, float]], count: int, batch: int
) -> list[Architecture]:
    """Return references for a batch, spread evenly over the latencies of all that was profiled.

    `profiled` are architectures with their milliseconds. Batches share none as long as there are
    enough; there are at most `count`.
    """
    ascending = sorted(profiled, key=lambda one: one[1])
    step = max(1, len(ascending) // count)
    return [architecture for architecture, _ in ascending[batch % step :: step][:count]]


def estimate_drift(predicted_ms: Sequence[Array], now_ms: Sequence[Array]) -> Drift:
    """Estimate it from what the references of each batch are predicted to take, and take now.

    Raises ValueError for a batch without references.
    """
    if any(len(one) == 0 for one in predicted_ms):
        raise ValueError("a batch without references tells no drift")
    log_ms = [np.log(one) for one in predicted_ms]
    log_ratios = [np.log(now / one) for now, one in zip(now_ms, predicted_ms, strict=True)]
    slope, slope_variance = _slope(log_ms, log_ratios)
    centre = float(np.concatenate(log_ms).mean())
    level = [ratio - slope * (one - centre) for ratio, one in zip(log_ratios, log_ms, strict=True)]
    variance = _within(level)
    batches, variances = _of_batches(level, variance)
    return Drift(batches, slope, centre, variances, slope_variance, float(np.sqrt(variance)))


def _slope(log_ms: Sequence[Array], log_ratios: Sequence[Array]) -> tuple[float, float]:
    """Return what log(now / predicted) grows by with each e-fold of latency, for all batches.

    And the variance of its error: that of the slope before it is shrunk.
    """
    x = np.concatenate([one - one.mean() for one in log_ms])
    y = np.concatenate([one - one.mean() for one in log_ratios])
    freedom, squares = len(x) - len(log_ms) - 1, float(x @ x)
    if freedom < 1 or squares <= 0:
        return 0.0, 0.0
    slope = float(x @ y) / squares
    by_chance = float(((y - slope * x) ** 2).sum()) / freedom / squares
    return slope * max(0.0, 1 - by_chance / slope**2) if slope else 0.0, by_chance


def _within(log_ratios: Sequence[Array]) -> float:
    """Return the variance of the references of one batch; 0 where none has two."""
    freedom = sum(map(len, log_ratios)) - len(log_ratios)
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in log_ratios)
    return squares / freedom if freedom else 0.0


def _of_batches(log_ratios: Sequence[Array], variance: float) -> tuple[Array, Array]:
    """Return what each batch is off by, [batches], and the variances of the errors of that.

    `variance` is that of the references of one batch.
    """
    means = np.array([one.mean() for one in log_ratios])
    counts = np.array([len(one) for one in log_ratios])
    overall = float(np.average(means, weights=counts))
    if counts.max() < 2:
        return np.full(len(means), overall), np.zeros(len(means))
    of_means = variance / counts
    if len(means) < 2:
        return means, of_means
    of_batches = max(0.0, float(np.var(means, ddof=1) - of_means.mean()))
    kept = of_batches / np.maximum(of_batches + of_means, 1e-300)
    of_overall = of_batches / len(means) + variance / counts.sum()
    return overall + (means - overall) * kept, kept * of_means + (1 - kept) ** 2 * of_overall

"""What few-shot latency transfer has to beat: simple predictors of a device from some samples."""

from collections.abc import Callable, Mapping

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from bignas.latency.published import PublishedTable

__all__ = ["BASELINES", "Baseline"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Baseline = Callable[[PublishedTable, Array, Indices, Array], Array | None]
"""From a table, sources [s, n], measured indices and latencies to [n] predictions in ms.

None where the table does not hold what it needs.
"""

RIDGE_PENALTY = 1.0  # better here than one chosen by leave-one-out
TREES = {"eta": 0.1, "max_depth": 4, "nthread": 1, "verbosity": 0}
TREE_ROUNDS = 200


def flops(table: PublishedTable, _: Array, measured: Indices, measured_ms: Array) -> Array | None:
    """Proportional to the MACs."""
    macs = table.macs()
    return None if macs is None else _proportional(macs, measured, measured_ms)


def ridge_one_hot(
    table: PublishedTable, _: Array, measured: Indices, measured_ms: Array
) -> Array | None:
    """Ridge regression on the architecture's choices."""
    return _ridge(table.one_hot(), measured, measured_ms)


def xgboost_one_hot(
    table: PublishedTable, _: Array, measured: Indices, measured_ms: Array
) -> Array | None:
    """Boosted trees on the architecture's choices."""
    return _trees(table.one_hot(), measured, measured_ms)


def xgboost_aggregate(
    table: PublishedTable, _: Array, measured: Indices, measured_ms: Array
) -> Array | None:
    """Boosted trees on MACs, layers and counts of operators."""
    macs = table.macs()
    known = [] if macs is None else [macs]
    columns = np.column_stack([*known, table.layers(), table.option_counts()])
    return _trees(columns, measured, measured_ms)


def mean_of_sources(
    _: PublishedTable, sources_ms: Array, measured: Indices, measured_ms: Array
) -> Array | None:
    """Proportional to the geometric mean of the sources."""
    if len(sources_ms) == 0:
        return None
    return _proportional(np.exp(np.log(sources_ms).mean(axis=0)), measured, measured_ms)


def ridge_sources(
    _: PublishedTable, sources_ms: Array, measured: Indices, measured_ms: Array
) -> Array | None:
    """Ridge regression on the logarithms of the sources' latencies."""
    return _ridge(np.log(sources_ms).T, measured, measured_ms) if len(sources_ms) else None


BASELINES: Mapping[str, Baseline] = {
    one.__name__: one
    for one in (
        flops, ridge_one_hot, xgboost_one_hot, xgboost_aggregate, mean_of_sources, ridge_sources,
    )
}  # fmt: skip


def _proportional(values: Array, measured: Indices, measured_ms: Array) -> Array:
    floor = max(float(values[values > 0].min()) / 2, 1e-12) if (values > 0).any() else 1.0
    bounded = np.maximum(values, floor)
    return np.asarray(bounded * np.exp(np.median(np.log(measured_ms / bounded[measured]))))


def _ridge(columns: Array, measured: Indices, measured_ms: Array) -> Array:
    inputs = StandardScaler().fit_transform(columns)
    model = Ridge(alpha=RIDGE_PENALTY).fit(inputs[measured], np.log(measured_ms))
    return np.exp(np.asarray(model.predict(inputs), dtype=np.float64))


def _trees(columns: Array, measured: Indices, measured_ms: Array) -> Array:
    logs = np.log(measured_ms)
    samples = xgboost.DMatrix(columns[measured], label=logs)
    model = xgboost.train({**TREES, "base_score": float(logs.mean())}, samples, TREE_ROUNDS)
    return np.exp(model.predict(xgboost.DMatrix(columns)).astype(np.float64))

"""Latencies of transformers from a published table, against plain regressions.

    python benchmarks/transformers.py --csv FILE --json

Each seed splits the rows 80/10/10 anew. All models are fitted to the 80%; the 10% for validation
end the boosting of plain XGBoost; scores are mean absolute percentage errors on the last 10%.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from command import progress, run
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from bignas.device_db.errors import InputError
from bignas.latency.metrics import mape
from bignas.latency.published import TransformerTable
from bignas.latency.published_files import load_transformers
from bignas.latency.transformer import TransformerPredictor

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

FEWEST_ROWS = 50
TREES = {"eta": 0.05, "max_depth": 6, "nthread": 1, "verbosity": 0}
MOST_ROUNDS = 1000
PATIENCE = 50


def main() -> int:
    """Score bignas, XGBoost and linear regression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True, help="a table of the hat repository")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON document")
    parser.add_argument("--results", type=Path, help="add the document to the list in this file")
    options = parser.parse_args()
    return run(lambda: measure(options.csv, options.seeds), options.json, options.results)


def measure(path: Path, seeds: int) -> dict[str, Any]:
    """Return the document. Raises InputError."""
    table = load_transformers(path)
    count = len(table.latency_ms)
    if count < FEWEST_ROWS or seeds < 1:
        raise InputError(f"{path}: {count} rows and {seeds} seeds are too few")
    errors: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(count)
        train, valid, test = np.split(order, [count * 8 // 10, count * 9 // 10])
        predicted = {
            "bignas": TransformerPredictor.fit(table, train, seed).predict(table, test),
            "xgboost": plain_xgboost(table, train, valid, test),
            "linear_interactions": linear_interactions(table, train, test),
        }
        for name, latency_ms in predicted.items():
            errors.setdefault(name, []).append(mape(latency_ms, table.latency_ms[test]))
        progress(f"seed {seed}: { ({name: round(row[-1], 4) for name, row in errors.items()}) }")
    return {
        "arguments": {"csv": path.name, "seeds": seeds},
        "rows": count,
        "mape": {name: round(float(np.mean(row)), 5) for name, row in errors.items()},
        "mape_by_seed": {name: [round(one, 5) for one in row] for name, row in errors.items()},
    }


def plain_xgboost(table: TransformerTable, train: Indices, valid: Indices, test: Indices) -> Array:
    """Boosted trees on the table's columns, ended by the error on validation rows."""
    parts = [
        xgboost.DMatrix(table.features[rows], label=table.latency_ms[rows])
        for rows in (train, valid)
    ]
    model = xgboost.train(
        TREES, parts[0], MOST_ROUNDS, evals=[(parts[1], "valid")],
        early_stopping_rounds=PATIENCE, verbose_eval=False,
    )  # fmt: skip
    return np.asarray(model.inplace_predict(table.features[test]), dtype=np.float64)


def linear_interactions(table: TransformerTable, train: Indices, test: Indices) -> Array:
    """Linear regression on all columns, their squares and their products."""
    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LinearRegression())
    model.fit(table.features[train], table.latency_ms[train])
    return np.asarray(model.predict(table.features[test]), dtype=np.float64)


if __name__ == "__main__":
    sys.exit(main())

"""Boosted trees, in XGBoost's own JSON.

XGBoost takes a second to import, as it brings scikit-learn and pandas, and most predictions need no
tree: it is imported where trees are grown or asked.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bignas.device_db.errors import InputError

if TYPE_CHECKING:
    import xgboost

__all__ = ["Trees"]

Array = NDArray[np.float64]


class Trees:
    """A boosted ensemble that never changes. Raises ValueError for what is no such document."""

    def __init__(
        self, document: Mapping[str, Any] | None, grown: "xgboost.Booster | None" = None
    ) -> None:
        if grown is None and (not isinstance(document, dict) or "learner" not in document):
            raise ValueError("these are no boosted trees")
        self._document, self._grown = document, grown

    @classmethod
    def grow(
        cls,
        features: Array,
        targets: Array,
        parameters: Mapping[str, Any],
        rounds: int,
        weights: Array | None = None,
    ) -> "Trees":
        """Grow `rounds` trees on features [n, columns], targets [n] and their weights [n]."""
        import xgboost  # noqa: PLC0415

        samples = xgboost.DMatrix(
            features.astype(np.float32), label=targets, weight=weights, nthread=1
        )
        return cls(None, xgboost.train(dict(parameters), samples, rounds))

    def predict(self, features: Array) -> Array:
        """Predict from features [n, columns] -> [n]. Raises InputError for a damaged ensemble."""
        values = features.astype(np.float32)
        grown = self._booster.inplace_predict(values, predict_type="margin")
        return np.asarray(grown, dtype=np.float64)

    def __len__(self) -> int:
        """How many trees there are."""
        return int(self._booster.num_boosted_rounds())

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that they are made of."""
        if self._document is None:
            self._document = json.loads(self._booster.save_raw("json").decode("utf-8"))
        return dict(self._document)

    @cached_property
    def _booster(self) -> "xgboost.Booster":
        if self._grown is not None:
            return self._grown
        import xgboost  # noqa: PLC0415

        booster = xgboost.Booster({"nthread": 1})
        try:
            booster.load_model(bytearray(json.dumps(self._document), "utf-8"))
        except xgboost.core.XGBoostError:
            raise InputError("the trees of the predictor are damaged: fit it again") from None
        return booster

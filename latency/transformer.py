"""Latency of encoder-decoder transformers, as the sum of their layers and a learned correction.

A layer's time is close to a sum of terms: a constant, and its matrix products (attention
projections, attention over the encoder, feed-forward), each times the number of layers. The weights
of the terms are fitted to relative errors, robustly; what they miss is left to `fit_correction`,
which takes no more of a model than cross-validation finds worth it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bignas.latency.published import TransformerTable
from bignas.latency.regression import Correction, fit_correction

__all__ = ["TransformerPredictor"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

REWEIGHTINGS = 20
LEAST_ERROR = 1e-3  # relative errors below count no more
SMALL = 1e-3  # ridge penalty, against standardised terms
FLOOR = 0.1  # of the least latency: sums of terms are not extrapolated below


@dataclass(frozen=True, eq=False)
class TransformerPredictor:
    """Weights of the layers' terms, and the correction of log(measured / sum)."""

    weights: Array
    floor_ms: float
    correction: Correction

    @classmethod
    def fit(cls, table: TransformerTable, rows: Indices, seed: int) -> "TransformerPredictor":
        """Fit to these rows of a table. Raises InputError when a column is missing."""
        latency_ms = table.latency_ms[rows]
        terms = layer_terms(table)[rows]
        floor_ms = FLOOR * float(latency_ms.min())
        weights = _relative_fit(terms, latency_ms)
        sums = np.maximum(terms @ weights, floor_ms)
        fit = fit_correction(_inputs(table, rows, sums), np.log(latency_ms / sums), seed)
        return cls(weights, floor_ms, fit.correction)

    def predict(self, table: TransformerTable, rows: Indices) -> Array:
        """Latencies of these rows in milliseconds."""
        sums = np.maximum(layer_terms(table)[rows] @ self.weights, self.floor_ms)
        return sums * np.exp(self.correction.predict(_inputs(table, rows, sums)))


def layer_terms(table: TransformerTable) -> Array:
    """What the latency is a sum of, one column a term. Raises InputError for a missing column."""
    column = table.column
    width, layers = column("encoder_embed_dim"), column("encoder_layer_num")
    hidden = column("encoder_ffn_embed_dim_avg")
    heads = column("encoder_self_attention_heads_avg")
    out_width, out_layers = column("decoder_embed_dim"), column("decoder_layer_num")
    out_hidden = column("decoder_ffn_embed_dim_avg")
    out_heads = column("decoder_self_attention_heads_avg")
    cross_heads = column("decoder_ende_attention_heads_avg")
    cross_depth = column("decoder_arbitrary_ende_attn_avg")  # encoder layers attended to
    encoder = [np.ones_like(width), width, hidden, width * hidden, heads, width * heads]
    decoder = [
        np.ones_like(width), out_width, out_hidden, out_width * out_hidden, out_heads,
        out_width * out_heads, cross_heads, out_width * cross_heads, width * cross_heads,
        cross_depth, cross_depth * cross_heads, width * cross_depth * cross_heads, width,
    ]  # fmt: skip
    whole = [np.ones_like(width), width, out_width]
    return np.column_stack(
        [*whole, *(layers * term for term in encoder), *(out_layers * term for term in decoder)]
    )


def _inputs(table: TransformerTable, rows: Indices, sums: Array) -> Array:
    return np.column_stack([table.features[rows], layer_terms(table)[rows, 1:], np.log(sums)])


def _relative_fit(terms: Array, latency_ms: Array) -> Array:
    """Least absolute relative errors by iteratively reweighted least squares."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-12)
    scaled = terms / scale / latency_ms[:, None]
    penalty = SMALL * np.abs(scaled).mean() * np.eye(terms.shape[1])
    reliability = np.ones(len(latency_ms))
    for _ in range(REWEIGHTINGS):
        left = np.vstack([scaled * reliability[:, None], penalty])
        right = np.concatenate([reliability, np.zeros(terms.shape[1])])
        solution = np.linalg.lstsq(left, right, rcond=None)[0]
        reliability = 1 / np.sqrt(np.maximum(np.abs(scaled @ solution - 1), LEAST_ERROR))
    return np.asarray(solution / scale)

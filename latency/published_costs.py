"""What the options of known published spaces cost: MACs, memory traffic and weights."""

import re

import numpy as np
from numpy.typing import NDArray

__all__ = ["SKIPPED", "option_costs"]

Array = NDArray[np.float64]

# names of options that compute nothing
SKIPPED = re.compile(r"none|skip|zero|identity", re.IGNORECASE)
_BLOCK = re.compile(r"k(\d+)_e(\d+)(?:_g(\d+))?")
_CONV = re.compile(r"conv_(\d+)x\1")
# Channels, blocks and stride of each stage (Wu et al., "FBNet", CVPR 2019, table 1).
_FBNET_STAGES = (
    (16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1),
)  # fmt: skip
_FBNET_STEM = (16, 112)  # channels and height
_CELL_EDGES = 6  # of NAS-Bench-201 (Dong and Yang, ICLR 2020)


def option_costs(options: tuple[tuple[str, ...], ...]) -> Array | None:
    """What every option of every position costs [columns, quantities], or None for unknown spaces.

    MACs come first.
    """
    blocks = sum(count for _, count, _ in _FBNET_STAGES)
    names = {name for one in options for name in one}
    working = {name for name in names if not SKIPPED.search(name)}
    if len(options) == blocks and all(_BLOCK.fullmatch(name) for name in working):
        return _fbnet_costs(options)
    if len(options) == _CELL_EDGES and any(_CONV.search(name) for name in working):
        # all cells have the same MACs, and so all positions
        return np.array([[_conv_macs(name)] for one in options for name in one])
    return None


def _conv_macs(name: str) -> float:
    found = _CONV.search(name)
    return float(found[1]) ** 2 if found else 0.0


def _fbnet_costs(options: tuple[tuple[str, ...], ...]) -> Array:
    channels, height = _FBNET_STEM
    costs: list[tuple[float, ...]] = []
    remaining = iter(options)
    for width, count, first_stride in _FBNET_STAGES:
        for block in range(count):
            out_height = height // first_stride if block == 0 else height
            costs += [
                _block_costs(name, channels, width, height, out_height) for name in next(remaining)
            ]
            channels, height = width, out_height
    return np.array(costs)


def _block_costs(
    name: str, channels: int, width: int, height: int, out_height: int
) -> tuple[float, ...]:
    """MACs, those of pointwise and of depthwise convolutions, values moved, and weights.

    Of an inverted residual block, or of a pointwise convolution where a skip changes shape.
    """
    ends = channels * height**2 + width * out_height**2
    found = _BLOCK.fullmatch(name)
    if found is None:
        if channels == width and height == out_height:
            return (0.0,) * 5
        pointwise = float(channels * width * out_height**2)
        return pointwise, pointwise, 0.0, float(ends), float(channels * width)
    kernel, expand, groups = int(found[1]), int(found[2]), int(found[3] or 1)
    inner = channels * expand
    pointwise = ends * inner / groups
    depthwise = float(kernel**2 * inner * out_height**2)
    moved = float(ends + 2 * inner * (height**2 + out_height**2))
    weights = (channels + width) * inner / groups + kernel**2 * inner
    return pointwise + depthwise, pointwise, depthwise, moved, weights

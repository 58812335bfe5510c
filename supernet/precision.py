"""In which precision a supernet is trained on a machine, and by whose kernels.

Processors with matrix units (AMX) multiply bfloat16 numbers several times faster than float32 ones,
some of those that only have dot products of them (AVX-512 BF16) somewhat faster, others not at all:
where there is a unit for it, a product is timed in both precisions. Mixed precision keeps
activations and their gradients as bfloat16, and computes convolutions that mix channels by torch
(oneDNN) in that precision, products being summed as float32. Weights, their updates, moments of
batch norms and whatever comes after the last convolution stay float32, and so do depthwise
convolutions, which those units do not help.

Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018; Kalamkar et al., "A Study of
BFLOAT16 for Deep Learning Training", 2019.
"""

import time
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from bignas.device_db.probe import probe_local
from bignas.device_db.workload import Operator
from bignas.supernet.fused import FusedExecution
from bignas.supernet.fused_kernels import load_fused_kernels
from bignas.supernet.layer import Layer
from bignas.supernet.layers import BatchExecution
from bignas.supernet.recipe import Precision

__all__ = ["MixedExecution", "bfloat16_speed", "is_mixed", "training_execution"]

_BFLOAT16_UNITS = frozenset({"amx_bf16", "avx512_bf16"})
_PRODUCT = (8192, 256, 256)  # rows, input and output channels of what is timed: some 10 ms
_TURNS = 7
_WORTH = 1.25  # times as fast; for less, activations are not rounded


class MixedExecution(BatchExecution):
    """Activations are bfloat16; what mixes channels is computed from them, the rest by `single`."""

    def __init__(self, single: BatchExecution) -> None:
        self._single = single

    def convolve(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; products are of bfloat16 unless depthwise on a CPU, the output is bfloat16."""
        if layer.operator is Operator.DEPTHWISE and x.device.type == "cpu":
            kind = torch.bfloat16 if self._single.takes_halves(layer) else torch.float32
            return self._single.convolve(layer, x.to(kind), weight, bias).bfloat16()
        rounded = None if bias is None else bias.bfloat16()
        if layer.operator is Operator.POINTWISE and layer.stride == 1:
            rows = x.bfloat16().permute(0, 2, 3, 1)  # a view of channels-last images
            product = functional.linear(rows, weight.flatten(1).bfloat16(), rounded)
            return product.permute(0, 3, 1, 2)
        return super().convolve(layer, x.bfloat16(), weight.bfloat16(), rounded)

    def finish(
        self, layer: Layer, y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Normalise by the batch, add the residual and activate."""
        return self._single.finish(layer, y, scale, shift, residual)

    def normalize(self, name: str, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise by the moments of y."""
        return self._single.normalize(name, y, scale, shift)


def is_mixed(precision: Precision, device: torch.device) -> bool:
    """Whether this device trains in mixed precision; by default where that is faster."""
    if precision is not Precision.AUTO:
        return precision is Precision.BFLOAT16
    if device.type != "cpu":
        return True
    has_units = not _BFLOAT16_UNITS.isdisjoint(probe_local().instruction_sets)
    return has_units and bfloat16_speed() >= _WORTH


@lru_cache(maxsize=1)
def bfloat16_speed() -> float:
    """How many times as fast as of float32 a product of bfloat16 matrices is on this processor.

    By the shortest of some turns, in which both are timed one after the other.
    """
    rows, inner, outer = _PRODUCT
    shortest: dict[torch.dtype, float] = {}
    for _ in range(1 + _TURNS):  # the first one builds the kernels
        for kind in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(rows, inner, dtype=kind), torch.ones(outer, inner, dtype=kind)
            start = time.perf_counter()
            functional.linear(x, weight)
            passed = time.perf_counter() - start
            shortest[kind] = min(shortest.get(kind, passed), passed)
    return shortest[torch.float32] / shortest[torch.bfloat16]


def training_execution(*, fused: bool = True, mixed: bool = False) -> BatchExecution:
    """The fastest way to train on this machine; with `fused` false, by torch's own kernels."""
    kernels = load_fused_kernels() if fused else None
    single = BatchExecution() if kernels is None else FusedExecution(kernels)
    return MixedExecution(single) if mixed else single

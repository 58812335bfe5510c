"""The kernels of an architecture as a graph: with a child's weights, or with random ones.

Both come from the layers of the search space, as the kernels that are measured and predicted do:
the network that ships consists of these and no others. A test holds it equal to what the child's
ONNX export is lowered to.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from bignas.compile.graph import INPUT, KernelCall, KernelGraph
from bignas.compile.workload import workloads
from bignas.device_db.workload import Operator, Workload
from bignas.supernet.architecture import Architecture
from bignas.supernet.child import Child, ConvUnit
from bignas.supernet.layer import Layer
from bignas.supernet.space import SearchSpace

__all__ = ["graph_of_child", "graph_with_random_weights"]

_Weights = Callable[[Layer, Workload], tuple[np.ndarray | None, np.ndarray]]


def graph_of_child(child: Child) -> KernelGraph:
    """Return the kernels of a child, batch norms folded into its weights."""

    def weights(layer: Layer, workload: Workload) -> tuple[np.ndarray | None, np.ndarray]:
        if not workload.weight_count:
            return None, np.zeros(workload.out_channels, np.float32)
        return _folded(child.get_submodule(layer.name))

    return _graph(child.space, child.architecture, weights)


def graph_with_random_weights(
    space: SearchSpace, architecture: Architecture, seed: int = 0
) -> KernelGraph:
    """Return the kernels of an architecture with weights of the usual scale but no training.

    Latency does not depend on the values of weights, so subnets can be measured before, and much
    faster than, a child is trained and exported.
    """
    random = np.random.default_rng(seed)

    def weights(layer: Layer, workload: Workload) -> tuple[np.ndarray | None, np.ndarray]:
        del layer
        return _random_weights(workload, random), np.full(workload.out_channels, 0.1, np.float32)

    return _graph(space, architecture, weights)


def _graph(space: SearchSpace, architecture: Architecture, weights: _Weights) -> KernelGraph:
    calls: list[KernelCall] = []
    value = block_input = gated = INPUT
    block = ""
    layers = space.layers(architecture)
    for layer, workload in zip(layers, workloads(space, architecture), strict=True):
        prefix = layer.name.rpartition(".")[0]
        if prefix != block:
            block, block_input = prefix, value
        source, other = value, block_input if workload.residual else None
        if workload.operator is Operator.GLOBAL_POOL:
            gated = value
        elif workload.operator is Operator.SCALE:
            source, other = gated, value
        value = layer.name
        calls.append(KernelCall(workload, source, value, other, *weights(layer, workload)))
    size = architecture.resolution
    return KernelGraph(tuple(calls), (space.in_channels, size, size), space.classes)


def _folded(module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, in, k, k] and bias [out] of a layer, with its batch norm if there is one."""
    if isinstance(module, nn.Linear):
        return module.weight.detach()[:, :, None, None].numpy(), module.bias.detach().numpy()
    assert isinstance(module, ConvUnit)
    weight = module.conv.weight.detach()
    if module.norm is None:
        assert module.conv.bias is not None
        return weight.contiguous().numpy(), module.conv.bias.detach().numpy()
    norm = module.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias.detach() - norm.running_mean * factor
    return (weight * factor[:, None, None, None]).contiguous().numpy(), bias.numpy()


def _random_weights(workload: Workload, random: np.random.Generator) -> np.ndarray | None:
    if not workload.weight_count:
        return None
    channels, kernel = workload.out_channels, workload.kernel
    inner = workload.weight_count // (channels * kernel * kernel)
    scale = np.sqrt(2.0 / (inner * kernel * kernel))
    shape = (channels, inner, kernel, kernel)
    weights: np.ndarray = (random.standard_normal(shape) * scale).astype(np.float32)
    return weights

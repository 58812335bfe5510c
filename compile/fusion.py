"""Fused inverted bottlenecks: which layers they stand for, and where a network has them.

Expansion, depthwise convolution and projection become one kernel, in whose inside the wide
activation never leaves the nearest caches. That pays where the wide activation is large: of 34
blocks of the `cifar` space, none above 256 KB, the fused kernels took 1.4% longer in the geometric
mean. A larger block is fused unless its layers were measured to be faster one by one; the same rule
serves the networks that are built and those that are predicted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bignas.compile.graph import Call, KernelCall, KernelGraph
from bignas.compile.inverted_bottleneck import parts_of
from bignas.device_db.workload import BYTES_PER_VALUE, Activation, Layout, Operator, Workload

__all__ = ["choose_kernels", "fuse_graph", "kernel_options"]


LARGE_BYTES = 256 * 1024  # of the wide activation; larger ones leave a core's own cache


@dataclass(frozen=True, slots=True)
class _Block:
    """Layers `start` to `stop` of a network, and the kernel that would compute them all."""

    start: int
    stop: int
    fused: Workload


def _blocks(layers: Sequence[Workload | None]) -> Iterator[_Block]:
    """Yield the large inverted bottlenecks among layers; None stands for any other call."""
    position = 0
    while position < len(layers):
        block = _block_at(layers, position, expands=True) or _block_at(
            layers, position, expands=False
        )
        if block is not None:
            yield block
        position = block.stop if block is not None else position + 1


def _block_at(layers: Sequence[Workload | None], start: int, *, expands: bool) -> _Block | None:
    stop = start + 2 + expands
    window = [one for one in layers[start:stop] if one is not None]
    if len(window) != 2 + expands:
        return None
    *_, depthwise, project = window
    first = window[0]
    plain = depthwise.activation is Activation.NONE  # such a projection looks like an expansion
    if depthwise.operator is not Operator.DEPTHWISE or depthwise.residual or plain:
        return None
    fits = project.stride == 1 and project.activation is Activation.NONE
    keeps = depthwise.stride == 1 and first.in_channels == project.out_channels
    if project.operator is not Operator.POINTWISE or not fits or (project.residual and not keeps):
        return None
    hidden = depthwise.height * depthwise.width * depthwise.in_channels
    if hidden * BYTES_PER_VALUE <= LARGE_BYTES:
        return None
    fused = replace(
        depthwise,
        operator=Operator.INVERTED_BOTTLENECK,
        in_channels=first.in_channels,
        out_channels=project.out_channels,
        hidden_channels=depthwise.out_channels,
        residual=project.residual,
    )
    alike = first.input_layout is Layout.NHWC and parts_of(fused) == tuple(window)
    return _Block(start, stop, fused) if alike else None


def kernel_options(layers: Sequence[Workload]) -> tuple[Workload, ...]:
    """Return every kernel that a network of these layers may be built from, fused ones first."""
    fused = [block.fused for block in _blocks(layers)]
    return tuple(dict.fromkeys([*fused, *layers]))


def choose_kernels(
    layers: Sequence[Workload], latency_us: Mapping[Workload, float]
) -> tuple[Workload, ...]:
    """Return the kernels that a network of these layers is built from, by measured latencies."""
    chosen: list[Workload] = []
    done = 0
    for block in _blocks(layers):
        chosen += layers[done : block.start]
        parts = layers[block.start : block.stop]
        chosen += [block.fused] if _pays(block.fused, parts, latency_us) else parts
        done = block.stop
    return (*chosen, *layers[done:])


def _pays(fused: Workload, parts: Sequence[Workload], latency_us: Mapping[Workload, float]) -> bool:
    if fused not in latency_us or not all(part in latency_us for part in parts):
        return True
    return latency_us[fused] <= sum(latency_us[part] for part in parts)


def fuse_graph(graph: KernelGraph, latency_us: Mapping[Workload, float]) -> KernelGraph:
    """Return the network with its inverted bottlenecks fused where that pays.

    A value inside a block that something else reads keeps the block as it is.
    """
    layers = [call.workload if isinstance(call, KernelCall) else None for call in graph.calls]
    readers = Counter(name for call in graph.calls for name in call.reads)
    calls: list[Call] = []
    done = 0
    for block in _blocks(layers):
        window = [
            call for call in graph.calls[block.start : block.stop] if isinstance(call, KernelCall)
        ]
        parts = [call.workload for call in window]
        if _is_chain(window, readers) and _pays(block.fused, parts, latency_us):
            calls += [*graph.calls[done : block.start], _fused_call(block.fused, window)]
            done = block.stop
    calls += graph.calls[done:]
    return replace(graph, calls=tuple(calls))


def _is_chain(window: Sequence[KernelCall], readers: Mapping[str, int]) -> bool:
    """Return whether each call alone reads what the one before it writes."""
    pairs = pairwise(window)
    linked = all(b.input == a.output and readers[a.output] == 1 for a, b in pairs)
    last = window[-1]
    return linked and (not last.workload.residual or last.other == window[0].input)


def _fused_call(fused: Workload, window: Sequence[KernelCall]) -> KernelCall:
    weights = [call.weights.ravel() for call in window if call.weights is not None]
    return KernelCall(
        workload=fused,
        input=window[0].input,
        output=window[-1].output,
        other=None,
        weights=np.concatenate(weights),
        bias=np.concatenate([call.bias for call in window]),
    )

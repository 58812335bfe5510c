"""The fused kernels that an architecture's binary consists of, derived without compiling anything.

One layer of a search space is one kernel of the binary: convolution, folded batch norm, activation
and residual addition run as a single loop nest. The first kernel reads the network's input as it
arrives (NCHW); every other one works on NHWC. A test holds this list against what the compiler
emits.
"""

from functools import lru_cache

from bignas.device_db.workload import Layout, Workload
from bignas.supernet.architecture import Architecture
from bignas.supernet.layer import Layer
from bignas.supernet.space import SearchSpace

__all__ = ["workload_of", "workloads"]


@lru_cache(maxsize=1 << 16)
def workload_of(layer: Layer, input_layout: Layout = Layout.NHWC) -> Workload:
    """Return the kernel that computes one fused layer."""
    return Workload(
        operator=layer.operator,
        height=layer.height,
        width=layer.width,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        activation=layer.activation,
        residual=layer.residual,
        input_layout=input_layout,
    )


def workloads(space: SearchSpace, architecture: Architecture) -> tuple[Workload, ...]:
    """Return the kernels of an architecture's binary in the order in which they run."""
    stem, *rest = space.layers(architecture)
    return (workload_of(stem, Layout.NCHW), *(workload_of(layer) for layer in rest))

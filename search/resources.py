"""What a child network needs beside time, from its architecture alone.

MACs and parameters are exact. Memory and bundle size are estimates that guide the search; what is
delivered is held to the sizes in its manifest. Some kernels read weights that the program has
transformed into several times as many; which kernels do so on a device is guessed.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType

from bignas.compile.bundle import GOLDEN_IMAGES
from bignas.compile.manifest import Manifest
from bignas.compile.packing import count_read
from bignas.compile.schedule import candidates
from bignas.compile.workload import workloads
from bignas.device_db.target import Target
from bignas.device_db.workload import BYTES_PER_VALUE, Operator, Workload
from bignas.supernet.architecture import Architecture
from bignas.supernet.layer import Layer
from bignas.supernet.space import SearchSpace

__all__ = ["RESOURCES", "bundle_bytes", "delivered", "memory_bytes", "weight_bytes"]

GUESSED_TARGET = Target("x86_64-linux-gnu", "x86-64-v3")  # whose schedules count
COPIES_OF_WEIGHTS = 3  # in the runner, in the library and in the ONNX model
BYTES_PER_KERNEL = 5_000  # of code, in the runner and in the library together
BYTES_OF_THE_REST = 20_000  # manifest, headers, runner


def weight_bytes(space: SearchSpace, architecture: Architecture) -> int:
    """Bytes of the weights and biases in a binary, without padding."""
    layers = space.layers(architecture)
    values = sum(one.weight_count + one.out_channels for one in layers if one.weight_count)
    return BYTES_PER_VALUE * values


@lru_cache(maxsize=1 << 16)
def _prepared_count(workload: Workload) -> int:
    """How many transformed weights a kernel reads, none if it reads them as they are."""
    schedule = candidates(workload, GUESSED_TARGET)[0]
    return count_read(workload, schedule) if schedule.winograd_side else 0


def memory_bytes(space: SearchSpace, architecture: Architecture) -> int:
    """Bytes of weights, as stored and as read, and of the most values alive at once in a kernel."""
    most = 0
    layers = space.layers(architecture)
    for _, group in groupby(layers, key=lambda layer: layer.name.rpartition(".")[0]):
        block = list(group)
        kept = _input(block[0]) if any(one.residual for one in block) else 0
        for index, layer in enumerate(block):
            gated = _input(layer) if layer.operator is Operator.GLOBAL_POOL else 0
            beside = kept if index else 0
            most = max(most, _input(layer) + _output(layer) + beside + gated)
    kernels = workloads(space, architecture)
    prepared = BYTES_PER_VALUE * sum(_prepared_count(one) for one in kernels)
    return weight_bytes(space, architecture) + prepared + BYTES_PER_VALUE * most


def bundle_bytes(space: SearchSpace, architecture: Architecture) -> int:
    """Bytes of all files of a bundle, about."""
    golden = GOLDEN_IMAGES * (space.in_channels * architecture.resolution**2 + space.classes)
    code = BYTES_PER_KERNEL * len(set(space.layers(architecture)))
    weights = COPIES_OF_WEIGHTS * weight_bytes(space, architecture)
    return weights + BYTES_PER_VALUE * golden + code + BYTES_OF_THE_REST


RESOURCES: Mapping[str, Callable[[SearchSpace, Architecture], int]] = MappingProxyType(
    {
        "macs": SearchSpace.macs,
        "params": SearchSpace.params,
        "memory_bytes": memory_bytes,
        "bundle_bytes": bundle_bytes,
    }
)


def delivered(manifest: Manifest) -> dict[str, int]:
    """What a bundle really needs, by the names of `Limits`, as far as its manifest tells."""
    return {
        "macs": manifest.macs,
        "memory_bytes": manifest.memory_bytes,
        "bundle_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
    }


def _input(layer: Layer) -> int:
    return layer.height * layer.width * layer.in_channels


def _output(layer: Layer) -> int:
    return layer.out_height * layer.out_width * layer.out_channels

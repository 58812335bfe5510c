"""A kernel graph -> a shared library: built kernels, call plan and a small C runtime, linked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bignas.compile.graph import FallbackCall, KernelGraph
from bignas.compile.kernel_identity import symbol_of
from bignas.compile.objects import ObjectCache
from bignas.compile.plan import Plan, make_plan
from bignas.compile.schedule import Schedule
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.workload import Workload

__all__ = [
    "THREADS_OF_LIBRARY",
    "CompiledNetwork",
    "build_network",
    "network_sources",
    "runtime_files",
]


THREADS_OF_LIBRARY = ("pool.c", "pool.h", "pool_posix.c")  # where there is a C library


@dataclass(frozen=True, slots=True)
class CompiledNetwork:
    """A linked network: the library's bytes, and what went into it.

    There is one schedule a call, and none where the call is a fallback.
    `objects` are the kernels' files in the cache, each once, in the order of their first call.
    """

    library: bytes
    graph: KernelGraph
    schedules: tuple[Schedule | None, ...]
    plan: Plan
    objects: tuple[Path, ...]


def build_network(
    graph: KernelGraph,
    schedules: Mapping[Workload, Schedule],
    cache: ObjectCache,
    threads: int = 1,
    *,
    probed: bool = False,
) -> CompiledNetwork:
    """Link a network for so many threads from cached kernels; nothing is measured.

    A `probed` one tells when each of its calls started (runner/probes.h).

    Raises:
        ToolchainError: a kernel cannot be built, or the linker is missing or fails.
        KeyError: a workload of the graph has no schedule.
    """
    chosen = tuple(
        None if isinstance(call, FallbackCall) else schedules[call.workload] for call in graph.calls
    )
    plan = make_plan(graph, chosen, cache.target.vector_lanes, threads, probed=probed)
    objects: dict[str, Path] = {}
    for call, schedule in zip(graph.calls, chosen, strict=True):
        if isinstance(call, FallbackCall):
            objects[call.kernel.symbol] = cache.fallback_path(call.kernel)
        elif schedule is not None:
            symbol = symbol_of(call.workload, schedule)
            objects[symbol] = cache.path(call.workload, schedule)
    files = tuple(objects.values())
    sources = network_sources(plan)
    if threads > 1:
        sources |= runtime_files(THREADS_OF_LIBRARY)
    library = link_shared_library(sources, files, cache.target)
    return CompiledNetwork(library, graph, chosen, plan, files)


def network_sources(plan: Plan) -> dict[str, bytes]:
    """Return the files that a network is compiled from, by name; kernels and threads apart."""
    names = ["runtime.c", "bignas.h"]
    if plan.prepared_bytes:
        names += ["winograd.c", "winograd.h"]
    if plan.probed:
        names.append("probes.h")
    return {
        "network.c": plan.source.encode(),
        "weights.bin": plan.weights,
        **runtime_files(names),
    }


def runtime_files(names: Iterable[str]) -> dict[str, bytes]:
    """Return C files of the runtime, by name."""
    folder = resources.files("bignas.compile.runner")
    return {name: folder.joinpath(name).read_bytes() for name in names}

"""The anchor: a fixed kernel of each target, whose time tells how fast a core is at the moment.

Clocks rise and fall in steps, wide vectors get less done in a cycle while other cores use them, a
neighbour on the same core takes a part of it: each hits code of other kinds by other factors, so no
arithmetic of one kind shows what a network suffers. A small inverted bottleneck, built as networks
are, does: it has the pointwise and depthwise loops that they spend their time in, and lies in the
first-level cache (measured in docs/decisions.md, "What a core can do has many states").
"""

from dataclasses import replace
from pathlib import Path

from bignas.compile.kernel_identity import code_hash, symbol_of
from bignas.compile.objects import ObjectCache
from bignas.compile.schedule import candidates
from bignas.compile.toolchain import link_shared_library
from bignas.device_db.files import cache_folder, write_atomically
from bignas.device_db.target import Target
from bignas.device_db.workload import Activation, Operator, Workload
from bignas.latency.jobs import KernelJob, Settings

__all__ = ["WORKLOAD", "anchor_of", "anchored"]

WORKLOAD = Workload(
    Operator.INVERTED_BOTTLENECK,
    height=8,
    width=8,
    in_channels=16,
    out_channels=16,
    kernel=3,
    padding=1,
    activation=Activation.RELU,
    residual=True,
    hidden_channels=64,
)


def anchor_of(target: Target) -> KernelJob:
    """Return the anchor of a target, with the first of its schedules, built when it is missing.

    Raises:
        ToolchainError: the kernel cannot be built.
        OutputError: the cache cannot be written.
    """
    schedule = candidates(WORKLOAD, target)[0]
    path = _path(target)
    if not path.exists():
        built = ObjectCache(target).path(WORKLOAD, schedule)
        write_atomically(path, link_shared_library({}, [built], target))
    return KernelJob(path, symbol_of(WORKLOAD, schedule), WORKLOAD)


def anchored(settings: Settings, target: Target, threads: int) -> Settings:
    """Return settings to measure code of a target on so many threads; raises as `anchor_of`."""
    return replace(settings, threads=threads, anchor=anchor_of(target))


def _path(target: Target) -> Path:
    return cache_folder() / f"anchor-{code_hash()}-{target.digest}.so"

"""The instructions that a target's kernels need, as the native runner checks them.

Names are LLVM's. compile/runner/cpu.c knows how each is asked for; a test compares the two.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bignas.device_db.target import MachineArchitecture, Target

__all__ = ["CHECKED", "required_features"]

_X86_LEVELS = (
    ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"),
    ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
)
_BASELINE = ("x86-64", "generic")

CHECKED: Final[Mapping[MachineArchitecture, frozenset[str]]] = MappingProxyType(
    {
        MachineArchitecture.X86_64: frozenset(name for level in _X86_LEVELS for name in level),
        MachineArchitecture.AARCH64: frozenset(("dotprod", "fullfp16", "lse", "neon", "rdm")),
        MachineArchitecture.ARM: frozenset(),
        MachineArchitecture.RISCV64: frozenset("acdfmv"),
    }
)


def required_features(target: Target) -> tuple[str, ...]:
    """Return what a processor must have to run a target's kernels, most basic first.

    The level of an x86-64 processor follows from its vectors; features that the target names are
    added or taken away. Those that the runner cannot ask for are left out.
    """
    found = dict.fromkeys(_implied(target))
    for feature in target.features:
        name = feature[1:]
        if feature.startswith("-"):
            found.pop(name, None)
        elif name in CHECKED[target.architecture]:
            found[name] = None
    return tuple(found)


def _implied(target: Target) -> tuple[str, ...]:
    match target.architecture:
        case MachineArchitecture.X86_64:
            if target.cpu in _BASELINE and target.vector_lanes == 4:
                return ()
            levels = {4: 1, 8: 2, 16: 3}[target.vector_lanes]
            return tuple(name for level in _X86_LEVELS[:levels] for name in level)
        case MachineArchitecture.AARCH64:
            return ("neon",)
        case MachineArchitecture.ARM | MachineArchitecture.RISCV64:
            return ()

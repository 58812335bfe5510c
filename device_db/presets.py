"""Targets that code can be generated for without asking the device."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bignas.device_db.target import Target

__all__ = ["PRESETS"]

_X86 = "x86_64-linux-gnu"
_ARM = "aarch64-linux-gnu"

PRESETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "x86-64-v2": Target(_X86, "x86-64-v2"),
        "x86-64-v3": Target(_X86, "x86-64-v3"),
        "x86-64-v4": Target(_X86, "x86-64-v4"),
        "cortex-a72": Target(_ARM, "cortex-a72", ("+neon",)),
        "cortex-a76": Target(_ARM, "cortex-a76", ("+neon", "+dotprod", "+fullfp16")),
        "neoverse-n1": Target(_ARM, "neoverse-n1", ("+neon", "+dotprod", "+fullfp16")),
        "riscv64-v": Target(
            "riscv64-linux-gnu", "generic-rv64", ("+m", "+a", "+f", "+d", "+c", "+v")
        ),
    }
)

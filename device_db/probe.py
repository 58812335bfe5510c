"""Describes the machine that this process runs on.

On Linux the processor is read from /proc/cpuinfo; elsewhere the least that its family guarantees is
assumed. `describe` is a pure function of what was read, so other machines' files can be tested.
"""

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Final

import psutil

from bignas.device_db.device import Device
from bignas.device_db.errors import TargetError
from bignas.device_db.target import MachineArchitecture, Target

__all__ = ["LOCAL", "describe", "obstacle_to_measuring", "probe_local", "shortage_of_cores"]

LOCAL: Final = "local"

_CPUINFO = Path("/proc/cpuinfo")

# What each level of the x86-64 psABI adds, as Linux names it.
_X86_LEVELS = (
    ("x86-64-v2", {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    ("x86-64-v3", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    ("x86-64-v4", {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}),
)
# "CPU part" of processors designed by Arm (implementer 0x41) -> LLVM's name
_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd40": "neoverse-v1",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
}
_ARM_IMPLEMENTER = "0x41"
_SYSTEM_SUFFIXES = {"Linux": "linux-gnu", "Darwin": "apple-macosx", "Windows": "pc-windows-msvc"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_COMPUTE_FLAG = re.compile(
    r"sse4_[12]|ssse3|avx.*|amx.*|fma|f16c|bmi[12]|asimd.*|fphp|sve.*|i8mm|bf16|neon|vfpv4",
    re.ASCII,
)


def probe_local() -> Device:
    """Return this machine as the device `local`, one thread, its best instruction set.

    Raises:
        TargetError: no code can be generated for this kind of processor.
    """
    cpuinfo = ""
    with contextlib.suppress(OSError):
        cpuinfo = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    return describe(
        system=platform.system(),
        machine=platform.machine(),
        cpuinfo=cpuinfo,
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        processor=platform.processor(),
    )


def describe(
    system: str, machine: str, cpuinfo: str, cores: int, memory_bytes: int, processor: str = ""
) -> Device:
    """Return the device `local` of a machine, given what the operating system tells about it.

    `system` and `machine` are as in the module `platform`, `cpuinfo` is the text of /proc/cpuinfo,
    empty where there is none. `processor` names the processor when that text does not.

    Raises:
        TargetError: an operating system or a processor that no code can be generated for.
    """
    if system not in _SYSTEM_SUFFIXES:
        raise TargetError(f"unsupported operating system {system!r}")
    name = _MACHINES.get(machine.lower(), machine.lower())
    triple = f"{name}-{_SYSTEM_SUFFIXES[system]}"
    facts = _first_processor(cpuinfo)
    flags = frozenset((facts.get("flags") or facts.get("features") or "").split())
    match Target(triple, "generic").architecture:
        case MachineArchitecture.X86_64:
            target = Target(triple, _x86_level(flags))
        case MachineArchitecture.AARCH64:
            target = Target(triple, _arm_name(facts), ("+neon",))
        case MachineArchitecture.ARM:
            target = Target(triple, "generic", ("+neon",) if "neon" in flags else ())
        case MachineArchitecture.RISCV64:
            target = Target(triple, "generic-rv64", _riscv_features(facts.get("isa", "")))
    model = facts.get("model name") or facts.get("model") or processor or name
    return Device(
        name=LOCAL,
        target=target,
        threads=1,
        cpu_model=" ".join(model.split()),
        cores=cores,
        memory_bytes=memory_bytes,
        instruction_sets=tuple(sorted(flag for flag in flags if _COMPUTE_FLAG.fullmatch(flag))),
    )


def obstacle_to_measuring(device: Device, here: Device) -> str | None:
    """Return why latencies of a device cannot be measured on the machine `here`, None if they can.

    It begins with the device's name. Code for another processor of the same family may run here,
    but its latency is not that of the device. A remote device is measured from any machine.
    """
    name, target = device.name, device.target
    if device.remote is not None:
        return None
    if target.architecture is not here.target.architecture:
        return (
            f"device {name!r} ({target.architecture}) cannot be measured on this"
            f" {here.target.architecture} machine"
        )
    if device.cpu_model != here.cpu_model:
        return f"device {name!r} is another machine ({device.cpu_model})"
    if target.vector_lanes > here.target.vector_lanes:
        return (
            f"device {name!r} ({target.cpu}) has instructions that this processor"
            f" ({here.target.cpu}) lacks"
        )
    return shortage_of_cores(name, device.threads, here)


def shortage_of_cores(name: str, threads: int, here: Device) -> str | None:
    """Return that `here` has fewer cores than binaries of a device have threads, None if not."""
    if threads > here.cores:
        return f"device {name!r} uses {threads} threads, this machine has {here.cores} cores"
    return None


def _first_processor(cpuinfo: str) -> dict[str, str]:
    """Return the first value of each key, keys in lower case."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip().lower(), value.strip())
    return facts


def _x86_level(flags: frozenset[str]) -> str:
    level = "x86-64"
    for name, needed in _X86_LEVELS:
        if not needed <= flags:
            break
        level = name
    return level


def _arm_name(facts: dict[str, str]) -> str:
    if facts.get("cpu implementer") != _ARM_IMPLEMENTER:
        return "generic"
    return _ARM_PARTS.get(facts.get("cpu part", ""), "generic")


def _riscv_features(isa: str) -> tuple[str, ...]:
    """Return the single-letter extensions of an ISA text such as `rv64imafdcv_zicsr`."""
    letters = isa.split("_", 1)[0].removeprefix("rv64").replace("g", "imafd")
    return tuple(f"+{letter}" for letter in letters if letter in "mafdcv")

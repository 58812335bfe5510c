"""Describing machines from what their operating systems tell."""

import pytest

from bignas.device_db.errors import TargetError
from bignas.device_db.probe import LOCAL, describe, probe_local

V2 = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"


@pytest.mark.parametrize(
    ("flags", "cpu"),
    [
        ("sse2", "x86-64"),
        (V2, "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V4, "x86-64-v4"),
        (V4.replace(" fma", ""), "x86-64-v2"),
    ],
)
def test_x86_level_is_the_highest_complete_one(flags: str, cpu: str) -> None:
    cpuinfo = f"processor : 0\nmodel name : Some   CPU\nflags : {flags}\n\nprocessor : 1\nflags :\n"
    device = describe("Linux", "x86_64", cpuinfo, cores=4, memory_bytes=1 << 30)
    assert device.name == LOCAL
    assert device.threads == 1
    assert device.cpu_model == "Some CPU"
    assert device.target.cpu == cpu
    assert device.target.triple == "x86_64-linux-gnu"
    assert ("avx2" in device.instruction_sets) == ("avx2" in flags)


def test_arm_part_names_the_core() -> None:
    cpuinfo = "Features : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0c\n"
    device = describe("Linux", "aarch64", cpuinfo, cores=64, memory_bytes=1 << 36)
    assert device.target.cpu == "neoverse-n1"
    assert device.instruction_sets == ("asimd",)


def test_riscv_letters_become_features() -> None:
    device = describe("Linux", "riscv64", "isa : rv64imafdcv_zicsr\n", 4, 1 << 30)
    assert "+v" in device.target.features
    assert device.target.vector_lanes == 4


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "arm64", "aarch64"])
def test_without_cpuinfo_the_least_is_assumed(system: str, machine: str) -> None:
    device = describe(system, machine, "", cores=1, memory_bytes=1)
    assert device.target.vector_lanes == 4
    assert device.cpu_model


@pytest.mark.parametrize(("system", "machine"), [("Linux", "sparc"), ("Plan9", "x86_64")])
def test_unsupported_machines_are_refused(system: str, machine: str) -> None:
    with pytest.raises(TargetError, match="unsupported"):
        describe(system, machine, "", cores=1, memory_bytes=1)


def test_this_machine() -> None:
    device = probe_local()
    assert device == probe_local()
    assert device.memory_bytes > 1 << 20
    assert device.target.vector_registers >= 16

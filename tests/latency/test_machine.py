"""A remote machine is described as it would describe itself."""

import subprocess
from importlib import resources

import psutil
import pytest

from bignas.device_db.errors import MeasurementError
from bignas.device_db.probe import probe_local
from bignas.latency.evidence import runtime_version
from bignas.latency.local import measuring_cores, own_cache_bytes
from bignas.latency.machine import USUAL_CACHE_BYTES, MachineFacts

CORES = "/sys/devices/system/cpu/cpu"
PI = f"""
== node
raspberrypi
== system
Linux
== machine
aarch64
== cpuinfo
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
== memory
MemTotal:        3884336 kB
MemFree:         1000000 kB
== status
Name:\tcat
Cpus_allowed_list:\t0-1,3
== siblings
0
1
2
3
== cache
0
{CORES}0/cache/index2 512K
{CORES}3/cache/index2 1M
== load
0.42 0.10 0.01 1/123 4567
== ticks
cpu  100 0 50 1000 5 0 2 7 0 0
== frequency
{CORES}0/cpufreq 600000 ondemand
{CORES}3/cpufreq 1500000 performance
"""


def here() -> str:
    with resources.as_file(resources.files("bignas.latency").joinpath("machine.sh")) as script:
        return subprocess.run(
            ["/bin/sh", str(script)], capture_output=True, text=True, check=True
        ).stdout


def test_this_machine_is_described_as_it_describes_itself() -> None:
    facts = MachineFacts.parse(here())
    local = probe_local()
    assert facts.device == local
    assert facts.runtime == runtime_version()
    assert facts.cores_for(1) == measuring_cores(1)
    assert facts.own_cache_bytes == own_cache_bytes()
    assert facts.device.memory_bytes == psutil.virtual_memory().total
    assert facts.environment_since(facts, 3, (0,)).context_switches == 3


def test_a_board_is_described() -> None:
    facts = MachineFacts.parse(PI)
    assert (facts.node, facts.device.cpu_model) == ("raspberrypi", "Raspberry Pi 4 Model B Rev 1.4")
    assert (facts.device.target.cpu, facts.device.target.triple) == (
        "cortex-a72",
        "aarch64-linux-gnu",
    )
    assert (facts.device.cores, facts.device.memory_bytes) == (4, 3884336 << 10)
    assert facts.own_cache_bytes == 1 << 20, "of the core that measures"
    assert facts.allowed == (0, 1, 3)
    assert (facts.frequency_mhz, facts.governor) == (1500.0, "performance")


def test_stolen_time_is_that_between_two_looks() -> None:
    before = MachineFacts.parse(PI)
    later = PI.replace("cpu  100 0 50 1000 5 0 2 7", "cpu  160 0 50 1020 5 0 2 27")
    after = MachineFacts.parse(later)
    environment = after.environment_since(before, 5, (3,))
    assert environment.steal_fraction == pytest.approx(0.2)
    assert (environment.load_average, environment.affinity) == (0.42, (3,))


def test_what_a_machine_does_not_tell_is_left_open() -> None:
    lines = [line for line in PI.splitlines() if not line.startswith(CORES)]
    facts = MachineFacts.parse("\n".join(lines))
    assert facts.own_cache_bytes == USUAL_CACHE_BYTES
    assert (facts.frequency_mhz, facts.governor) == (None, None)


def test_more_threads_than_cores_are_refused() -> None:
    facts = MachineFacts.parse(PI)
    assert facts.cores_for(2) == (1, 3)
    with pytest.raises(MeasurementError, match="raspberrypi may use 3"):
        facts.cores_for(4)


@pytest.mark.parametrize(
    "text", ["", "== node\nx\n", PI.replace("MemTotal", "Total"), PI.replace("0-1,3", "none")]
)
def test_what_is_no_description_is_an_error(text: str) -> None:
    with pytest.raises(MeasurementError, match="cannot be described"):
        MachineFacts.parse(text)

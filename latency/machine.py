"""What a remote machine is and is doing, from the sections that machine.sh prints there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bignas.device_db.device import Device
from bignas.device_db.errors import MeasurementError
from bignas.device_db.measurement import Environment
from bignas.device_db.probe import describe

__all__ = ["USUAL_CACHE_BYTES", "MachineFacts", "parse_cache_size"]

USUAL_CACHE_BYTES: Final = 1 << 20  # of a core's own cache, where the machine does not tell
_SECTION = re.compile(r"^== (\w+)$", re.MULTILINE)
_CORE = re.compile(r"/cpu(\d+)/")
_UNITS: Final[Mapping[str, int]] = {"K": 1 << 10, "M": 1 << 20}
_STEAL = 7  # place among the ticks of /proc/stat


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """One look at a machine.

    `device` is what it would be as its own `local`; `allowed` are the cores that the server may
    use; `steal_ticks` and `all_ticks` count since the machine started. Clock and governor are those
    of the last allowed core, where measuring happens, None where the machine does not tell.
    """

    node: str
    device: Device
    system: str
    machine: str
    own_cache_bytes: int
    allowed: tuple[int, ...]
    load_average: float
    steal_ticks: int
    all_ticks: int
    frequency_mhz: float | None
    governor: str | None

    @classmethod
    def parse(cls, text: str) -> "MachineFacts":
        """Return the facts in the output of machine.sh.

        Raises:
            MeasurementError: it is not such an output.
            TargetError: no code can be generated for the machine.
        """
        _, *parts = _SECTION.split(text)
        found = dict(zip(parts[::2], parts[1::2], strict=True))
        try:
            allowed = _core_list(_value(found["status"], "Cpus_allowed_list"))
            ticks = [int(one) for one in found["ticks"].split()[1:]]
            system, machine = found["system"].strip(), found["machine"].strip()
            frequency_mhz, governor = _clock(found["frequency"], found["cpuinfo"], allowed[-1])
            return cls(
                node=found["node"].strip(),
                device=describe(
                    system=system,
                    machine=machine,
                    cpuinfo=found["cpuinfo"],
                    cores=len(set(found["siblings"].split())) or len(allowed),
                    memory_bytes=int(_value(found["memory"], "MemTotal").split()[0]) << 10,
                ),
                system=system,
                machine=machine,
                own_cache_bytes=_own_cache(found["cache"], allowed[-1]),
                allowed=allowed,
                load_average=float(found["load"].split()[0]),
                steal_ticks=ticks[_STEAL],
                all_ticks=sum(ticks[: _STEAL + 1]),
                frequency_mhz=frequency_mhz,
                governor=governor,
            )
        except (KeyError, ValueError, IndexError) as error:
            raise MeasurementError(f"the machine cannot be described: {error}") from error

    @property
    def runtime(self) -> str:
        """What measured binaries run on, for provenance records."""
        return f"bignas static runner, {self.system} {self.machine}"

    def cores_for(self, threads: int) -> tuple[int, ...]:
        """Return the cores to measure on, the last allowed ones.

        Raises:
            MeasurementError: there are fewer than threads.
        """
        if len(self.allowed) < threads:
            raise MeasurementError(
                f"measuring with {threads} threads needs as many cores, the RPC server on"
                f" {self.node} may use {len(self.allowed)}"
            )
        return self.allowed[-threads:]

    def environment_since(
        self, before: "MachineFacts", switches: int, cores: tuple[int, ...]
    ) -> Environment:
        """Return what the machine was doing since an earlier look; `switches` are of contexts."""
        passed = max(1, self.all_ticks - before.all_ticks)
        stolen = max(0, self.steal_ticks - before.steal_ticks)
        return Environment(
            load_average=self.load_average,
            steal_fraction=min(1.0, stolen / passed),
            frequency_mhz=self.frequency_mhz,
            context_switches=switches,
            affinity=cores,
            governor=self.governor,
        )


def _value(text: str, key: str) -> str:
    """Return what stands behind `key:` at the start of a line; ValueError when it is missing."""
    found = re.search(rf"^{key}:\s*(.*)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"no {key}")
    return found[1].strip()


def _core_list(text: str) -> tuple[int, ...]:
    """Return the numbers in a list such as `0-3,8`."""
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return tuple(cores)


def _of_core(text: str, core: int) -> list[str]:
    """Return the words behind the directory of a core, none where it has no line."""
    for line in text.splitlines():
        found = _CORE.search(line)
        if found is not None and int(found[1]) == core:
            return line.split()[1:]
    return []


def parse_cache_size(text: str) -> int | None:
    """Return the bytes of a size such as `2048K`, None for anything else."""
    size = text.strip()
    if size[:-1].isdigit() and size[-1] in _UNITS:
        return int(size[:-1]) * _UNITS[size[-1]]
    return None


def _own_cache(text: str, core: int) -> int:
    for word in _of_core(text, core):
        size = parse_cache_size(word)
        if size:
            return size
    first = text.strip().split("\n", 1)[0]
    return int(first) if first.isdigit() and int(first) else USUAL_CACHE_BYTES


def _clock(frequency: str, cpuinfo: str, core: int) -> tuple[float | None, str | None]:
    words = _of_core(frequency, core)
    if words:
        return float(words[0]) / 1e3, words[1] if len(words) > 1 else None
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    return (float(found[1]) if found else None), None

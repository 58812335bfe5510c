"""A measurement: raw samples of one kernel or one network on one device, or why there are none.

With it goes the `Provenance` (which code was measured) and the `Environment` (what the machine was
doing). A failed measurement is a record too. `to_dict()` gives plain JSON values, `from_dict()` is
its inverse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from bignas.device_db.checks import (
    exact_keys,
    member_of,
    number_of,
    require_integer,
    text_of,
    text_or_none,
)
from bignas.device_db.errors import MeasurementError, ModelError
from bignas.device_db.workload import Workload

__all__ = ["Environment", "Measurement", "MeasurementKind", "Provenance", "Subject"]


class MeasurementKind(StrEnum):
    """Where a latency comes from. Only `MEASURED` is evidence."""

    MEASURED = "measured"
    EMULATED = "emulated"
    PREDICTED = "predicted"


class Subject(StrEnum):
    """What was measured."""

    KERNEL = "kernel"
    NETWORK = "network"
    IN_NETWORK = "kernel in network"  # one call of a network, timed where it runs


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which code was measured, and by what.

    `code_hash` is the hash of the measured machine code or of the kernel generators: when it no
    longer matches the code that would ship, the measurement is stale.
    """

    compiler: str
    runtime: str
    code_hash: str
    bignas_version: str
    host: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the provenance that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, MeasurementError)
        return cls(**{key: text_of(key, value, MeasurementError) for key, value in values.items()})


@dataclass(frozen=True, slots=True)
class Environment:
    """What the machine was doing while the samples were taken.

    `steal_fraction` is the share (0 to 1) of time that a hypervisor gave to others,
    `context_switches` counts those of the measuring process, `affinity` lists its processors.

    Raises:
        MeasurementError: a value outside its range.
    """

    load_average: float
    steal_fraction: float
    frequency_mhz: float | None
    context_switches: int
    affinity: tuple[int, ...]
    governor: str | None

    def __post_init__(self) -> None:
        if not 0.0 <= self.steal_fraction <= 1.0:
            raise MeasurementError(f"steal_fraction must be 0 to 1, got {self.steal_fraction}")
        if not 0.0 <= self.load_average < math.inf:
            raise MeasurementError(f"load_average must not be negative, got {self.load_average}")
        if self.frequency_mhz is not None and not 0.0 < self.frequency_mhz < math.inf:
            raise MeasurementError(f"frequency_mhz must be positive, got {self.frequency_mhz}")
        if self.context_switches < 0:
            raise MeasurementError(
                f"context_switches must not be negative, got {self.context_switches}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "load_average": self.load_average,
            "steal_fraction": self.steal_fraction,
            "frequency_mhz": self.frequency_mhz,
            "context_switches": self.context_switches,
            "affinity": list(self.affinity),
            "governor": self.governor,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the environment that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, MeasurementError)
        affinity = values["affinity"]
        if not isinstance(affinity, Sequence) or isinstance(affinity, str):
            raise MeasurementError(f"affinity must be a list of numbers, got {affinity!r}")
        for number in (*affinity, values["context_switches"]):
            require_integer("a processor or a count", number, 0, MeasurementError)
        frequency_mhz = values["frequency_mhz"]
        return cls(
            load_average=number_of("load_average", values["load_average"], MeasurementError),
            steal_fraction=number_of("steal_fraction", values["steal_fraction"], MeasurementError),
            frequency_mhz=None
            if frequency_mhz is None
            else number_of("frequency_mhz", frequency_mhz, MeasurementError),
            context_switches=values["context_switches"],
            affinity=tuple(affinity),
            governor=text_or_none("governor", values["governor"], MeasurementError),
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw latency samples of one kernel or network on one device, or the error that came instead.

    A kernel has a `workload` and the `schedule` (canonical JSON text) it was built with; a network
    has the name of its `space` and its `architecture` (canonical JSON text); a kernel in a network
    has both. `session` groups what was measured together. `created_at` is in UTC.

    Raises:
        MeasurementError: fields that do not belong together, or samples that are no latencies.
    """

    device: str
    subject: Subject
    workload: Workload | None
    schedule: str | None
    space: str | None
    architecture: str | None
    samples_ns: tuple[float, ...]
    error: str | None
    kind: MeasurementKind
    provenance: Provenance
    environment: Environment
    created_at: datetime
    session: str

    def __post_init__(self) -> None:
        network = self.space is not None, self.architecture is not None
        match self.subject:
            case Subject.KERNEL if self.workload is None or any(network):
                raise MeasurementError("a kernel measurement has a workload and no architecture")
            case Subject.NETWORK if self.workload is not None or not all(network):
                raise MeasurementError("a network measurement has a space and an architecture only")
            case Subject.IN_NETWORK if self.workload is None or not all(network):
                raise MeasurementError("a kernel in a network has a workload and an architecture")
        if (self.error is None) != bool(self.samples_ns):
            raise MeasurementError("a measurement has either samples or an error")
        if self.samples_ns and not (
            min(self.samples_ns) > 0.0 and math.isfinite(sum(self.samples_ns))
        ):
            raise MeasurementError("latency samples must be positive and finite")
        if self.created_at.utcoffset() != timedelta(0):
            raise MeasurementError("created_at must be in UTC")

    @property
    def ok(self) -> bool:
        """Whether the measurement succeeded."""
        return self.error is None

    @property
    def p50_ns(self) -> float:
        """Median in nanoseconds."""
        return self._quantile(0.5)

    @property
    def p90_ns(self) -> float:
        """Ninetieth percentile in nanoseconds: what is promised to users."""
        return self._quantile(0.9)

    def _quantile(self, share: float) -> float:
        """Interpolate linearly between the two nearest samples, as numpy does by default."""
        if self.error is not None:
            raise MeasurementError(f"a failed measurement has no latency: {self.error}")
        ordered = sorted(self.samples_ns)
        position = share * (len(ordered) - 1)
        index = int(position)
        upper = ordered[min(index + 1, len(ordered) - 1)]
        return ordered[index] + (position - index) * (upper - ordered[index])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, one a field."""
        return {
            "device": self.device,
            "subject": self.subject,
            "workload": None if self.workload is None else self.workload.key,
            "schedule": self.schedule,
            "space": self.space,
            "architecture": self.architecture,
            "samples_ns": list(self.samples_ns),
            "error": self.error,
            "kind": self.kind,
            "provenance": self.provenance.to_dict(),
            "environment": self.environment.to_dict(),
            "created_at": self.created_at.astimezone(UTC).isoformat(),
            "session": self.session,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the measurement that `to_dict` was called on.

        Raises:
            MeasurementError: a missing or unknown key, or a value of the wrong type.
        """
        values = exact_keys(cls, data, MeasurementError)
        values["subject"] = member_of(Subject, "subject", values["subject"], MeasurementError)
        values["kind"] = member_of(MeasurementKind, "kind", values["kind"], MeasurementError)
        for name in ("device", "session"):
            text_of(name, values[name], MeasurementError)
        for name in ("workload", "schedule", "space", "architecture", "error"):
            text_or_none(name, values[name], MeasurementError)
        try:
            key = values["workload"]
            values["workload"] = None if key is None else Workload.from_key(key)
            values["samples_ns"] = tuple(
                number_of("a sample", sample, MeasurementError) for sample in values["samples_ns"]
            )
            values["provenance"] = Provenance.from_dict(values["provenance"])
            values["environment"] = Environment.from_dict(values["environment"])
            values["created_at"] = datetime.fromisoformat(values["created_at"])
        except (TypeError, ValueError, AttributeError, ModelError) as error:
            raise MeasurementError(f"malformed measurement: {error}") from error
        return cls(**values)

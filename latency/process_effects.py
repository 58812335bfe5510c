"""What all networks of one measuring process are off by, found and taken away.

Decisions
- Networks that one process times are all off by the same few percent, and by others in the next
  process: how many stalls it counted, what others did to the shared caches meanwhile. Around that
  they scatter much less (docs/decisions.md, "A process is off as a whole"). So the logarithm of a
  latency is taken for its prediction, plus the effect of its process, plus the rest: a mixed model
  with a random intercept for each process (Laird and Ware, "Random-effects models for longitudinal
  data", Biometrics 38, 1982).
- Predictions of a network come from fits without it, or they would contain what it is off by.
- The effect of a process is the median deviation of its networks, less what is usual in its
  session: what all processes of a session share is as likely a trait of the networks, as a search
  measures those of one region only. It is shrunk by (n - 1) / n: one network alone tells nothing.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bignas.device_db.measurement import Measurement
from bignas.latency.metrics import deviation
from bignas.supernet.architecture import Architecture

__all__ = ["NetworkReading", "ProcessEffects"]


@dataclass(frozen=True, slots=True)
class NetworkReading:
    """The median latency of one network as one process of a session has measured it."""

    network: Architecture
    session: str
    process: Hashable
    latency_ms: float

    @classmethod
    def of(cls, measurement: Measurement, network: Architecture) -> "NetworkReading":
        """Return that of a record; processes are told apart by what the machine did meanwhile."""
        environment = measurement.environment
        process = (
            measurement.provenance.host,
            environment.load_average,
            environment.steal_fraction,
            environment.context_switches,
        )
        return cls(network, measurement.session, process, measurement.p50_ns / 1e6)


@dataclass(frozen=True)
class ProcessEffects:
    """Logarithms of the factors that processes are slower by, and their standard deviation."""

    effects: Mapping[tuple[str, Hashable], float]  # by session and process
    deviation: float

    @classmethod
    def estimate(
        cls, readings: Iterable[NetworkReading], expected_ms: Mapping[Architecture, float]
    ) -> "ProcessEffects":
        """Estimate them from readings of networks and what these are expected to take."""
        sessions: dict[str, dict[Hashable, list[float]]] = {}
        for one in readings:
            ratio = float(np.log(one.latency_ms / expected_ms[one.network]))
            sessions.setdefault(one.session, {}).setdefault(one.process, []).append(ratio)
        effects: dict[tuple[str, Hashable], float] = {}
        for session, processes in sessions.items():
            medians = {process: float(np.median(found)) for process, found in processes.items()}
            usual = float(np.median(list(medians.values())))
            for process, median in medians.items():
                count = len(processes[process])
                effects[session, process] = (median - usual) * (count - 1) / count
        return cls(effects, deviation(list(effects.values())) if effects else 0.0)

    def without(self, reading: NetworkReading) -> float:
        """Return the milliseconds of a reading without the effect of its process."""
        effect = self.effects.get((reading.session, reading.process), 0.0)
        return float(reading.latency_ms * np.exp(-effect))

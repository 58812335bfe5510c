"""Turns timing results into records of the store."""

import platform
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from bignas.compile.kernel_identity import compiler_version
from bignas.compile.schedule import Schedule
from bignas.device_db.measurement import (
    Environment,
    Measurement,
    MeasurementKind,
    Provenance,
    Subject,
)
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash, runtime_version
from bignas.latency.jobs import TimingResult
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace

__all__ = ["Recorder", "space_label"]


def space_label(space: SearchSpace) -> str:
    """Return the name under which subnets of a space are recorded: name and content."""
    return f"{space.name}@{space.digest[:16]}"


class Recorder:
    """Makes the records of one session on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.session = secrets.token_hex(8)
        self.provenance = Provenance(
            compiler=compiler_version(),
            runtime=runtime_version(),
            code_hash=evidence_hash(),
            bignas_version=version("bignas"),
            host=platform.node(),
        )

    def kernel(
        self,
        workload: Workload,
        schedule: Schedule,
        result: TimingResult,
        environment: Environment,
    ) -> Measurement:
        """Return the record of one kernel."""
        return self._record(
            Subject.KERNEL, result, environment, workload=workload, schedule=schedule.to_text()
        )

    def network(
        self,
        space: SearchSpace,
        architecture: Architecture,
        result: TimingResult,
        environment: Environment,
    ) -> Measurement:
        """Return the record of one whole subnet."""
        return self._record(
            Subject.NETWORK,
            result,
            environment,
            space=space_label(space),
            architecture=architecture.key,
        )

    def in_network(
        self,
        network: tuple[str, str],
        workload: Workload,
        schedule: Schedule,
        result: TimingResult,
        environment: Environment,
    ) -> Measurement:
        """Return the record of one call of a network, given by its space's label and its key."""
        space, architecture = network
        return self._record(
            Subject.IN_NETWORK,
            result,
            environment,
            workload=workload,
            schedule=schedule.to_text(),
            space=space,
            architecture=architecture,
        )

    def _record(
        self,
        subject: Subject,
        result: TimingResult,
        environment: Environment,
        *,
        workload: Workload | None = None,
        schedule: str | None = None,
        space: str | None = None,
        architecture: str | None = None,
    ) -> Measurement:
        provenance, place = self.provenance, result.place
        if place is not None:
            environment = place.environment
            provenance = replace(provenance, host=place.host, runtime=place.runtime)
        return Measurement(
            device=self.device,
            subject=subject,
            workload=workload,
            schedule=schedule,
            space=space,
            architecture=architecture,
            samples_ns=result.samples_ns,
            error=result.error,
            kind=MeasurementKind.MEASURED,
            provenance=provenance,
            environment=environment,
            created_at=datetime.now(UTC),
            session=self.session,
        )

"""One supernet, many devices: a search for each, and what each winner costs on the others."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bignas.compile.workload import workloads
from bignas.device_db.errors import MeasurementError
from bignas.device_db.files import require_writable, write_atomically
from bignas.device_db.store import Store
from bignas.latency.recording import Recorder
from bignas.latency.subnets import measure_subnets, typical_weights_bytes
from bignas.latency.tuning import ensure_networks_tuned
from bignas.search.context import Report
from bignas.search.pipeline import run_search
from bignas.search.requirements import Requirements, Site
from bignas.search.result import FORMAT_VERSION, SearchConfig, SearchResult
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.architecture import Architecture
from bignas.supernet.checkpoint import Checkpoint
from bignas.supernet.data import ImageData
from bignas.supernet.network import Supernet
from bignas.supernet.space import SearchSpace

__all__ = ["CROSS", "ManyResult", "measure_together", "run_searches"]

CROSS = "cross.json"


@dataclass(frozen=True, slots=True)
class ManyResult:
    """The result for each device, and `measured_ms[i][j]`: winner of device i on device j."""

    sites: tuple[Site, ...]
    results: tuple[SearchResult, ...]
    measured_ms: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return cross.json's content; `runs` are folders with a result.json each."""
        return {
            "format_version": FORMAT_VERSION,
            "runs": [site.device.name for site in self.sites],
            "winners": [
                {
                    "winner_of": result.device,
                    "top1": result.best.top1,
                    "arch": result.best.architecture.to_dict(),
                    "devices": [
                        {
                            "device": site.device.name,
                            "budget_ms": site.budget_ms,
                            "measured_ms": latency_ms,
                        }
                        for site, latency_ms in zip(self.sites, row, strict=True)
                    ],
                }
                for result, row in zip(self.results, self.measured_ms, strict=True)
            ],
        }


def run_searches(
    network: Supernet,
    checkpoint: Checkpoint,
    data: ImageData,
    store: Store,
    sites: Sequence[Site],
    config: SearchConfig,
    out: Path,
    progress: Report | None = None,
    accuracy: AccuracyPredictor | None = None,
    processes: int = 1,
) -> ManyResult:
    """Search for each device in a folder of its own below `out`, then measure all winners on all.

    The budgets are those of the sites; the rest of `config` holds for all. Children are evaluated
    in so many `processes`. Goes on where it was
    interrupted. Raises what `run_search` raises.
    """
    require_writable(out / CROSS)
    for site in sites:  # before the first search takes its time
        here = dataclasses.replace(site, predictor=site.predictor.for_space(network.space))
        Requirements(network.space, (here,), config.confidence, config.limits).require_feasible(
            config.seed
        )
    results = tuple(
        run_search(
            network, checkpoint, data, site.device, store, site.cache, site.predictor,
            dataclasses.replace(config, budget_ms=site.budget_ms), out / site.device.name, progress,
            accuracy=accuracy, processes=processes,
        )
        for site in sites
    )  # fmt: skip
    winners = [one.best.architecture for one in results]
    columns = [measure_together(network.space, store, site, winners) for site in sites]
    rows = tuple(tuple(column[index] for column in columns) for index in range(len(results)))
    found = ManyResult(tuple(sites), results, rows)
    text = json.dumps(found.to_dict(), indent=1) + "\n"
    write_atomically(out / CROSS, text.encode())
    return found


def measure_together(
    space: SearchSpace, store: Store, site: Site, architectures: Sequence[Architecture]
) -> list[float]:
    """Return medians in ms of architectures on one device, measured together; the store keeps them.

    Raises:
        MeasurementError: one of them cannot be measured there.
    """
    layers = [workloads(space, one) for one in architectures]
    kernels = ensure_networks_tuned(
        layers, site.device, store, site.cache, weights_bytes=typical_weights_bytes(space)
    )
    recorder = Recorder(site.device.name)
    records = measure_subnets(space, architectures, kernels, site.device, site.cache, recorder)
    store.add_measurements(records)
    failed = next((one for one in records if not one.ok), None)
    if failed is not None:
        raise MeasurementError(f"a winner cannot run on {site.device.name}: {failed.error}")
    return [one.p50_ns / 1e6 for one in records]

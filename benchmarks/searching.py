"""What benchmarks of whole searches share: supernet, images, devices, searches to resume."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from command import remembered

from bignas.compile.objects import ObjectCache
from bignas.device_db.errors import BudgetError
from bignas.device_db.store import Store
from bignas.latency.predictors import load_predictor
from bignas.search.constraint import Limits
from bignas.search.context import SearchProgress
from bignas.search.pipeline import run_search
from bignas.search.requirements import Site
from bignas.search.result import EVALUATIONS, PRESELECTED_EVALUATIONS, SearchConfig
from bignas.supernet.accuracy import AccuracyPredictor
from bignas.supernet.accuracy_files import find_accuracy_predictor
from bignas.supernet.checkpoint import Checkpoint, load_checkpoint
from bignas.supernet.children import evaluation_processes
from bignas.supernet.data import ImageData, load_data
from bignas.supernet.network import Supernet

__all__ = ["ANY_LATENCY_MS", "Laboratory", "open_laboratory"]

DONE = "benchmark.json"  # in the folder of a search that has ended
ANY_LATENCY_MS = 60_000.0  # a budget that every child keeps


@dataclass(frozen=True, eq=False)
class Laboratory:
    """A trained supernet, its images, and profiled devices to search for."""

    network: Supernet
    checkpoint: Checkpoint
    data: ImageData
    accuracy: AccuracyPredictor | None
    store: Store
    sites: Mapping[str, Site]  # their budgets mean nothing
    out: Path

    def range_ms(self, device: str) -> tuple[float, float]:
        """Return the latencies of the smallest child, as good as certain, and of the biggest."""
        space, predictor = self.network.space, self.sites[device].predictor
        low = predictor.quantile_ms([space.smallest()], SearchConfig(1.0).confidence)[0]
        return float(low), float(predictor.predict([space.biggest()]).latency_ms[0])

    def budget_ms(self, device: str, rank: float) -> float:
        """Return the budget at a rank from 0 to 1 of the range, on a log scale, in three digits."""
        budget_ms = np.exp(np.quantile(np.log(self.range_ms(device)), rank))
        return float(f"{budget_ms:.3g}")

    def search(
        self,
        device: str,
        budget_ms: float,
        name: str,
        evaluations: int | None,
        seed: int,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        """Search in the folder `name` as `bignas search` does; return its result.json, and seconds.

        Evaluations are as many as there, unless given. A search that has ended is read, one that
        was interrupted goes on, and `resumed` is true then: `seconds` are those of the last part.
        """
        folder = self.out / name
        site = self.sites[device]
        usual = EVALUATIONS if self.accuracy is None else PRESELECTED_EVALUATIONS
        config = SearchConfig(
            budget_ms=budget_ms,
            evaluations=evaluations or usual,
            seed=seed,
            limits=limits or Limits(),
        )

        def search() -> dict[str, Any]:
            resumed, start = folder.exists(), time.monotonic()
            result = run_search(
                self.network, self.checkpoint, self.data, site.device, self.store, site.cache,
                site.predictor, config, folder, _show(name), (), self.accuracy,
                evaluation_processes(),
            )  # fmt: skip
            seconds = time.monotonic() - start
            return {**result.to_dict(), "seconds": seconds, "resumed": resumed}

        return remembered(folder / DONE, search)


@contextmanager
def open_laboratory(
    checkpoint: str, data: str, devices: Sequence[str], out: Path
) -> Iterator[Laboratory]:
    """Load what searches need.

    Raises:
        BignasError: a file is missing or damaged, or a device is unknown, named twice or has no
            predictor for the space.
    """
    if len(set(devices)) < len(devices) or not devices:
        raise BudgetError(f"name at least one device, and each once, not {','.join(devices)!r}")
    with Store.open() as store:
        found = [store.device(name) for name in devices]
        network, content = load_checkpoint(checkpoint)
        sites = {
            one.name: Site(
                one, ObjectCache(one.target), load_predictor(network.space, one), ANY_LATENCY_MS
            )
            for one in found
        }
        images = load_data(data)
        accuracy = find_accuracy_predictor(checkpoint, content, images.digest)
        yield Laboratory(network, content, images, accuracy, store, sites, out)


def _show(name: str) -> Any:
    def report(value: SearchProgress) -> None:
        print(f"\r{name}: {value.phase} {value.done}/{value.total}   ", end="", flush=True)

    return report

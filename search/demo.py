"""The whole loop on built-in data, offline, in minutes: train, profile, search, deliver, prove."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bignas.compile.objects import ObjectCache
from bignas.device_db.files import require_writable
from bignas.device_db.store import Store
from bignas.latency.fitting import fit_predictor
from bignas.latency.predictors import save_predictor
from bignas.latency.profile import ProfileProgress, profile_space
from bignas.search.context import SearchProgress
from bignas.search.pipeline import run_search
from bignas.search.result import RESULT, SearchConfig, SearchResult
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import DIGITS, load_data
from bignas.supernet.spaces import load_space
from bignas.supernet.train import TrainConfig, TrainProgress, train

__all__ = ["DemoResult", "run_demo"]

SPACE = "digits"
DEVICE = "local"
PROFILE_MINUTES = 4.0
SUBNETS = 40
TRAINING = TrainConfig(epochs=30, batch_size=64, learning_rate=0.1, warmup_epochs=2.0)
BUDGET_RANK = 0.5  # the demonstration's budget: the middle of the space's range, on a log scale


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration did, and where it left the result."""

    search: SearchResult
    out: Path
    kernels: int
    subnets: int


Progress = Callable[[str, TrainProgress | ProfileProgress | SearchProgress], None]


def run_demo(out: Path, progress: Progress | None = None) -> DemoResult:
    """Run the loop on scikit-learn's digits and this machine; goes on where a stopped run was.

    Raises:
        OutputError: the folder cannot be written.
        BignasError: a step failed; see the functions it calls.
    """

    def report(step: str, value: TrainProgress | ProfileProgress | SearchProgress) -> None:
        if progress is not None:
            progress(step, value)

    require_writable(out / RESULT)
    data, space = load_data(DIGITS), load_space(SPACE)
    checkpoint_path = out / "supernet.safetensors"
    train(space, data, checkpoint_path, TRAINING, lambda value: report("train", value))
    network, checkpoint = load_checkpoint(checkpoint_path)
    with Store.open() as store:
        device = store.device(DEVICE)
        cache = ObjectCache(device.target)
        summary = profile_space(
            space, device, store, cache, PROFILE_MINUTES,
            lambda value: report("profile", value), SUBNETS,
        )  # fmt: skip
        predictor = fit_predictor(space, device, store)
        save_predictor(predictor, device)
        ends = predictor.predict([space.smallest(), space.biggest()]).latency_ms
        budget_ms = float(np.exp(np.quantile(np.log(ends), BUDGET_RANK)))
        config = SearchConfig(budget_ms=float(f"{budget_ms:.3g}"), evaluations=60)
        result = run_search(
            network, checkpoint, data, device, store, cache, predictor, config, out,
            lambda value: report("search", value),
        )  # fmt: skip
    return DemoResult(result, out, summary.kernels, summary.subnets)

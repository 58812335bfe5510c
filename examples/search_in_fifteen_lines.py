"""The whole loop from Python, on built-in data: train, profile, search, deliver.

    python examples/search_in_fifteen_lines.py

The result is a run folder as `bignas search` writes it: `bignas report runs/example` shows it.
"""

from pathlib import Path

from bignas.compile.objects import ObjectCache
from bignas.device_db.store import Store
from bignas.latency.fitting import fit_predictor
from bignas.latency.profile import profile_space
from bignas.search.pipeline import run_search
from bignas.search.result import SearchConfig, SearchResult
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.data import load_data
from bignas.supernet.spaces import load_space
from bignas.supernet.train import TrainConfig, train

TRAINING = TrainConfig(epochs=30, batch_size=64, learning_rate=0.1)


def search(
    out: Path,
    budget_ms: float,
    space_name: str = "digits",
    training: TrainConfig = TRAINING,
    minutes: float = 4,
    subnets: int = 40,
    evaluations: int = 60,
) -> SearchResult:
    """Return the most accurate child that keeps the budget on this machine; its bundle is in `out`.

    `minutes` and `subnets` bound the profiling, `evaluations` the search.
    """
    data, space = load_data("digits"), load_space(space_name)
    path = out / "supernet.safetensors"
    train(space, data, path, training)
    network, checkpoint = load_checkpoint(path)
    with Store.open() as store:
        device = store.device("local")
        cache = ObjectCache(device.target)
        profile_space(space, device, store, cache, minutes, subnets=subnets)
        predictor = fit_predictor(space, device, store)
        config = SearchConfig(budget_ms=budget_ms, evaluations=evaluations)
        return run_search(
            network, checkpoint, data, device, store, cache, predictor, config, out
        )  # fmt: skip


if __name__ == "__main__":
    best = search(Path("runs/example"), budget_ms=0.01).best
    print(f"{best.top1:.1%} in {best.measured_ms:.4g} ms: {best.architecture.key}")

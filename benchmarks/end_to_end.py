"""The whole loop on a trained supernet: three budgets, and whether each promise was kept.

    python benchmarks/end_to_end.py CKPT --data DATA --out runs/end_to_end \
        --json benchmarks/results/end_to_end.json

For budgets spread over the range of the space on `local`: search, deliver, then measure the bundle
again in another process, verify it, and run all test images through the binary and the child. The
device has to be profiled for the space first (`bignas profile`, `bignas predictor fit`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bignas.compile.bundle import Bundle, verify
from bignas.compile.objects import ObjectCache
from bignas.device_db.store import Store
from bignas.latency.bench import bench_bundle
from bignas.latency.predictors import load_predictor
from bignas.search.pipeline import run_search
from bignas.search.result import SearchConfig
from bignas.supernet.checkpoint import load_checkpoint
from bignas.supernet.children import evaluation_processes
from bignas.supernet.data import load_data

RANKS = (0.2, 0.5, 0.8)  # of the space's range of latencies, on a log scale


def main() -> None:
    """Search, deliver and check at each budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    network, checkpoint = load_checkpoint(options.checkpoint)
    data = load_data(options.data)
    rows: list[dict[str, Any]] = []
    with Store.open() as store:
        device = store.device("local")
        cache = ObjectCache(device.target)
        space = network.space
        predictor = load_predictor(space, device)
        ends = predictor.predict([space.smallest(), space.biggest()]).latency_ms
        for rank in RANKS:
            budget_ms = float(f"{np.exp(np.quantile(np.log(ends), rank)):.3g}")
            config = SearchConfig(budget_ms=budget_ms, evaluations=options.evaluations)
            out = options.out / f"{budget_ms:g}ms"
            result = run_search(
                network, checkpoint, data, device, store, cache, predictor, config, out,
                lambda value: print(f"\r{value.phase} {value.done}/{value.total}", end=""),
                processes=evaluation_processes(),
            )  # fmt: skip
            bundle = Bundle.load(out / result.bundle)
            again = bench_bundle(bundle)
            verification = verify(bundle)
            best = result.best.to_dict()
            rows.append(
                {
                    "budget_ms": budget_ms,
                    "predicted_ms": best["predicted_ms"],
                    "interval_ms": best["interval_ms"],
                    "measured_ms": best["measured_ms"],
                    "measured_again_ms": again.latency_ms,
                    "keeps_budget": max(best["measured_ms"], again.latency_ms) <= budget_ms,
                    "prediction_error": best["predicted_ms"] / again.latency_ms - 1,
                    "validation_top1": best["top1"],
                    "test_top1": result.test_top1,
                    "binary_agreement": result.binary_agreement,
                    "verified": verification.ok,
                    "max_abs_error": verification.max_abs_error,
                    "macs": best["macs"],
                    "params": best["params"],
                    "arch": best["arch"],
                    "evaluated": result.evaluated,
                    "suggested": result.suggested,
                }
            )
            print(f"\r{json.dumps(rows[-1])}")
    content = {
        "space": space.name,
        "data": data.name,
        "device": device.name,
        "cpu": device.cpu_model,
        "epochs": checkpoint.epochs_done,
        "test_images": len(data.test),
        "latency_range_ms": [float(one) for one in ends],
        "searches": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

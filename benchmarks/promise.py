"""Whether the promise holds: many searches at random budgets, each binary measured again later.

    python benchmarks/promise.py CKPT --data DATA --devices local,v3,v2 --searches 30 \
        --out runs/promise --json benchmarks/results/promise.json

Budgets are random between what the smallest child keeps and what the biggest takes on the device,
on a log scale. Each search runs as `bignas search` does it. When all have ended, each bundle is
measured by `bignas bench` in a process of its own. The devices have to be profiled for the space
first (`bignas device add`, `bignas profile`, `bignas predictor fit`). The same command goes on
where it was stopped: in the search under way, at the batch of evaluations under way.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command import conclude, names, planned
from searching import Laboratory, open_laboratory

from bignas.device_db.errors import InputError, MeasurementError
from bignas.device_db.files import require_writable

__all__ = ["measured_later_ms", "plan_searches", "summary"]

RANKS = (0.02, 0.98)  # of the range; below and above there is nothing to choose
BENCH = "from bignas.cli.main import main; main()"


def plan_searches(laboratory: Laboratory, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw devices, in turns, and budgets of `count` searches."""
    random = np.random.default_rng(seed)
    devices = list(laboratory.sites)
    plan = []
    for number in range(count):
        device = devices[number % len(devices)]
        budget_ms = laboratory.budget_ms(device, float(random.uniform(*RANKS)))
        plan.append({"device": device, "budget_ms": budget_ms, "seed": seed + number})
    return plan


def measured_later_ms(bundle: Path) -> float:
    """Measure a bundle with the command line in a process of its own; milliseconds (p50)."""
    command = [sys.executable, "-c", BENCH, "bench", str(bundle), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasurementError(f"{bundle} cannot be measured: {done.stderr.strip()}")
    return float(json.loads(done.stdout)["latency_ms"]["p50"])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the searches amount to; shares are fractions of the budgets."""
    unused = [row["unused_share"] for row in rows]
    drift = [row["later_ms"] / row["measured_ms"] - 1 for row in rows]
    whole = [row["seconds"] for row in rows if not row["resumed"]]
    return {
        "searches": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "mean_unused_share": float(np.mean(unused)),
        "largest_unused_share": max(unused),
        "smallest_unused_share": min(unused),
        "mean_prediction_error": float(np.mean([abs(row["prediction_error"]) for row in rows])),
        "within_interval": float(np.mean([row["within_interval"] for row in rows])),
        "largest_drift": max(drift, key=abs),
        "longest_seconds": max(whole, default=None),
    }


def measure_promise(options: argparse.Namespace) -> dict[str, Any]:
    """Search, then measure; return every figure."""
    if min(options.searches, options.evaluations or 1) < 1 or options.seed < 0:
        raise InputError("--searches and --evaluations must be at least 1, --seed at least 0")
    require_writable(options.json)
    require_writable(options.out / "plan.json")
    asked = {
        name: getattr(options, name)
        for name in ("checkpoint", "data", "devices", "searches", "evaluations", "seed")
    }
    with open_laboratory(
        options.checkpoint, options.data, options.devices, options.out
    ) as laboratory:
        plan = planned(
            options.out / "plan.json",
            asked,
            lambda: {"searches": plan_searches(laboratory, options.searches, options.seed)},
        )["searches"]
        found = []
        for number, one in enumerate(plan):
            name = f"{number:02}-{one['device']}"
            document = laboratory.search(
                one["device"], one["budget_ms"], name, options.evaluations, one["seed"]
            )
            found.append((options.out / name, document))
        cpus = {name: site.device.cpu_model for name, site in laboratory.sites.items()}
        space = laboratory.network.space.name
        arguments = {**asked, "data": laboratory.data.name}
    rows = [_row(document, measured_later_ms(out / document["bundle"])) for out, document in found]
    return {"arguments": arguments, "space": space, "cpu": cpus, **summary(rows), "rows": rows}


def _row(document: dict[str, Any], later_ms: float) -> dict[str, Any]:
    best, budget_ms = document["best"], document["budget_ms"]
    low_ms, high_ms = best["interval_ms"]
    return {
        "device": document["device"],
        "budget_ms": budget_ms,
        "predicted_ms": best["predicted_ms"],
        "interval_ms": best["interval_ms"],
        "measured_ms": best["measured_ms"],
        "later_ms": later_ms,
        "kept": max(later_ms, best["measured_ms"]) <= budget_ms,
        "unused_share": 1 - later_ms / budget_ms,
        "prediction_error": best["predicted_ms"] / later_ms - 1,
        "within_interval": low_ms <= later_ms <= high_ms,
        "validation_top1": best["top1"],
        "test_top1": best["test_top1"],
        "macs": best["macs"],
        "arch": best["arch"],
        "finalists": len(document["finalists"]),
        "evaluated": document["evaluated"],
        "seed": document["seed"],
        "seconds": document["seconds"],
        "resumed": document["resumed"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("--data", required=True)
    parser.add_argument("--devices", type=names, default=["local"], metavar="A,B,...")
    parser.add_argument("--searches", type=int, default=30)
    parser.add_argument("--evaluations", type=int, help="in each search, instead of the usual ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/promise"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)

    return conclude(
        lambda: measure_promise(options),
        options.json,
        lambda document: {name: one for name, one in document.items() if name != "rows"},
    )


if __name__ == "__main__":
    sys.exit(main())

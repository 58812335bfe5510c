"""Do tables of known devices help a new one? Few kernels measured, the rest estimated.

    python benchmarks/kernel_sources.py cifar --devices local,v3,v2 \
        --json benchmarks/results/kernel_sources.json

All devices have complete profiles in the store. Each in turn is the new one: of its table so many
kernels are taken, as `bignas profile` would choose them, the others are the known devices. What is
predicted of the subnets that were measured on it, from kernels alone and after ten measured subnets
more? Beside it the same without sources, and what the transfer of published tables does
(`benchmarks/transfer.py`), which measures 20 whole subnets and no kernels. Errors are mean absolute
percentage errors on subnets that were not measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command import conclude, names

from bignas.device_db.errors import InputError
from bignas.device_db.store import Store
from bignas.device_db.workload import Workload
from bignas.latency.evidence import evidence_hash
from bignas.latency.kernel_model import KernelTable
from bignas.latency.metrics import mape, spearman
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.latency.profile_plan import ProfilePlanner
from bignas.latency.space_transfer import space_problem
from bignas.latency.subnets import measured_subnets
from bignas.latency.transfer import transfer
from bignas.latency.tuned import kernel_table
from bignas.supernet.architecture import Architecture
from bignas.supernet.space import SearchSpace
from bignas.supernet.spaces import load_space

COUNTS = (10, 20, 40, 80, 160)  # measured kernels
CORRECTING = 10  # measured subnets, in the second figure
SUBNETS = 80  # of a complete profile
TRANSFERRED = 20  # subnets
SEEDS = 5


def chosen_kernels(space: SearchSpace, table: KernelTable, count: int) -> list[Workload]:
    """Return the first kernels that a profile of an unknown device measures."""
    planner = ProfilePlanner(space, space_workloads(space), SUBNETS)
    known: dict[Workload, float] = {}
    while len(known) < count:
        # no subnets before the kernels that are looked at
        batch = planner.next_batch(known, set(planner.candidates))
        known |= {one: table[one] for one in batch.kernels[: count - len(known)]}
    return list(known)


def errors(
    space: SearchSpace,
    table: KernelTable,
    networks: Sequence[tuple[Architecture, float]],
    sources: Sequence[KernelTable],
) -> dict[str, Any]:
    """Return errors of predictions from these kernels, alone and with some networks measured."""
    predictor = LatencyPredictor.of_kernels(space, table, sources=sources)
    order = np.random.default_rng(0).permutation(len(networks))
    train = [networks[place] for place in order[:CORRECTING]]
    test = [networks[place] for place in order[CORRECTING:]]
    architectures = [one for one, _ in test]
    measured_ms = [latency_ms for _, latency_ms in test]
    plain_ms = predictor.predict(architectures).latency_ms
    corrected_ms = predictor.corrected(train).predict(architectures).latency_ms
    return {
        "sources_used": len(predictor.kernel_model.sources),
        "mape": mape(plain_ms, measured_ms),
        "mape_corrected": mape(corrected_ms, measured_ms),
        "spearman": spearman(plain_ms, measured_ms),
    }


def transferred(
    space: SearchSpace,
    networks: Sequence[tuple[Architecture, float]],
    sources: Sequence[LatencyPredictor],
) -> dict[str, float]:
    """Return errors after `TRANSFERRED` whole subnets, chosen among the measured ones."""
    measured_ms = np.array([latency_ms for _, latency_ms in networks])
    problem = space_problem(space, [one for one, _ in networks], sources)
    found = [
        transfer(problem, lambda chosen: measured_ms[chosen], TRANSFERRED, seed)
        for seed in range(SEEDS)
    ]
    rests = [np.setdiff1d(np.arange(len(networks)), one.measured) for one in found]
    pairs = [
        (one.latency_ms[rest], measured_ms[rest]) for one, rest in zip(found, rests, strict=True)
    ]
    return {
        "subnets": TRANSFERRED,
        "mape": float(np.mean([mape(*pair) for pair in pairs])),
        "spearman": float(np.mean([spearman(*pair) for pair in pairs])),
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Take each device as the new one; return every figure."""
    space = load_space(options.space)
    wanted = set(space_workloads(space))
    with Store.open() as store:
        tables = {name: kernel_table(store, name) for name in options.devices}
        networks = {
            name: measured_subnets(store, name, space, evidence_hash()) for name in options.devices
        }
    for name, table in tables.items():
        if missing := wanted - table.keys():
            raise InputError(f"{len(missing)} kernels of {name!r} are not measured")
    predictors = {
        name: LatencyPredictor.fit(space, table, networks[name]) for name, table in tables.items()
    }
    targets: dict[str, Any] = {}
    for name, table in tables.items():
        known = [one for other, one in predictors.items() if other != name]
        others = [one for other, one in tables.items() if other != name]
        order = chosen_kernels(space, table, COUNTS[-1])
        kernels = [
            {
                "kernels": count,
                "without": errors(space, few, networks[name], ()),
                "with": errors(space, few, networks[name], others),
            }
            for count in COUNTS
            for few in [
                KernelTable({one: table[one] for one in order[:count]}, name, table.code_hash)
            ]
        ]
        targets[name] = {
            "kernels": kernels,
            "transfer": transferred(space, networks[name], known),
        }
    asked = {"space": options.space, "devices": options.devices}
    return {"arguments": asked, "correcting_subnets": CORRECTING, "targets": targets}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space")
    parser.add_argument("--devices", type=names, default=["local", "v3", "v2"], metavar="A,B,...")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    return conclude(lambda: compare(options), options.json, lambda document: document["targets"])


if __name__ == "__main__":
    sys.exit(main())

"""Does it pay to search for the device itself? Winners at equal measured latency on each device.

    python benchmarks/hardware_awareness.py CKPT --data DATA --devices local,v3,v2 \
        --out runs/awareness --json benchmarks/results/hardware_awareness.json

On every device and at each budget three kinds of searches compete, with the same strategy and the
same number of evaluations:

own      limited by the device's own latency predictor, as `bignas search` is
macs     limited by multiply-accumulates alone
A        limited by the latency on another device A; one kind for each of them

A search that is limited by something else does not know what its winner takes on this device, and
the own one leaves a part of the budget, to keep it later too. So all are repeated: the first limit
is the budget, for others what the own winner uses, every further one is scaled by how much of the
budget the last winner took when measured (a secant through the origin). Of those winners that keep
the budget as measured, the most accurate one counts: what somebody gets who has the device to
measure on, and time for `--tries` searches. Finally the winners are measured together, in one
process, and accuracies on validation and test images are compared. The same command goes on where
it was stopped.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import conclude, names, planned, remembered
from searching import ANY_LATENCY_MS, Laboratory, open_laboratory

from bignas.device_db.errors import InfeasibleBudgetError, InputError
from bignas.device_db.files import require_writable
from bignas.search.constraint import Limits
from bignas.search.many import measure_together
from bignas.supernet.architecture import Architecture

__all__ = ["Winner", "best_keeping", "fit_limit", "summary"]

OWN = "own"
MACS = "macs"
HERE = "here.json"  # in the folder of a search: its winner on the device that asks
NEAR = 0.02  # of the budget: a winner that leaves less is as near as it needs to be


@dataclass(frozen=True)
class Winner:
    """What one search found under `limit` (MACs, or ms), and its latency on the device that asks.

    Accuracies are fractions; `test_top1` is that of the binary for the device searched for.
    """

    limit: float
    architecture: Architecture
    top1: float
    test_top1: float
    latency_ms: float


def fit_limit(
    search: Callable[[float, int], Winner], first: float, budget_ms: float, tries: int
) -> list[Winner]:
    """Search under several limits, until a winner takes about `budget_ms`; return all winners.

    `search` takes the limit and the number of the try; a limit that nothing keeps ends it.
    """
    limit, found = first, list[Winner]()
    for number in range(tries):
        try:
            found.append(search(limit, number))
        except InfeasibleBudgetError:
            break
        used = found[-1].latency_ms / budget_ms
        if 1 - NEAR <= used <= 1:
            break
        # from below straight to the budget, from above a little further
        limit = found[-1].limit / used * (1 - NEAR / 2)
    return found


def best_keeping(winners: Sequence[Winner], budget_ms: float) -> Winner | None:
    """Return the most accurate winner that keeps the budget, or None."""
    keeping = [one for one in winners if one.latency_ms <= budget_ms]
    return max(keeping, key=lambda one: (one.top1, -one.latency_ms), default=None)


@dataclass(frozen=True, eq=False)
class _Contest:
    """One device and one budget."""

    laboratory: Laboratory
    device: str
    rank: float
    evaluations: int | None
    tries: int
    seed: int

    def run(self, budget_ms: float) -> dict[str, Any]:
        space = self.laboratory.network.space
        winners = {
            OWN: fit_limit(
                lambda limit, number: self._search(
                    OWN, self.device, float(f"{limit:.4g}"), Limits(), number
                ),
                budget_ms, budget_ms, self.tries,
            )
        }  # fmt: skip
        own = winners[OWN][0]
        macs = space.macs(own.architecture)
        winners[MACS] = fit_limit(
            lambda limit, number: self._search(
                MACS, self.device, ANY_LATENCY_MS, Limits(macs=round(limit)), number
            ),
            float(macs), budget_ms, self.tries,
        )  # fmt: skip
        for other, site in self.laboratory.sites.items():
            if other == self.device:
                continue
            there = float(site.predictor.predict([own.architecture]).latency_ms[0])
            winners[other] = fit_limit(
                lambda limit, number, other=other: self._search(  # type: ignore[misc]
                    other, other, float(f"{limit:.4g}"), Limits(), number
                ),
                there, budget_ms, self.tries,
            )  # fmt: skip
        return self._compare(budget_ms, winners)

    def _search(
        self, kind: str, device: str, budget_ms: float, limits: Limits, number: int
    ) -> Winner:
        name = f"{self.device}-{self.rank:g}-{kind}-{number}"
        document = self.laboratory.search(
            device, budget_ms, name, self.evaluations, self.seed, limits
        )
        best = document["best"]
        architecture = Architecture.from_dict(best["arch"])
        here = remembered(  # a limit that follows from it must not change on the way
            self.laboratory.out / name / HERE,
            lambda: {"latency_ms": self._measure([architecture])[0]},
        )
        limit = budget_ms if limits.macs is None else float(limits.macs)
        return Winner(limit, architecture, best["top1"], best["test_top1"], here["latency_ms"])

    def _measure(self, architectures: Sequence[Architecture]) -> list[float]:
        laboratory = self.laboratory
        site = laboratory.sites[self.device]
        return measure_together(laboratory.network.space, laboratory.store, site, architectures)

    def _compare(self, budget_ms: float, winners: dict[str, list[Winner]]) -> dict[str, Any]:
        best = {kind: best_keeping(found, budget_ms) for kind, found in winners.items()}
        left = {kind: one for kind, one in best.items() if one is not None}
        together_ms = self._measure([one.architecture for one in left.values()])
        space = self.laboratory.network.space
        rows = {
            kind: {
                "latency_ms": latency_ms,
                "used_share": latency_ms / budget_ms,
                "top1": one.top1,
                "test_top1": one.test_top1,
                "macs": space.macs(one.architecture),
                "limit": one.limit,
                "searches": len(winners[kind]),
                "tried": [[other.limit, other.latency_ms, other.top1] for other in winners[kind]],
                "arch": one.architecture.to_dict(),
            }
            for (kind, one), latency_ms in zip(left.items(), together_ms, strict=True)
        }
        missing = [kind for kind, one in best.items() if one is None]
        return {
            "device": self.device, "budget_ms": budget_ms, "winners": rows, "none_keeps": missing
        }  # fmt: skip


def summary(contests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean gains of the own winner in points of accuracy, over each kind of competitor.

    Contests in which no winner of the other kind keeps the budget are left out of the mean, and
    counted.
    """
    gains: dict[str, dict[str, list[float]]] = {}
    none_keeps: dict[str, int] = {}
    for contest in contests:
        own = contest["winners"].get(OWN)
        for kind in contest["none_keeps"]:
            name = kind if kind in (OWN, MACS) else "other device"
            none_keeps[name] = none_keeps.get(name, 0) + 1
        for kind, row in contest["winners"].items():
            if own is None or kind == OWN:
                continue
            name = MACS if kind == MACS else "other device"
            here = gains.setdefault(name, {"top1": [], "test_top1": []})
            for measure, values in here.items():
                values.append(100 * (own[measure] - row[measure]))
    means = {
        name: {
            "contests": len(here["top1"]),
            "validation_points": sum(here["top1"]) / len(here["top1"]),
            "test_points": sum(here["test_top1"]) / len(here["test_top1"]),
            "own_better_on_test": sum(value > 0 for value in here["test_top1"]),
        }
        for name, here in gains.items()
    }
    return {"gain_of_own_over": means, "none_keeps": none_keeps}


def measure_awareness(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contests; return every figure."""
    if min(options.evaluations or 1, options.tries) < 1 or options.seed < 0:
        raise InputError("--evaluations and --tries must be at least 1, --seed at least 0")
    if not options.ranks or not all(0 < rank < 1 for rank in options.ranks):
        raise InputError("--ranks must lie between 0 and 1")
    require_writable(options.json)
    require_writable(options.out / "plan.json")
    asked = {
        name: getattr(options, name)
        for name in ("checkpoint", "data", "devices", "ranks", "evaluations", "tries", "seed")
    }
    with open_laboratory(
        options.checkpoint, options.data, options.devices, options.out
    ) as laboratory:
        plan = planned(
            options.out / "plan.json",
            asked,
            lambda: {
                device: [laboratory.budget_ms(device, rank) for rank in options.ranks]
                for device in options.devices
            },
        )
        contests = [
            _Contest(
                laboratory, device, rank, options.evaluations, options.tries, options.seed
            ).run(budget_ms)
            for device in options.devices
            for rank, budget_ms in zip(options.ranks, plan[device], strict=True)
        ]  # fmt: skip
        space = laboratory.network.space.name
        arguments = {**asked, "data": laboratory.data.name}
    return {"arguments": arguments, "space": space, **summary(contests), "contests": contests}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT")
    parser.add_argument("--data", required=True)
    parser.add_argument("--devices", type=names, default=["local"], metavar="A,B,...")
    parser.add_argument(
        "--ranks",
        type=lambda text: [float(one) for one in names(text)],
        default=[0.5],
        help="of the budgets in the range of the space, from 0 to 1, on a log scale",
    )
    parser.add_argument("--evaluations", type=int, help="in each search, instead of the usual ones")
    parser.add_argument("--tries", type=int, default=3, help="searches until a limit fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/awareness"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)

    return conclude(
        lambda: measure_awareness(options),
        options.json,
        lambda document: {name: one for name, one in document.items() if name != "contests"},
    )


if __name__ == "__main__":
    sys.exit(main())

"""Made-up run folders: what a search writes, without the search."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bignas.latency.kernel_model import KernelTable
from bignas.latency.predictor import LatencyPredictor
from bignas.latency.profile import space_workloads
from bignas.search.anatomy import anatomy
from bignas.search.many import CROSS
from bignas.search.pareto import pareto_front
from bignas.search.result import (
    FORMAT_VERSION,
    RESULT,
    Candidate,
    LatencyAt,
    SearchConfig,
    SearchResult,
)
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from bignas.supernet.architecture import Architecture
from tests.search.synthetic import latency_ms, make_space, top1

SPACE = make_space()
BUDGET_MS = 2.0


def predictor(device: str) -> LatencyPredictor:
    table = {work: 1.0 + work.macs / 1e5 for work in space_workloads(SPACE)}
    return LatencyPredictor.fit(SPACE, KernelTable(table, device, "made-up"), [])


def make_run(folder: Path, devices: Sequence[str] = ("local",)) -> SearchResult:
    """Write a run of 40 evaluated architectures and 8 finalists on these devices."""
    rng = np.random.default_rng(0)
    drawn = [SPACE.smallest(), *(SPACE.sample(rng) for _ in range(39))]
    trials = [Trial(one, latency_ms(SPACE, one), 0.5, top1(SPACE, one)) for one in drawn]
    log = TrialLog(folder, {"seed": 0})
    for start in range(0, len(trials), 16):
        log.append(trials[start : start + 16])
    front = [one.architecture for one in pareto_front(trials)]
    candidates = [_candidate(one, devices) for one in dict.fromkeys([*front, *drawn[:4]])]
    best = max((one for one in candidates if one.kept), key=lambda one: one.top1)
    result = SearchResult(
        space=SPACE.name,
        config=SearchConfig(BUDGET_MS),
        best=best,
        front=tuple(one for one in candidates if one.kept and one.architecture in front),
        finalists=tuple(candidates),
        bundles=dict.fromkeys(devices, "bundle"),
        kernels=anatomy(predictor(devices[0]), best.architecture),
        test_top1=0.8,
        binary_agreement=1.0,
        evaluated=len(trials),
        suggested=len(trials),
    )
    (folder / RESULT).write_text(json.dumps(result.to_dict()))
    return result


def make_cross(folder: Path, devices: Sequence[str]) -> None:
    """Write runs for several devices, with the table of their winners."""
    winners = []
    for name in devices:
        best = make_run(folder / name, (name,)).best
        at = [asdict(_latency(best.architecture, device, index))
              for index, device in enumerate(devices)]  # fmt: skip
        winners.append({"winner_of": name, "top1": best.top1, "arch": {}, "devices": at})
    document = {"format_version": FORMAT_VERSION, "runs": list(devices), "winners": winners}
    (folder / CROSS).write_text(json.dumps(document))


def _candidate(architecture: Architecture, devices: Sequence[str]) -> Candidate:
    return Candidate(
        architecture,
        top1(SPACE, architecture),
        SPACE.macs(architecture),
        SPACE.params(architecture),
        tuple(_latency(architecture, name, index) for index, name in enumerate(devices)),
    )


def _latency(architecture: Architecture, device: str, index: int) -> LatencyAt:
    predicted = latency_ms(SPACE, architecture) * (1 + index)
    measured = predicted * (1.01 if SPACE.macs(architecture) % 2 else 0.99)
    interval = (0.97 * predicted, 1.03 * predicted)
    return LatencyAt(device, BUDGET_MS * (1 + index), predicted, interval, 0.95, measured)

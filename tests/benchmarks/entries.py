"""Entries of a race, made up."""

from collections.abc import Mapping

from engines import NATIVE
from race_results import Entry

CODE = "0123"


def make_entry(
    model: str,
    median_us: Mapping[str, float],
    group: str = "cifar",
    target: str = NATIVE,
    threads: int = 1,
) -> Entry:
    return {
        "model": model,
        "group": group,
        "target": target,
        "threads": threads,
        "macs": 60_000,
        "needed_macs": 50_000,
        "peak_gmacs": 50.0,
        "kernel_sum_us": 9.8,
        "alone_sum_us": 9.0,
        "network_us": {"low": 9.9, "p50": 10.0},
        "code_hash": CODE,
        "median_us": dict(median_us),
    }

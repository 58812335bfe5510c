"""How well fresh subnets are predicted on several devices of this machine, each from nothing.

    python benchmarks/own_devices.py --space cifar --out runs/own_devices \
        --devices local=native:1,v3=x86-64-v3:1,v2=x86-64-v2:1,pair=native:2 \
        --json benchmarks/results/own_devices.json

For each device, by the command line as anybody would: `bignas device add`, `bignas profile`,
`bignas predictor fit`, and `bignas predictor evaluate` on fresh random subnets, compiled and
measured in further processes. Store and cache are folders in `--out`, empty at first; devices with
the same target and another number of threads share object files. The same command goes on where it
was stopped, within a device's profile too, whose `sittings` are counted then.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import conclude, names, planned, progress, remembered

from bignas.device_db.database import URL_VARIABLE
from bignas.device_db.errors import InputError, MeasurementError
from bignas.device_db.files import require_writable, write_atomically
from bignas.device_db.probe import LOCAL, probe_local

__all__ = ["Variant", "parse_variants"]

NATIVE = "native"
BIGNAS = (sys.executable, "-c", "from bignas.cli.main import main; main()")
CACHE_VARIABLE = "BIGNAS_CACHE"


@dataclass(frozen=True)
class Variant:
    """A device of this machine: its name, target (or `native`) and number of threads."""

    name: str
    target: str
    threads: int

    @property
    def add(self) -> list[str] | None:
        """The arguments that add it; `local` is there already."""
        if self.name == LOCAL:
            return None
        target = [] if self.target == NATIVE else ["--target", self.target]
        return ["device", "add", self.name, *target, "--threads", str(self.threads)]


def parse_variants(text: str) -> list[Variant]:
    """Return the devices of `NAME=TARGET:THREADS,...`.

    Raises:
        InputError: it is not of that form, a name stands twice, or `local` is something else.
    """
    variants = []
    for part in names(text):
        name, equals, rest = part.partition("=")
        target, colon, threads = rest.rpartition(":")
        if not (name and equals and target and colon and threads.isdigit() and int(threads)):
            raise InputError(f"{part!r} is no device, expected NAME=TARGET:THREADS")
        variants.append(Variant(name, target, int(threads)))
        if name == LOCAL and (target, int(threads)) != (NATIVE, 1):
            raise InputError(f"the device {LOCAL} is {NATIVE} at 1 thread")
    if len({one.name for one in variants}) < len(variants) or not variants:
        raise InputError(f"name at least one device, and each once, not {text!r}")
    return variants


@dataclass(frozen=True)
class _Desk:
    """Where commands run: with a store and a cache in the folder, in which results are kept."""

    out: Path

    def step(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run a command, unless it was done; return its JSON document with its seconds."""

        def run_it() -> dict[str, Any]:
            progress(f"bignas {' '.join(arguments)}")
            start = time.monotonic()
            document = self._command(arguments)
            return {**document, "wall_seconds": time.monotonic() - start}

        return remembered(self.out / f"{name}.json", run_it)

    def sittings(self, name: str) -> int:
        """Return how often a step was begun, this time included if it is not done."""
        count = self.out / f"{name}.sittings"
        begun = int(count.read_text()) if count.exists() else 0
        if not (self.out / f"{name}.json").exists():
            begun += 1
            write_atomically(count, str(begun).encode())
        return begun

    def _command(self, arguments: Sequence[str]) -> dict[str, Any]:
        out = self.out.resolve()
        environment = {
            **os.environ,
            URL_VARIABLE: f"sqlite:///{out}/store.db",
            CACHE_VARIABLE: str(out / "cache"),
        }
        done = subprocess.run(
            [*BIGNAS, *arguments, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MeasurementError(f"bignas {' '.join(arguments)} failed: {done.returncode}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def measure_devices(options: argparse.Namespace) -> dict[str, Any]:
    """Profile, fit and evaluate on each device; return every figure."""
    if min(options.subnets, options.profiled, options.minutes) <= 0:
        raise InputError("--subnets, --profiled and --minutes must be above 0")
    variants = parse_variants(options.devices)
    require_writable(options.json)
    require_writable(options.out / "plan.json")
    names_asked = ("space", "devices", "subnets", "profiled", "minutes")
    asked = {name: getattr(options, name) for name in names_asked}
    planned(options.out / "plan.json", asked, dict)
    desk = _Desk(options.out)
    return {
        "arguments": asked,
        "cpu": probe_local().cpu_model,
        "devices": [_row(one, options, desk) for one in variants],
    }


def _row(variant: Variant, options: argparse.Namespace, desk: _Desk) -> dict[str, Any]:
    name, on = variant.name, ("--device", variant.name)
    if variant.add is not None:
        desk.step(f"{name} add", *variant.add)
    sittings = desk.sittings(f"{name} profile")
    profile = desk.step(
        f"{name} profile",
        *("profile", options.space, *on, "--minutes", f"{options.minutes:g}"),
        *("--subnets", str(options.profiled)),
    )
    desk.step(f"{name} fit", "predictor", "fit", options.space, *on)
    found = desk.step(
        f"{name} evaluate",
        *("predictor", "evaluate", options.space, *on),
        *("--subnets", str(options.subnets), "--seed", "1"),
    )
    return {
        "name": name,
        "target": variant.target,
        "threads": variant.threads,
        "sittings": sittings,
        "profile": profile,
        **found,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument(
        "--devices",
        default="local=native:1,v3=x86-64-v3:1,v2=x86-64-v2:1,pair=native:2",
        metavar="NAME=TARGET:THREADS,...",
    )
    parser.add_argument("--subnets", type=int, default=60, help="fresh ones, on each device")
    parser.add_argument("--profiled", type=int, default=160, help="subnets of a profile, at most")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each profile, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/own_devices"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)

    return conclude(lambda: measure_devices(options), options.json, _brief)


def _brief(document: dict[str, Any]) -> dict[str, Any]:
    shown = ("mape", "within_5", "within_10", "spearman", "coverage", "repeatability")
    return {
        one["name"]: {
            "minutes": one["profile"]["seconds"] / 60,
            **{name: one[name] for name in shown},
        }
        for one in document["devices"]
    }


if __name__ == "__main__":
    sys.exit(main())

"""The report of a run: one HTML file that needs no network and no other file.

The page is plain HTML, style and script (`report_page/`) with the figures as JSON inside. Whatever
comes from files enters the page as JSON with `<`, `>` and `&` escaped, and the script shows it as
text only; a content security policy allows this one script and forbids all requests.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from bignas.compile.manifest import Manifest
from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.files import write_atomically
from bignas.device_db.workload import Workload
from bignas.search.many import CROSS
from bignas.search.result import FORMAT_VERSION, RESULT
from bignas.search.trial_log import read_trials
from bignas.supernet.architecture import Architecture

__all__ = ["REPORT", "write_report"]

REPORT = "report.html"


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder, by default as report.html in it; return its path.

    Raises:
        InputError: the folder holds no finished run, a damaged one or one of another version.
        OutputError: the report cannot be written.
    """
    content = _content(run)
    path = out or run / REPORT
    write_atomically(path, _page(content).encode())
    return path


# --- the page -------------------------------------------------------------------------------------


def _page(content: Mapping[str, Any]) -> str:
    page = resources.files("bignas.search").joinpath("report_page")
    style = page.joinpath("style.css").read_text(encoding="utf-8")
    script = page.joinpath("page.js").read_text(encoding="utf-8")
    return Template(page.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(" and ".join(run["name"] for run in content["runs"])),
        style=style,
        style_hash=_source_hash(style),
        script=script,
        script_hash=_source_hash(script),
        data=_embedded(content),
    )


def _source_hash(source: str) -> str:
    """What a content security policy calls a script or a style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


# --- the figures ----------------------------------------------------------------------------------


def _content(run: Path) -> dict[str, Any]:
    cross = run / CROSS
    try:
        if not cross.exists():
            return {"runs": [_run(run)], "cross": []}
        document = _read(cross)
        runs = [_run(run / name) for name in document["runs"]]
        return {"runs": runs, "cross": [_winner(one) for one in document["winners"]]}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, BignasError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{run} holds a damaged run ({type(error).__name__}: {error}); search again"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} holds no finished run ({path.name} is missing); run `bignas search`"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    version = document.get("format_version", 1)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path.parent} is a run of format version {version}, this bignas reads"
            f" {FORMAT_VERSION}; search again"
        )
    return document


def _run(folder: Path) -> dict[str, Any]:
    result = _read(folder / RESULT)
    best = result["best"]
    front = [one["arch"] for one in result["front"]]
    finalists = [one for one in result["finalists"] if one["arch"] != best["arch"]]
    candidates = [best, *finalists]
    architecture = Architecture.from_dict(best["arch"])
    return {
        "name": f"{result['space']} on {result['device']}",
        "devices": [one["device"] for one in best["devices"]],
        "test_top1": best["test_top1"],
        "candidates": [
            _candidate(one, best=number == 0, front=one["arch"] in front)
            for number, one in enumerate(candidates)
        ],
        "trials": _trials(folder),
        "kernels": [_kernel(one) for one in result["kernels"]],
        "stages": _stages(architecture, result["kernels"]),
        "provenance": _provenance(folder, result),
    }


def _candidate(one: Mapping[str, Any], best: bool, front: bool) -> dict[str, Any]:
    return {
        "arch": Architecture.from_dict(one["arch"]).to_dict(),
        "top1": float(one["top1"]),
        "macs": int(one["macs"]),
        "params": int(one["params"]),
        "devices": [_latency(at) for at in one["devices"]],
        "best": best,
        "front": front,
    }


def _latency(at: Mapping[str, Any]) -> dict[str, Any]:
    names = ("budget_ms", "predicted_ms", "probability", "measured_ms")
    low, high = at["interval_ms"]
    return {
        "device": str(at["device"]),
        "interval_ms": [float(low), float(high)],
        **{name: float(at[name]) for name in names},
    }


def _winner(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": str(one["winner_of"]),
        "top1": float(one["top1"]),
        "devices": [
            {
                "device": str(at["device"]),
                "budget_ms": float(at["budget_ms"]),
                "measured_ms": float(at["measured_ms"]),
            }
            for at in one["devices"]
        ],
    }


def _trials(folder: Path) -> list[dict[str, Any]]:
    """The evaluated architectures in the order in which they were looked at."""
    return [
        {"latency_ms": one.latency_ms, "top1": one.top1, "arch": one.architecture.to_dict()}
        for batch in read_trials(folder)
        for one in batch
        if one.top1 is not None
    ]


def _kernel(one: Mapping[str, Any]) -> dict[str, Any]:
    workload = Workload.from_key(one["workload"])
    return {
        "layer": str(one["layer"]),
        "workload": workload.key,
        "operator": workload.operator.value,
        "latency_us": float(one["latency_us"]),
        "measured": bool(one["measured"]),
        "roofline": None if one["roofline"] is None else float(one["roofline"]),
    }


def _stages(
    architecture: Architecture, kernels: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What is drawn: the stem, the stages and the head, each with the size of its output."""
    sizes: dict[str, int] = {}
    for one in kernels:
        prefix = ".".join(one["layer"].split(".")[:2]) if "." in one["layer"] else one["layer"]
        sizes[prefix] = Workload.from_key(one["workload"]).out_height
    drawn = [_stage("stem", sizes["stem"], architecture.stem_channels)]
    for index, stage in enumerate(architecture.stages):
        text = f"{stage.depth} x (k{stage.kernel}, e{stage.expand})"
        size = sizes[f"stages.{index}"]
        drawn.append(_stage(f"stage {index + 1}", size, stage.channels, stage.depth, text))
    return [*drawn, _stage("head", sizes["head"], architecture.head_channels)]


def _stage(name: str, size: int, channels: int, depth: int = 1, text: str = "") -> dict[str, Any]:
    return {"name": name, "size": size, "channels": channels, "depth": depth, "text": text}


def _provenance(folder: Path, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = {
        "space": result["space"],
        "strategy": f"{result['strategy']}, seed {result['seed']}",
        "looked at": f"{result['evaluated']} evaluated of {result['suggested']} suggested",
        "confidence": result["confidence"],
        "limits": ", ".join(f"{name} {value}" for name, value in result["limits"].items()) or "-",
        "binary and child agree": f"{100 * result['binary_agreement']:.2f}% of test images",
    }
    rows |= {f"{name} is": kind for name, kind in result["kinds"].items()}
    for device, place in result["bundles"].items():
        rows[f"bundle for {device}"] = place
        path = folder / place / "manifest.json"
        if path.exists():
            manifest = Manifest.from_bytes(path.read_bytes())
            rows[f"made for {device} by"] = f"bignas {manifest.bignas_version}, {manifest.compiler}"
            threads = "1 thread" if manifest.threads == 1 else f"{manifest.threads} threads"
            rows[f"target of {device}"] = f"{manifest.target.get('cpu')}, {threads}"
            rows[f"code hash for {device}"] = manifest.code_hash
    return [(name, str(value)) for name, value in rows.items()]

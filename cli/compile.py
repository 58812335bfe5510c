"""bignas compile: a bundle from a child of a supernet, or from an ONNX model."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bignas.cli.options import device_option, examples, out_option, seed_option
from bignas.cli.output import Output, facts, interval_text, milliseconds, reporting
from bignas.device_db.errors import InputError

if TYPE_CHECKING:
    from bignas.compile.bundle import Bundle
    from bignas.device_db.device import Device
    from bignas.latency.predictor import LatencyPredictor
    from bignas.supernet.space import SearchSpace

__all__ = ["compile_"]

ONNX_SUFFIX = ".onnx"


@click.command(
    "compile",
    epilog=examples(
        "bignas compile digits.safetensors --arch smallest --data digits --out bundle",
        "bignas compile model.onnx --device local --out bundle",
    ),
)
@click.argument("source", metavar="CKPT|MODEL.onnx")
@click.option(
    "--arch",
    "architectures",
    metavar="FILE",
    multiple=True,
    help="The child to compile: a JSON file, smallest, biggest or random:1.",
)
@click.option("--data", "data_name", metavar="DATA", help="The data that CKPT was trained on.")
@device_option
@out_option("BUNDLE", "The folder to write; a bundle that is there is replaced.")
@seed_option
@reporting
def compile_(
    output: Output,
    source: str,
    architectures: tuple[str, ...],
    data_name: str | None,
    device_name: str,
    out: Path,
    seed: int,
) -> None:
    """Compile a child of a supernet, or an ONNX model.

    The bundle holds the binary, the ONNX model, and inputs with their outputs to check itself with.
    Kernels that were never measured on the device are tuned on the way. For a device that cannot be
    measured on this machine they get the best guess, and the manifest says so.
    """
    is_onnx = source.lower().endswith(ONNX_SUFFIX)
    if is_onnx and (architectures or data_name is not None):
        raise click.UsageError("--arch and --data belong to a checkpoint, not to an ONNX model.")
    if not is_onnx and (not architectures or data_name is None):
        raise click.UsageError("A checkpoint needs --arch and --data.")

    from bignas.cli.inputs import (
        read_one_architecture,
        require_bundle_place,
    )
    from bignas.compile.objects import ObjectCache
    from bignas.device_db.store import Store
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.data import load_data

    require_bundle_place(out)
    with Store.open() as store:
        device = store.device(device_name)
        cache = ObjectCache(device.target)
        if data_name is None:
            from bignas.search.deliver_onnx import deliver_onnx

            bundle = deliver_onnx(Path(source), device, store, cache, out)
        else:
            from bignas.search.deliver import deliver_child

            network, checkpoint = load_checkpoint(source)
            architecture = read_one_architecture(architectures, network.space, seed)
            data = load_data(data_name)
            predictor, missing = _predictor(network.space, device)
            bundle = deliver_child(
                network, checkpoint, architecture, data, device, store, cache, out, predictor
            )
            if missing:
                output.note(f"the bundle states no predicted latency: {missing}")
    untuned = _untuned(bundle)
    if untuned:
        output.note(
            f"{untuned} of {len(bundle.manifest.kernels)} kernels are untuned: {device.name!r}"
            " cannot be measured on this machine"
        )
    _show(output, bundle)


def _untuned(bundle: "Bundle") -> int:
    from bignas.compile.manifest import ScheduleSource

    return sum(one.source is ScheduleSource.UNTUNED for one in bundle.manifest.kernels)


def _predictor(space: "SearchSpace", device: "Device") -> "tuple[LatencyPredictor | None, str]":
    """Return the predictor, or why there is none; a bundle can do without its prediction."""
    from bignas.latency.predictors import load_predictor

    try:
        return load_predictor(space, device), ""
    except InputError as error:
        return None, str(error)


def _show(output: Output, bundle: "Bundle") -> None:
    manifest = bundle.manifest
    predicted = manifest.predicted
    document = {
        "bundle": str(bundle.path),
        "name": manifest.name,
        "device": manifest.device,
        "threads": manifest.threads,
        "kernels": len(manifest.kernels),
        "fallbacks": list(manifest.fallbacks),
        "untuned": _untuned(bundle),
        "macs": manifest.macs,
        "weights_bytes": manifest.weights_bytes,
        "workspace_bytes": manifest.workspace_bytes,
        "prepared_bytes": manifest.prepared_bytes,
        "arch": manifest.architecture,
        "predicted_ms": predicted.latency_ms if predicted else None,
        "interval_ms": predicted.interval_ms if predicted else None,
    }
    lines = {
        "bundle": bundle.path,
        "device": manifest.device,
        "kernels": len(manifest.kernels),
        "MACs": f"{manifest.macs / 1e6:.2f}M",
        "weights": f"{manifest.weights_bytes / 1e3:.0f} kB",
        "memory": f"{manifest.memory_bytes / 1e3:.0f} kB",
    }
    if manifest.fallbacks:
        lines["TVM's own"] = ", ".join(manifest.fallbacks)
    if predicted is not None:
        interval = interval_text(predicted.interval_ms)
        lines["predicted"] = f"{milliseconds(predicted.latency_ms)} ({interval})"
    output.show(document, facts(lines))

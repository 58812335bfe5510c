"""bignas verify, bench and run: what a bundle can do by itself."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bignas.cli.application import ExitCode
from bignas.cli.options import PATH, examples
from bignas.cli.output import Output, facts, milliseconds, percent, reporting

if TYPE_CHECKING:
    from bignas.device_db.device import Device

__all__ = ["bench", "run", "verify"]

bundle_argument = click.argument("path", metavar="BUNDLE", type=PATH)


remote_option = click.option(
    "--device",
    "device_name",
    metavar="NAME",
    help="A remote device of `bignas device list` to do it on.  [default: this machine]",
)


def _remote(name: str | None) -> "Device | None":
    """Return the remote device of an option, None when it means this machine."""
    from bignas.cli.inputs import require_measurable
    from bignas.device_db.store import Store

    if name is None:
        return None
    with Store.open() as store:
        device = store.device(name)
    require_measurable(device)
    return None if device.remote is None else device


def _runner(emulated: bool, device: "Device | None") -> str:
    if device is not None:
        return f"device {device.name}"
    return "an emulator" if emulated else "this processor"


@click.command(epilog=examples("bignas verify bundle", "bignas verify bundle --device pi"))
@bundle_argument
@remote_option
@reporting
def verify(output: Output, path: Path, device_name: str | None) -> None:
    """Check a bundle against the outputs it was shipped with.

    First every file is compared with its hash. A bundle for another processor family checks itself
    under qemu, where that is installed, or on a remote device. Exit code 1 when the outputs differ.
    """
    from bignas.compile.bundle import Bundle
    from bignas.latency.remote_bundle import verify_on

    device = _remote(device_name)
    result = verify_on(Bundle.load(path), device)
    output.show(
        {
            "ok": result.ok,
            "max_abs_error": result.max_abs_error,
            "top1_agreement": result.top1_agreement,
            "images": result.images,
            "emulated": result.emulated,
        },
        facts(
            {
                "verified": "yes" if result.ok else "NO: the outputs differ",
                "largest error": f"{result.max_abs_error:.2e}",
                "same class": f"{percent(result.top1_agreement)} of {result.images} images",
                "run by": _runner(result.emulated, device),
            }
        ),
    )
    if not result.ok:
        click.get_current_context().exit(ExitCode.FAILED)


@click.command(epilog=examples("bignas bench bundle --json", "bignas bench bundle --device pi"))
@bundle_argument
@remote_option
@reporting
def bench(output: Output, path: Path, device_name: str | None) -> None:
    """Measure the latency of a bundle on this machine or on a remote device."""
    from bignas.cli.inputs import require_cores
    from bignas.compile.bundle import Bundle
    from bignas.latency.bench import bench_bundle

    bundle = Bundle.load(path)
    device = _remote(device_name)
    if device is None:
        require_cores(bundle.manifest.device, bundle.manifest.threads)
    latency = bench_bundle(bundle, device=device)
    document = {
        "latency_ms": {
            "min": latency.min_ms,
            "p50": latency.latency_ms,
            "p90": latency.p90_ms,
            "n": latency.samples,
        },
        "device": latency.device,
        "threads": bundle.manifest.threads,
        "kind": latency.kind,
    }
    output.show(
        document,
        facts(
            {
                "device": latency.device,
                "median": milliseconds(latency.latency_ms),
                "fastest": milliseconds(latency.min_ms),
                "90% below": milliseconds(latency.p90_ms),
                "samples": f"{latency.samples}, {latency.kind}",
            }
        ),
    )


@click.command(epilog=examples("bignas run bundle --input images.npy --output scores.npy"))
@bundle_argument
@click.option(
    "--input",
    "source",
    metavar="X.npy",
    type=PATH,
    required=True,
    help="Preprocessed images, float32 [n, channels, height, width] or one image.",
)
@click.option(
    "--output",
    "destination",
    metavar="Y.npy",
    type=PATH,
    required=True,
    help="Where to write the outputs, float32 [n, classes].",
)
@reporting
def run(output: Output, path: Path, source: Path, destination: Path) -> None:
    """Run a bundle on preprocessed images."""
    import io

    import numpy as np

    from bignas.cli.inputs import read_images, require_file_place
    from bignas.compile.bundle import Bundle
    from bignas.device_db.files import write_atomically

    require_file_place(destination)
    bundle = Bundle.load(path)
    images = read_images(source, bundle.manifest.input["shape"][1:])
    scores = bundle.open_library().run(images)
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)
    write_atomically(destination, buffer.getvalue())
    document = {
        "output": str(destination),
        "images": len(scores),
        "classes": scores.shape[1],
        "top1": scores.argmax(1).tolist(),
    }
    output.show(
        document,
        facts({"outputs": destination, "images": len(scores), "classes": scores.shape[1]}),
    )

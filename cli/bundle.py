"""bignas verify, bench and run: what a bundle can do by itself."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path

import click

from bignas.cli.application import ExitCode
from bignas.cli.options import PATH, examples
from bignas.cli.output import Output, facts, milliseconds, percent, reporting

__all__ = ["bench", "run", "verify"]

bundle_argument = click.argument("path", metavar="BUNDLE", type=PATH)


@click.command(epilog=examples("bignas verify bundle"))
@bundle_argument
@reporting
def verify(output: Output, path: Path) -> None:
    """Check a bundle against the outputs it was shipped with.

    First every file is compared with its hash. A bundle for another processor family checks itself
    under qemu, where that is installed. Exit code 1 when the outputs differ.
    """
    from bignas.compile.bundle import Bundle
    from bignas.compile.bundle import verify as verify_bundle

    result = verify_bundle(Bundle.load(path))
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
                "run by": "an emulator" if result.emulated else "this processor",
            }
        ),
    )
    if not result.ok:
        click.get_current_context().exit(ExitCode.FAILED)


@click.command(epilog=examples("bignas bench bundle", "bignas bench bundle --json"))
@bundle_argument
@reporting
def bench(output: Output, path: Path) -> None:
    """Measure the latency of a bundle on this machine."""
    from bignas.cli.inputs import require_cores
    from bignas.compile.bundle import Bundle
    from bignas.latency.bench import bench_bundle

    bundle = Bundle.load(path)
    require_cores(bundle.manifest.device, bundle.manifest.threads)
    latency = bench_bundle(bundle)
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

"""bignas accuracy: fits accuracy predictors of supernets and shows how good they are."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs: help takes no seconds

from pathlib import Path

import click

from bignas.cli.options import PATH, data_option, examples, seed_option
from bignas.cli.output import Output, facts, percent, reporting
from bignas.cli.progress import Bars, count_step

__all__ = ["accuracy"]


@click.group()
def accuracy() -> None:
    """Fit and evaluate accuracy predictors.

    A predictor is kept beside its checkpoint; `bignas search` finds it there.
    """


_checkpoint_argument = click.argument("checkpoint", metavar="CKPT")
_processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    show_default="one a processor",
    help="Processes that evaluate children.",
)


@accuracy.command(
    epilog=examples("bignas accuracy fit cifar.safetensors --data DATA --children 500")
)
@_checkpoint_argument
@data_option
@click.option(
    "--children",
    metavar="N",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Children to evaluate and learn from; those evaluated before are not evaluated again.",
)
@click.option("--out", type=PATH, help="The file to write.  [default: beside the checkpoint]")
@_processes_option
@seed_option
@reporting
def fit(
    output: Output,
    checkpoint: str,
    data_name: str,
    children: int,
    out: Path | None,
    processes: int | None,
    seed: int,
) -> None:
    """Evaluate children of a supernet on validation images and learn to predict the others.

    Goes on where it was interrupted: what was evaluated is in the store.
    """
    from bignas.cli.inputs import require_file_place
    from bignas.device_db.files import write_atomically
    from bignas.device_db.store import Store
    from bignas.supernet.accuracy_files import accuracy_path
    from bignas.supernet.accuracy_fit import fit_accuracy
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.children import ChildEvaluator, evaluation_processes
    from bignas.supernet.data import load_data

    network, content = load_checkpoint(checkpoint)
    path = out or accuracy_path(checkpoint)
    require_file_place(path)
    with Store.open() as store, Bars() as bars:
        evaluator = ChildEvaluator(content, load_data(data_name), store)
        step = count_step("evaluating")
        predictor = fit_accuracy(
            evaluator, network.space, children, seed, processes or evaluation_processes(),
            lambda done, total: bars(step(done, total)),
        )  # fmt: skip
    write_atomically(path, predictor.to_bytes())
    error = predictor.error
    document = {
        "path": str(path),
        "children": len(predictor.correct),
        "images": predictor.setting.images,
        "calibration_images": predictor.setting.calibration_images,
        "kernel": predictor.kernel.value,
        "mae": error.mae,
        "spearman": error.spearman,
        "n": error.n,
    }
    shown = {
        "children": document["children"],
        "mean error": f"{percent(error.mae, 2)} (cross-validated)",
        "rank correlation": f"{error.spearman:.4f}",
        "path": path,
    }
    output.show(document, facts(shown))


@accuracy.command(
    epilog=examples("bignas accuracy evaluate cifar.safetensors --data DATA --children 100")
)
@_checkpoint_argument
@data_option
@click.option(
    "--children",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Fresh random children, evaluated now.",
)
@click.option(
    "--predictor", type=PATH, help="The predictor's file.  [default: beside the checkpoint]"
)
@_processes_option
@seed_option
@reporting
def evaluate(
    output: Output,
    checkpoint: str,
    data_name: str,
    children: int,
    predictor: Path | None,
    processes: int | None,
    seed: int,
) -> None:
    """Compare predictions with children that the predictor was not fitted to."""
    from bignas.device_db.store import Store
    from bignas.supernet.accuracy_files import accuracy_path, load_accuracy_predictor
    from bignas.supernet.accuracy_fit import evaluate_accuracy
    from bignas.supernet.checkpoint import load_checkpoint
    from bignas.supernet.children import ChildEvaluator, evaluation_processes
    from bignas.supernet.data import load_data

    _, content = load_checkpoint(checkpoint)
    data = load_data(data_name)
    path = predictor or accuracy_path(checkpoint)
    fitted = load_accuracy_predictor(path, content, data.digest)
    setting = fitted.setting
    with Store.open() as store, Bars() as bars:
        evaluator = ChildEvaluator(
            content, data, store, setting.split, setting.images, setting.calibration_images
        )
        step = count_step("evaluating")
        result = evaluate_accuracy(
            fitted, evaluator, children, seed, processes or evaluation_processes(),
            lambda done, total: bars(step(done, total)),
        )  # fmt: skip
    shown = {
        "children": result.error.n,
        "mean error": percent(result.error.mae, 2),
        "rank correlation": f"{result.error.spearman:.4f}",
        "spread of accuracies": percent(result.deviation, 2),
    }
    output.show({"path": str(path), **result.to_dict()}, facts(shown))

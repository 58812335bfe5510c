"""The command `bignas`: which commands there are, and where they live."""

from typing import Final

import click

from bignas.cli.application import Application
from bignas.cli.options import examples

__all__ = ["COMMANDS", "main"]

COMMANDS: Final = {
    "demo": "bignas.cli.demo:demo",
    "device": "bignas.cli.device:device",
    "profile": "bignas.cli.profile:profile",
    "predictor": "bignas.cli.predictor:predictor",
    "predict": "bignas.cli.predict:predict",
    "train": "bignas.cli.train:train",
    "evaluate": "bignas.cli.evaluate:evaluate",
    "accuracy": "bignas.cli.accuracy:accuracy",
    "search": "bignas.cli.search:search",
    "report": "bignas.cli.report:report",
    "compile": "bignas.cli.compile:compile_",
    "verify": "bignas.cli.bundle:verify",
    "bench": "bignas.cli.bundle:bench",
    "run": "bignas.cli.bundle:run",
}

main: Final = Application(
    "bignas",
    COMMANDS,
    lasting=("train", "evaluate"),
    help=(
        "Find the most accurate network that keeps a latency budget on your device, and compile it"
        " to a binary that keeps it too.\n\n"
        "SPACE is a built-in search space such as cifar, or a TOML file. CKPT is a checkpoint file"
        " or the name of a shipped supernet. Devices and measurements are kept in the database"
        " BIGNAS_DB."
    ),
    epilog=examples(
        "bignas demo",
        "bignas profile cifar --minutes 30",
        "bignas predictor fit cifar",
        "bignas train cifar --data digits --out digits.safetensors",
        "bignas search digits.safetensors --data digits --budget 1.5ms --out runs/digits",
        "bignas report runs/digits",
        "bignas verify runs/digits/bundle",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(package_name="bignas", prog_name="bignas")(main)

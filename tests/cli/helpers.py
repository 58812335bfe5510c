"""Runs the command line inside the test's process, and reads what it says."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bignas.cli.main import main

SPACE = """
resolutions = [8]
stem_channels = [8]
stem_stride = 1
stem_activation = "relu"
head_channels = [16, 32]
head_activation = "relu"

[[stages]]
channels = [8]
depths = [1, 2]
kernels = [3]
expands = [1, 2]
stride = 2
activation = "relu"
squeeze_excite = false
"""
OTHER_SPACE = SPACE.replace("channels = [8]\nstem", "channels = [16]\nstem").replace(
    "head_channels = [16, 32]", "head_channels = [24, 48]"
)


def run(*arguments: object) -> Result:
    """Run `bignas` with these arguments; only a bug raises."""
    return CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)


def run_json(*arguments: object) -> Any:
    """Run with --json and return the document; the command must succeed and print nothing else."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object, code: int = 2) -> str:
    """Run what must fail, plain and with --json, and return the one line about it.

    Nothing may be left in the current folder that was not there before.
    """
    before = files_here()
    plain, as_json = run(*arguments), run(*arguments, "--json")
    lines = plain.stderr.splitlines()
    assert len(lines) == 1, plain.stderr
    assert lines[0].startswith("error: ")
    assert (plain.exit_code, plain.stdout) == (code, "")
    assert (as_json.exit_code, as_json.stderr) == (code, plain.stderr)
    document = json.loads(as_json.stdout)
    assert document == {"error": lines[0].removeprefix("error: "), "exit_code": code}
    assert files_here() == before
    return lines[0]


def files_here() -> set[Path]:
    """Return all files and folders below the current folder."""
    return set(Path().rglob("*"))

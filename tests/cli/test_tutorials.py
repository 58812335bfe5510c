"""The commands that tutorials show are commands that there are, with options that there are."""

import re
import shlex
from pathlib import Path

import click
import pytest

from bignas.cli.main import main

TUTORIALS = sorted((Path(__file__).parents[2] / "docs/tutorials").glob("*.md"))


def commands(text: str) -> list[list[str]]:
    """The words of every `bignas` line in the blocks of shell commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("bignas ")]


def parse(words: list[str]) -> click.Context:
    """Parse a command line as far as it goes without running it."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
        context = click.Context(command, parent=context, info_name=name)
    command.parse_args(context, words)
    return context


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_what_a_tutorial_shows_can_be_typed(path: Path) -> None:
    for words in commands(path.read_text(encoding="utf-8")):
        parse(words)


def test_the_tutorial_of_devices_shows_commands() -> None:
    path = next(one for one in TUTORIALS if one.stem == "own_device")
    shown = commands(path.read_text(encoding="utf-8"))
    assert {"device", "profile", "predictor", "search", "bench"} <= {one[0] for one in shown}


@pytest.mark.parametrize("line", ["nonsense", "device add", "profile cifar --wings 2"])
def test_what_cannot_be_typed_is_noticed(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(line.split())

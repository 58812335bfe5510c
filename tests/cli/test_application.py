"""The frame: help, exit codes, one line for an error, one document for scripts."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bignas.cli.main import COMMANDS, main
from bignas.device_db.errors import BignasError, InputError
from bignas.device_db.store import Store
from tests.cli.helpers import refused, run, run_json

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "torch", "tvm", "sqlalchemy", "xgboost", "sklearn", "datasets", "onnx")


def commands(
    group: click.Group = main, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


@pytest.mark.parametrize(("names", "command"), list(commands()), ids=str)
def test_every_command_explains_itself(names: tuple[str, ...], command: click.Command) -> None:
    result = run(*names, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (command.help or "").strip().endswith(".")
    if isinstance(command, click.Group):
        return
    assert f"bignas {' '.join(names)}" in (command.epilog or "")
    assert "--json" in result.stdout
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_the_contract_names_these_commands() -> None:
    names = {" ".join(names) for names, command in commands() if not hasattr(command, "commands")}
    assert names >= {
        "demo", "device list", "device show", "device add", "device import", "device export",
        "profile", "predictor fit", "predictor evaluate", "predict", "train", "evaluate", "search",
        "compile", "verify", "bench", "run",
    }  # fmt: skip


def test_the_readme_names_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)(?:\.venv/bin/)?bignas ([a-z]+)\b", text, re.MULTILINE))
    assert named <= COMMANDS.keys()


def test_help_does_not_wait_for_libraries() -> None:
    script = (
        "import sys; from bignas.cli.main import COMMANDS, main\n"
        "for name in COMMANDS: main([name, '--help'], standalone_mode=False)\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stderr == "[]\n"


def test_compiling_does_not_wait_for_what_it_does_not_need() -> None:
    modules = {"alembic", "datasets", "pandas", "scipy.optimize", "sklearn", "tvm", "xgboost"}
    script = f"import sys, bignas.search.deliver; print(sorted({modules} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def program() -> str:
    return str(Path(sys.executable).with_name("bignas"))


def test_the_installed_program_reports_by_exit_code_and_stream() -> None:
    for arguments, code in ((["--version"], 0), (["predict", "--json"], 2), (["nothing"], 2)):
        result = subprocess.run(
            [program(), *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == code
        assert len(result.stderr.splitlines()) == (1 if code else 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    for arguments in (["device", "list"], ["device", "list", "--json"], ["--help"]):
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                [program(), *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert result.returncode == 2
        assert result.stderr.splitlines() == [f"error: {os.strerror(errno.ENOSPC)}"]


def test_usage_mistakes_are_one_line_that_points_to_help() -> None:
    assert "`bignas --help`" in refused("nothing")
    assert "`bignas device --help`" in refused("device", "nothing")
    assert "--budget" in refused("search", "x", "--data", "digits", "--out", "run")
    assert "'SPACE'" in refused("train", "--out", "x")
    assert "0.0" in refused("profile", "cifar", "--minutes", "0")
    assert "0.0" in refused("profile", "cifar", "--target-error", "0")
    assert "test" in refused("evaluate", "x", "--arch", "biggest", "--data", "d", "--split", "tset")


def test_without_a_command_the_help_comes() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert run("device").exit_code == 2


class Failing:
    """Stands for the store and fails as told when it is opened."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> Store:
        sys.stdout.write("a stray line of a library\n")
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("two\nlines"), 2, "error: two lines"),
        (BignasError("work failed"), 1, "error: work failed"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"), 2, "/a/b: No space left"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), 2, "Permission denied"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "error: not enough memory: Unable to"),
        (MemoryError(), 1, "error: not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
    ],
)
def test_errors_are_one_line_and_their_exit_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "open", Failing(error))
    result = run("device", "list", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["exit_code"] == code
    stray, line = result.stderr.splitlines()
    assert stray == "a stray line of a library"
    assert line.startswith("error: ")
    assert words in line


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "open", Failing(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        run("device", "list")


@pytest.mark.parametrize("content", [b"no database", b""])
def test_the_store_is_the_one_that_the_environment_names(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "named.sqlite"
    path.write_bytes(content * 1000)
    monkeypatch.setenv("BIGNAS_DB", f"sqlite:///{path}")
    if content:
        assert str(path) in refused("device", "list")
    else:
        assert [one["name"] for one in run_json("device", "list")] == ["local"]
        assert path.stat().st_size > 0

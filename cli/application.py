"""The frame around all commands: it loads them by name and turns errors into messages.

- A command's module is imported when the command is named, and imports the libraries it needs when
  it runs: help is instant.
- An error of the library is one line on stderr and its exit code; with `--json` it is a document on
  stdout as well. Only a bug shows a traceback.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Container, Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar

import click
from click.exceptions import NoArgsIsHelpError

from bignas.cli.environment import prepare_environment
from bignas.cli.output import JSON_FLAG, write_document
from bignas.device_db.errors import BignasError

__all__ = ["Application", "ExitCode"]


class ExitCode(IntEnum):
    """What the command's exit code means to scripts; errors of the library bring their own."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    INTERRUPTED = 130


class _InterruptedError(click.ClickException):
    """Ctrl-C. It is no error of click's, which would print more than one line about it."""

    exit_code: ClassVar[int] = ExitCode.INTERRUPTED


class Application(click.Group):
    """A group whose commands are named by module and attribute, as `module:attribute`.

    `lasting` names commands that compute with all cores for long, and measure nothing.
    """

    def __init__(
        self, name: str, entries: Mapping[str, str], lasting: Container[str] = (), **settings: Any
    ) -> None:
        super().__init__(name, **settings)
        self._entries = dict(entries)
        self._lasting = lasting

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a user meets them."""
        del ctx
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is none of that name."""
        del ctx
        if cmd_name not in self._entries:
            return None
        module, _, attribute = self._entries[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError(
                "interrupted; what was finished is kept, the same command goes on from there"
            ) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""
        arguments = sys.argv[1:] if args is None else list(args)
        prepare_environment(bool(arguments) and arguments[0] in self._lasting)
        try:
            code = super().main(
                args=args,
                prog_name=prog_name or self.name,
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except (BignasError, click.ClickException, click.Abort, OSError, MemoryError) as error:
            message, code = describe(error)
            if JSON_FLAG in arguments:
                with contextlib.suppress(OSError):  # it may be stdout that cannot be written
                    write_document({"error": message, "exit_code": int(code)}, sys.stdout)
            click.echo(f"error: {message}", err=True)
        if standalone_mode:
            sys.exit(code)
        return code


def describe(error: Exception) -> tuple[str, int]:
    """Return the one line that tells a user about an error, and the exit code."""
    match error:
        case BignasError():
            message, code = str(error), error.exit_code
        case click.UsageError(ctx=click.Context() as context):
            message = f"{error.format_message()} See `{context.command_path} --help`."
            code = error.exit_code
        case click.ClickException():
            message, code = error.format_message(), error.exit_code
        case OSError():
            place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            message, code = f"{place}{error.strerror or error}", ExitCode.BAD_INPUT
        case MemoryError():
            message, code = f"not enough memory: {error}".rstrip(": "), ExitCode.FAILED
        case _:
            message, code = "interrupted", ExitCode.INTERRUPTED
    return " ".join(message.split()) or type(error).__name__, code

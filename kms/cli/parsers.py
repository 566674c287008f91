"""How command lines are read: one parser, and the kinds of values that several commands take.

`argparse` and nothing else: `kms measure` is run in loops, and starts faster than most libraries import.
"""

import argparse
import math
import os
from typing import Any, NoReturn

from kms.cli.output import WrongUse

_LONGEST = 366 * 24 * 3600.0  # seconds


class Help(argparse.HelpFormatter):
    """Help as wide as the terminal; asks the system itself, for argparse would import `shutil` to do it."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 0
        super().__init__(prog, width=(columns or 80) - 2)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `WrongUse`; whoever called it knows whether to answer in JSON.

    Options are not abbreviated: ``--trust`` must not stand for ``--trust-any-kms-identity``.
    """

    def __init__(self, *, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **options)

    # Without `override`: importing it costs a third of the time in which `kms measure` starts.
    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override]
        """Say what is wrong with the command line."""
        raise WrongUse(message, usage=self.format_usage())


class Group:
    """A command that has commands of its own, each with ``run(arguments) -> status`` as its default."""

    def __init__(self, prog: str, description: str) -> None:
        self.parser = Parser(prog=prog, description=description)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, *, summary: str, example: str, description: str | None = None) -> Parser:
        """Add a command; its options and its ``run`` are the caller's to add. All of them take ``--json``."""
        command: Parser = self._commands.add_parser(
            name,
            help=summary,
            description=description or f"{_sentence(summary)}.",
            epilog=f"example: {example}",
        )
        command.add_argument("--json", action="store_true", help="one JSON document on standard output")
        return command

    def adopt(self, name: str, command: Parser, *, summary: str) -> None:
        """Add a command whose module has a parser, and a ``main``, of its own."""
        self._commands.add_parser(
            name,
            help=summary,
            parents=[command],
            add_help=False,  # it has its own
            description=command.description,
            epilog=command.epilog,
            formatter_class=command.formatter_class,
        )


def run_group(parser: Parser, argv: list[str]) -> int:
    """Parse, and run the command that was named."""
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def integer(text: str) -> int:
    """Read an integer as Python writes it: 64, 0x40."""
    return int(text, 0)


def seconds(text: str) -> float:
    """Read a time in seconds: finite and more than nothing. With NaN no deadline would ever pass."""
    value = float(text)
    if not math.isfinite(value) or not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError("takes seconds, more than 0")
    return value


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]

"""How command lines are read: one parser, and the kinds of values that several commands take.

`argparse` and nothing else: `kms measure` is run in loops, and starts faster than most libraries import.
"""

import argparse
import math
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from kms.cli.output import WrongUse

if TYPE_CHECKING:
    from datetime import datetime, timedelta

_LONGEST = 366 * 24 * 3600.0  # seconds
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_LONGEST_SPAN = 10 * 366 * 24 * 3600  # seconds: every date minus it is a date
# 32 bytes as base64url; one in 64 begins as an option does.
_KEY_LIKE_AN_OPTION = re.compile(r"-[A-Za-z0-9_-]{42}=?")


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

    Options are not abbreviated: ``--trust`` must not stand for ``--trust-any-kms-identity``. A key that
    begins with ``-`` is taken after ``--identity`` all the same.
    """

    def __init__(self, *, allow_abbrev: bool = False, **options: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **options)

    # Without `override`: importing it costs a third of the time in which `kms measure` starts.
    def parse_known_args(  # type: ignore[explicit-override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse what is for this parser; `argparse` calls it for each level of a command."""
        return super().parse_known_args(None if args is None else _join_identity(args), namespace)

    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override]
        """Say what is wrong with the command line."""
        raise WrongUse(message, usage=self.format_usage())


class Group:
    """A command that has commands of its own, each with ``run(arguments) -> status`` as its default."""

    def __init__(self, prog: str, description: str) -> None:
        self.parser = Parser(prog=prog, description=description)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self,
        name: str,
        *,
        summary: str,
        example: str,
        description: str | None = None,
        as_json: str = "one JSON document on standard output",
    ) -> Parser:
        """Add a command; its options and its ``run`` are the caller's to add. All of them take ``--json``."""
        command: Parser = self._commands.add_parser(
            name,
            help=summary,
            description=description or f"{_sentence(summary)}.",
            epilog=f"example: {example}",
        )
        command.add_argument("--json", action="store_true", help=as_json)
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


def count(text: str) -> int:
    """Read how many: 1 to 10,000."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError("takes a number from 1 to 10000")
    return int(text)


def seconds(text: str) -> float:
    """Read a time in seconds: finite and more than nothing. With NaN no deadline would ever pass."""
    value = float(text)
    if not math.isfinite(value) or not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError("takes seconds, more than 0")
    return value


def span(text: str) -> "timedelta":
    """Read how long, or how long ago: a whole number and its unit, as 30d, 12h, 15m or 90s."""
    from datetime import timedelta

    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) <= 9 and unit in _UNITS):
        raise argparse.ArgumentTypeError("takes a time as 30d, 12h, 15m or 90s")
    length = int(number) * _UNITS[unit]
    if not 0 < length <= _LONGEST_SPAN:
        raise argparse.ArgumentTypeError("takes a time of more than nothing, and at most ten years")
    return timedelta(seconds=length)


def moment(text: str) -> "datetime":
    """Read a time (RFC 3339); one without an offset is UTC."""
    from datetime import UTC, datetime

    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("write a time as 2026-11-22T12:00:00Z") from error
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def _join_identity(words: Iterable[str]) -> list[str]:
    """Write ``--identity -abc…`` as ``--identity=-abc…``: `argparse` takes the first for two options."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--identity" and _KEY_LIKE_AN_OPTION.fullmatch(word):
            joined[-1] = f"--identity={word}"
        else:
            joined.append(word)
    return joined


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]

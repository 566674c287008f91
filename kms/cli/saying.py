"""How an office's answers are read and said: a line each, for eyes and for grep alike.

An answer comes from a server or a database, and repeats what others wrote (names, messages, documents): its
form is checked, and nothing in it may move a terminal's cursor or hide what stands beside it.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from kms.errors import KmsError
from kms.strict_json import Fields, JsonValue

MOST: Final = 1_000_000  # items of a list in an answer


class AnswerUnreadable(KmsError):
    """The server's answer is not of the form that this version knows."""

    code = "answer-unreadable"


class Line(NamedTuple):
    """A line for people, and how a terminal shows it (a style of `rich`)."""

    text: str
    style: str = ""


def say(lines: Iterable[Line], *, error: bool = False) -> None:
    """Print lines, in colour where there is a terminal."""
    try:
        from rich.console import Console
    except ImportError:  # an initrd has no colours (kms/guest/initrd_modules.py)
        stream = sys.stderr if error else sys.stdout
        stream.writelines(f"{printable(line.text)}\n" for line in lines)
        return
    console = Console(stderr=error, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in lines:
        console.print(printable(line.text), style=line.style or None)


def printable(text: str) -> str:
    """Give text without anything that a terminal obeys: control characters, and what turns the direction."""
    return "".join(
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def fields(answer: JsonValue, what: str) -> Fields:
    """Read an office's answer; members that this version does not know are left alone."""
    return Fields(answer, what, AnswerUnreadable)


def each_of(answer: Fields, name: str) -> Iterator[Fields]:
    """Read a list of objects."""
    for item in answer.array(name, at_most=MOST):
        yield fields(item, name)


def optional_text(answer: Fields, name: str) -> str | None:
    """Read a text that may be null."""
    value = answer.take(name)
    if value is not None and not isinstance(value, str):
        answer.fail(f"`{name}` must be a string or null")
    return value


def texts(answer: Fields, name: str) -> list[str]:
    """Read a list of texts."""
    values = answer.array(name, at_most=MOST)
    if not all(isinstance(value, str) for value in values):
        answer.fail(f"`{name}` must be a list of strings")
    return [str(value) for value in values]


def when(timestamp: str) -> str:
    """Give a time of an answer (RFC 3339, UTC) for people: without fractions of a second."""
    return f"{timestamp[:10]} {timestamp[11:19]}"

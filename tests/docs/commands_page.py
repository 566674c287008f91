"""docs/reference/commands.md, from the parsers. ``python -m tests.docs.commands_page`` writes it anew."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

from kms.cli import COMMANDS, measure_id_block

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"

_HEAD = """\
# Commands

Made from the commands' own `--help` by `python -m tests.docs.commands_page`; a test compares. What holds for
all of them is in [the protocol, section 5](protocol.md#5-commands).
"""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Give every command with a parser of its own, by its full name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        found |= _with_commands(f"kms {name}", importlib.import_module(command.module).parser())
        if name == "measure":
            found |= _with_commands("kms measure id-block", measure_id_block.parser())
    return found


def page() -> str:
    """Give the page as it must be."""
    lines = [_HEAD]
    for name, parser in parsers().items():
        lines += [f"## {name}", "", _text(parser.description), ""]
        options = list(_options(parser))
        if options:
            lines += ["| | |", "|---|---|", *options, ""]
        if parser.epilog:
            lines += [*_epilog(parser.epilog), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _with_commands(name: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, each in action.choices.items():
                found |= _with_commands(f"{name} {sub}", each)
    # A group does nothing by itself.
    return found or {name: parser}


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        value = "" if action.nargs == 0 else _value(action)
        required = " **required**" if action.required and action.option_strings else ""
        yield f"| {' '.join(filter(None, (names, value)))}{required} | {_text(action.help)} |"


def _value(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return " ".join(f"`{choice}`" for choice in action.choices)
    metavar = action.metavar or action.dest.upper()
    return f"`{metavar}`" if isinstance(metavar, str) else " ".join(metavar)


def _epilog(epilog: str) -> list[str]:
    """Give what is said after the options; an example as a command that can be copied."""
    words, _, example = epilog.rpartition("example:")
    lines = [" ".join(words.split()), ""] if words.strip() else []
    if example.strip():
        # A remark follows a semicolon; in brackets it is the shell's.
        example = " ".join(example.split())
        command, _, more = (example, "", "") if example.startswith("(") else example.partition("; ")
        lines += ["```console", f"$ {command}", "```"]
        lines += ["", f"{more[:1].upper()}{more[1:]}."] if more else []
    return lines


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

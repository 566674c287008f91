"""Keys on a command line: base64url, of which one in 64 begins as an option does."""

import argparse

import pytest

from kms.cli import run
from kms.cli.output import WrongUse
from kms.cli.parsers import Group
from kms.encoding import b64url
from tests.docs import commands_page

KEYS = [b"\xf8" + bytes(31), b"\xfb\xe0" + bytes(30), b"\xfb\xef\xbe" * 10 + b"\xfb\xec"]
TEXTS = [b64url(key) for key in KEYS]
COMMANDS = {
    name: parser
    for name, parser in commands_page.parsers().items()
    if any("--identity" in action.option_strings and action.nargs != 0 for action in parser._actions)
}


def parse(*words: str) -> argparse.Namespace:
    group = Group("kms x", "")
    command = group.add("y", summary="z", example="")
    command.add_argument("--identity", metavar="KEY")
    command.add_argument("file", nargs="*")
    return group.parser.parse_args(["y", *words])


def test_the_samples_are_hard() -> None:
    assert [text[:3] for text in TEXTS] == ["-AA", "--A", "---"]
    assert len(COMMANDS) > 4


@pytest.mark.parametrize("text", [*TEXTS, f"{TEXTS[0]}="])
def test_a_key_that_begins_as_an_option(text: str) -> None:
    for words in (["a", "--identity", text], ["--identity", text, "a"], [f"--identity={text}", "a"]):
        arguments = parse(*words)
        assert (arguments.identity, arguments.file) == (text, ["a"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_command_that_takes_an_identity_takes_it(command: str, text: str) -> None:
    with pytest.raises(WrongUse) as error:
        COMMANDS[command].parse_args(["--identity", text, "--no-such-option"])
    # What else it needs was not given. With another reading, this option's value would be missing.
    assert "--identity" not in error.value.detail
    assert text not in error.value.detail


@pytest.mark.parametrize("word", ["--json", "-x", TEXTS[0][:-1], TEXTS[0] + "A", "-" + "!" * 42])
def test_an_option_is_not_taken_for_a_key(word: str) -> None:
    with pytest.raises(WrongUse, match="expected one argument"):
        parse("--identity", word)


def test_where_it_takes_no_key_none_is_given_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "rotate", "--identity", TEXTS[0]]) == 2
    assert "--identity" in capsys.readouterr().err

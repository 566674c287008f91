"""The parameters of the kernel's command line, read as the kernel reads them."""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from kms.errors import ConfigurationError

_PROC_CMDLINE: Final = Path("/proc/cmdline")
_MAX_LENGTH: Final = 64 << 10  # bytes; COMMAND_LINE_SIZE is 2048 on x86, and at most 4096 anywhere


def proc_cmdline() -> str:
    """Give this machine's command line. Raises `ConfigurationError` where it cannot be read."""
    try:
        with _PROC_CMDLINE.open("rb") as file:
            return file.read(_MAX_LENGTH).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigurationError(f"{_PROC_CMDLINE}: {error.strerror}") from error


def parameters(command_line: str, names: Collection[str]) -> dict[str, str]:
    """Give the values of those of `names` that the command line has as ``NAME=VALUE``.

    Raises:
        ConfigurationError: one stands there twice. Whoever appends a word to a command line must not be able
            to replace what it says before, whichever of the two other programs take.

    """
    found: dict[str, str] = {}
    for word in _words(command_line):
        name, equals, value = _unquoted(word).partition("=")
        if name not in names or not equals:
            continue
        if name in found:
            raise ConfigurationError(f"`{name}=` stands twice on the kernel's command line")
        found[name] = value.removeprefix('"').removesuffix('"')
    return found


def _words(text: str) -> list[str]:
    """Split at white space outside of double quotes, as `next_arg` of lib/cmdline.c does; no escapes."""
    words, word, quoted = [], "", False
    for character in text:
        if character == '"':
            quoted = not quoted
        if character.isspace() and not quoted:
            words.append(word)
            word = ""
        else:
            word += character
    return [each for each in [*words, word] if each]


def _unquoted(word: str) -> str:
    """Take away the quotes around a whole word: ``"name=value"``."""
    return word[1:].removesuffix('"') if word.startswith('"') else word

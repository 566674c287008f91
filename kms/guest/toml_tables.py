"""TOML of an image, read strictly: only from those who may write it, no unknown keys, no wrong types."""

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from kms import private_files
from kms.errors import ConfigurationError
from kms.strict_json import Fields

_MAX_TEXT: Final = 4096  # characters; PATH_MAX
_LONGEST: Final = 24 * 3600.0  # seconds
_MAX_IDS: Final = 1024
MAX_ID: Final = 2**32 - 2  # of a user or group: -1, as uid_t, means nobody (chown(2))
_WRITABLE_BY_OTHERS: Final = 0o022

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def read_image_file(path: Path, at_most: int) -> str:
    """Read a small file that only root and this user can have written: others must not choose the KMS.

    Links are followed: the file that is there counts.

    Raises:
        ConfigurationError: it cannot be read, is longer than `at_most` bytes, or others may write to it.

    """
    try:
        owners = {os.geteuid(), 0}
        content = private_files.read(
            path, at_most=at_most, owners=owners, foreign=_WRITABLE_BY_OTHERS, follow=True
        )
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (private_files.ForeignMode, private_files.ForeignOwner) as unfit:
        remedy = f"look at what it says; then: chown root {path} && chmod go-w {path}"
        raise ConfigurationError(f"{path} {unfit}", remedy=remedy) from None
    except private_files.Unfit as unfit:
        raise ConfigurationError(f"{path} {unfit}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8") from None


def parse_toml(path: Path, content: str) -> dict[str, Any]:
    """Parse the content of `path`. Raises `ConfigurationError`."""
    try:
        return tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None


def table(value: object, where: str, known: Collection[str]) -> Fields:
    """Give the reader of a table; `where` it stands is said in messages.

    Raises:
        ConfigurationError: no table, or one with a key that is not `known`: it would silently do nothing.

    """
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must be a table")
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise ConfigurationError(f"{where}: unknown key `{name[:80]}`; {hint}")
    return Fields(value, where, ConfigurationError)


@overload
def optional(fields: Fields, name: str, read: Callable[[Fields, str], T]) -> T | None: ...
@overload
def optional(fields: Fields, name: str, read: Callable[[Fields, str], T], default: T) -> T: ...
def optional(
    fields: Fields, name: str, read: Callable[[Fields, str], T], default: T | None = None
) -> T | None:
    """Read a key with one of the functions below, if the table has it."""
    return read(fields, name) if fields.has(name) else default


def text(fields: Fields, name: str) -> str:
    """Read a string."""
    return fields.text(name, at_most=_MAX_TEXT)


def boolean(fields: Fields, name: str) -> bool:
    """Read `true` or `false`."""
    return fields.boolean(name)


def path(fields: Fields, name: str) -> Path:
    """Read an absolute path."""
    return absolute(fields, name, text(fields, name))


def absolute(fields: Fields, name: str, value: str) -> Path:
    """Take an absolute path and nothing else: hooks and services run in folders of their own."""
    if not value.startswith("/") or "\0" in value:
        fields.fail(f"`{name}` must be an absolute path")
    return Path(value)


def seconds(fields: Fields, name: str) -> float:
    """Read a time in seconds, more than 0 and at most a day. With NaN no deadline would ever pass."""
    value = fields.take(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        fields.fail(f"`{name}` must be a number")
    if not math.isfinite(value) or not 0 < value <= _LONGEST:
        fields.fail(f"`{name}` must be seconds, more than 0 and at most {_LONGEST:.0f}")
    return float(value)


def word_of(words: type[E]) -> Callable[[Fields, str], E]:
    """Give the function that reads one of these words."""

    def read(fields: Fields, name: str) -> E:
        value = text(fields, name)
        if value not in set(words):
            fields.fail(f"`{name}` must be one of {', '.join(words)}")
        return words(value)

    return read


def ids(fields: Fields, name: str) -> frozenset[int]:
    """Read numeric user or group ids: names are looked up in files that may be anybody's."""
    found = set()
    for value in fields.array(name, at_most=_MAX_IDS):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
            fields.fail(f"`{name}` must be numeric ids")
        found.add(value)
    return frozenset(found)

"""The parameters of operators' routes, in paths, queries and bodies: what each may be, and how it is read.

A reader raises ValueError with words that fit behind the parameter's name, and never repeats the value.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from kms.http import examples
from kms.http.parameters import Parameter
from kms.identifiers import AppId, ChipId, FixedBytes
from kms.keys.epochs import LATELY
from kms.ledger.actions import ACTION
from kms.ledger.entries import DECISION

MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 50
MAX_MESSAGE: Final = 4096  # characters
LONGEST_SPAN: Final = 10 * 365 * 86_400  # seconds
_MAX_TEXT: Final = 512
_REVISION: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_CODE: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")  # within a database's integers
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,14}")  # below 2^53
_TIME: Final = re.compile(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|\+00:00)", re.ASCII)

E = TypeVar("E", bound=StrEnum)


class Outcome(StrEnum):
    """What became of a request for keys."""

    RELEASED = "released"
    REFUSED = "refused"


class EntryKind(StrEnum):
    """What an entry of the ledger tells of."""

    DECISION = DECISION
    ACTION = ACTION


def revision(text: str) -> str:
    """Read the name of a revision."""
    return _matched(_REVISION, text, "must be sha256: and 64 hex digits")


def moment(text: str) -> datetime:
    """Read a time: RFC 3339 in UTC, of this millennium, so that nothing that is computed of it overflows."""
    wanted = "must be a time in UTC, as in 2026-11-22T12:00:00Z"
    try:
        return datetime.fromisoformat(_matched(_TIME, text, wanted)).astimezone(UTC)
    except ValueError:
        raise ValueError(wanted) from None


def printable(text: str) -> str:
    """Read a line of text: 1 to 512 characters, none of which a terminal or a database would stumble over."""
    if not 0 < len(text) <= _MAX_TEXT or not text.isprintable():
        raise ValueError(f"must be 1 to {_MAX_TEXT} printable characters")
    return text


def name(text: str) -> str:
    """Read a name: a line of ASCII, for what is no UTF-8 in an address reaches us as some other character."""
    if not text.isascii():
        raise ValueError("must be ASCII")
    return printable(text)


def prose(text: str) -> str:
    """Read what somebody wrote for others: lines of printable text, at most 4096 characters."""
    if len(text) > MAX_MESSAGE or not all(each.isprintable() or each in "\n\t" for each in text):
        raise ValueError(f"must be at most {MAX_MESSAGE} printable characters")
    return text


def word_of(kind: type[E]) -> Callable[[str], E]:
    """Make a reader of the words of an enumeration."""

    def read(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(kind)}") from None

    return read


def _hex_of(kind: type[FixedBytes]) -> Callable[[str], str]:
    def read(text: str) -> str:
        return kind.from_hex(text).hex()

    return read


def _limit(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_LIMIT:
        raise ValueError(f"must be a number from 1 to {MAX_LIMIT}")
    return int(text)


def _number(text: str) -> int:
    return int(_matched(_NUMBER, text, "must be a number, 1 or more"))


def _seconds(text: str) -> timedelta:
    if not _NUMBER.fullmatch(text) or int(text) > LONGEST_SPAN:
        raise ValueError(f"must be a number of seconds from 1 to {LONGEST_SPAN}")
    return timedelta(seconds=int(text))


def _id(text: str) -> str:
    return _matched(_ID, text, "must be 32 hex digits")


def _index(text: str) -> int:
    return int(_matched(_INDEX, text, "must be an index, 0 or more"))


def _entry(text: str) -> int | str:
    # No index is as long as an id.
    return _id(text) if _ID.fullmatch(text) else _index(text)


def _code(text: str) -> str:
    return _matched(_CODE, text, "must be a code, as in policy-denied")


def _matched(pattern: re.Pattern[str], text: str, wanted: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(wanted)
    return text


_TEXT: Final = {"type": "string"}
_A_REVISION: Final = {"type": "string", "pattern": f"^{_REVISION.pattern}$"}
_AN_ID: Final = {"type": "string", "pattern": f"^{_ID.pattern}$"}
_A_TIME: Final = {"type": "string", "format": "date-time"}

LIMIT: Final[Parameter[int]] = Parameter(
    name="limit",
    read=_limit,
    default=DEFAULT_LIMIT,
    description="so many at most",
    schema={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    example=100,
)
BEFORE_CHANGE: Final[Parameter[int | None]] = Parameter(
    name="before",
    read=_number,
    default=None,
    description="only changes before this one: `next` of the page before",
    schema={"type": "integer", "minimum": 1},
    example=120,
)
BEFORE_ID: Final[Parameter[str | None]] = Parameter(
    name="before",
    read=_id,
    default=None,
    description="only what is older than this id's: `next` of the page before",
    schema=_AN_ID,
    example=examples.ID,
)
AFTER: Final[Parameter[str | None]] = Parameter(
    name="after",
    read=name,
    default=None,
    description="only what follows this one: `next` of the page before",
    schema=_TEXT,
    example=examples.IMAGE,
)
REVISION: Final[Parameter[str]] = Parameter(
    name="revision",
    read=revision,
    description="a revision",
    schema=_A_REVISION,
    example=examples.REVISION,
)
FROM: Final[Parameter[str | None]] = Parameter(
    name="from",
    read=revision,
    default=None,
    description="a revision; absent: what is in force",
    schema=_A_REVISION,
    example=examples.OLD_REVISION,
)
TO: Final[Parameter[str]] = Parameter(
    name="to", read=revision, description="a revision", schema=_A_REVISION, example=examples.REVISION
)
RELEASE_ID: Final[Parameter[str]] = Parameter(
    name="release_id",
    read=_id,
    description="the id of a release, or the request id that a refused guest was told",
    schema=_AN_ID,
    example=examples.ID,
)
SINCE: Final[Parameter[datetime | None]] = Parameter(
    name="since",
    read=moment,
    default=None,
    description="from this time on",
    schema=_A_TIME,
    example="2026-11-01T00:00:00Z",
)
UNTIL: Final[Parameter[datetime | None]] = Parameter(
    name="until",
    read=moment,
    default=None,
    description="before this time",
    schema=_A_TIME,
    example="2026-12-01T00:00:00Z",
)
APP: Final[Parameter[str | None]] = Parameter(
    name="app",
    read=_hex_of(AppId),
    default=None,
    description="of this app, by its id",
    schema={"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"},
    example=examples.APP_ID,
)
OF_IMAGE: Final[Parameter[str | None]] = Parameter(
    name="image",
    read=name,
    default=None,
    description="of this image, by its name",
    schema=_TEXT,
    example=examples.IMAGE,
)
CHIP: Final[Parameter[str | None]] = Parameter(
    name="chip",
    read=_hex_of(ChipId),
    default=None,
    description="of this chip, by its id",
    schema={"type": "string", "pattern": "^[0-9a-f]{128}$"},
    example=examples.CHIP,
)
OUTCOME: Final[Parameter[Outcome | None]] = Parameter(
    name="outcome",
    read=word_of(Outcome),
    default=None,
    description="what became of it",
    schema={"type": "string", "enum": list(Outcome)},
    example="refused",
)
CODE: Final[Parameter[str | None]] = Parameter(
    name="code",
    read=_code,
    default=None,
    description="with this code of a refusal",
    schema={"type": "string", "pattern": f"^{_CODE.pattern}$"},
    example="policy-denied",
)
IMAGE: Final[Parameter[str]] = Parameter(
    name="image",
    read=name,
    description="an image's name or os_image_hash",
    schema=_TEXT,
    example=examples.IMAGE,
)
EPOCH: Final[Parameter[int]] = Parameter(
    name="epoch",
    read=_number,
    description="an epoch",
    schema={"type": "integer", "minimum": 1},
    example=1,
)
SINCE_SECONDS: Final[Parameter[timedelta]] = Parameter(
    name="since_seconds",
    read=_seconds,
    default=LATELY,
    description="only guests seen that lately",
    schema={
        "type": "integer",
        "minimum": 1,
        "maximum": LONGEST_SPAN,
        "default": LATELY // timedelta(seconds=1),
    },
    example=604_800,
)
FROM_INDEX: Final[Parameter[int]] = Parameter(
    name="from",
    read=_index,
    default=0,
    description="from this index on: `next` of the page before",
    schema={"type": "integer", "minimum": 0, "default": 0},
    example=1000,
)
KIND: Final[Parameter[EntryKind | None]] = Parameter(
    name="kind",
    read=word_of(EntryKind),
    default=None,
    description="only entries of this kind",
    schema={"type": "string", "enum": list(EntryKind)},
    example="decision",
)
ENTRY: Final[Parameter[int | str]] = Parameter(
    name="entry",
    read=_entry,
    description="an entry's index or id",
    schema={"type": "string", "pattern": f"^(?:{_INDEX.pattern}|{_ID.pattern})$"},
    example="1037",
)
OPERATOR: Final[Parameter[str]] = Parameter(
    name="name", read=name, description="an operator's name", schema=_TEXT, example="alice"
)

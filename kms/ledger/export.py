"""The ledger as a file: JSON lines, so that an auditor can verify it where there is no server.

The first line is the header; a line for each leaf of the checkpoint's tree follows, by index. MACs are not in
it: they say something only to who holds the root key, and the checkpoint vouches for more. Reading verifies
nothing, not even the checkpoint: what was read is handed to `kms.ledger.verifying`, with a verifier key that
the auditor knows from elsewhere. That of the header is only what the file says of itself.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from kms.encoding import b64url
from kms.errors import KmsError
from kms.ledger.entries import SALT_LENGTH
from kms.ledger.sealed_entry import SealedEntry
from kms.ledger.signed_note import MAX_NOTE_LENGTH
from kms.strict_json import Fields, JsonError, compact_json, parse

FORMAT: Final = "attested-kms-ledger/1"
MAX_ENTRY: Final = 2 << 20  # bytes
MAX_LINE: Final = 3 << 20  # bytes; an entry of the greatest length in base64, and the rest
_MAX_KEY: Final = 256  # characters of a verifier key, and of an origin
# Printed where the ledger is verified: nothing that a terminal would obey.
_WORD: Final = re.compile(r"[!-~]*")
_Read = TypeVar("_Read")


class ExportInvalid(KmsError):
    """Not an export, or not a whole one. `detail` names the line."""

    code = "export-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHeader:
    """Of which log it is, its verifier key, a checkpoint (signed note), and how many leaves follow."""

    origin: str
    key: str
    checkpoint: str
    size: int

    def line(self) -> str:
        """Give the first line, with its newline."""
        return _line(
            {
                "format": FORMAT,
                "origin": self.origin,
                "key": self.key,
                "checkpoint": self.checkpoint,
                "size": self.size,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedLeaf:
    """A leaf, the place at which its entry was recorded, and the entry; when read, its MAC is empty."""

    index: int
    place: int
    entry: SealedEntry

    def line(self) -> str:
        """Give the leaf's line, with its newline.

        Raises:
            ValueError: an entry of more than `MAX_ENTRY` bytes.

        """
        entry = self.entry
        if len(entry.entry) > MAX_ENTRY:
            raise ValueError(f"an entry of more than {MAX_ENTRY} bytes")
        return _line(
            {
                "index": self.index,
                "place": self.place,
                "id": entry.id,
                "kind": entry.kind,
                "server": entry.server,
                "salt": b64url(entry.salt),
                "entry": b64url(entry.entry),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export as it is read: the header, and its leaves, each read when it is asked for.

    The leaves raise `ExportInvalid` where they are not `header.size` lines of that form, by index from 0.
    """

    header: ExportHeader
    leaves: Iterator[ExportedLeaf]


def read_export(lines: Iterable[bytes]) -> Export:
    """Read an export from its lines, each with its newline, as a file in binary mode gives them.

    Raises:
        ExportInvalid: the first line is not a header of this format.

    """
    rest = iter(lines)
    header = _read(next(rest, b""), 1, _header)
    return Export(header=header, leaves=_leaves(rest, header.size))


def _leaves(lines: Iterator[bytes], size: int) -> Iterator[ExportedLeaf]:
    index = -1
    for index, line in enumerate(lines):
        number = index + 2
        if index == size:
            raise ExportInvalid(f"line {number}: more than the {size} leaves that the header announces")
        leaf = _read(line, number, _leaf)
        if leaf.index != index:
            raise ExportInvalid(f"line {number}: leaf {leaf.index}, where {index} is expected")
        yield leaf
    if index + 1 < size:
        raise ExportInvalid(f"line {index + 3}: missing, of {size} leaves that the header announces")


def _read(line: bytes, number: int, read: Callable[[Fields], _Read]) -> _Read:
    if len(line) > MAX_LINE or not line.endswith(b"\n"):
        raise ExportInvalid(f"line {number}: missing, longer than {MAX_LINE} bytes, or without its newline")
    try:
        fields = Fields(parse(line), "line")
        value = read(fields)
        fields.end()
    except JsonError as error:
        raise ExportInvalid(f"line {number}: {error}") from None
    return value


def _header(fields: Fields) -> ExportHeader:
    if fields.text("format", at_most=_MAX_KEY) != FORMAT:
        fields.fail(f"`format` is not {FORMAT}")
    return ExportHeader(
        origin=_word(fields, "origin", _MAX_KEY),
        key=_word(fields, "key", _MAX_KEY),
        checkpoint=fields.text("checkpoint", at_most=MAX_NOTE_LENGTH),
        size=fields.integer("size"),
    )


def _leaf(fields: Fields) -> ExportedLeaf:
    salt = fields.base64("salt", at_most=SALT_LENGTH)
    if len(salt) != SALT_LENGTH:
        fields.fail(f"`salt` is not {SALT_LENGTH} bytes")
    entry = SealedEntry(
        kind=_word(fields, "kind", 16),
        id=_word(fields, "id", 64),
        server=_word(fields, "server", 64, at_least=0),  # of before there were names: none
        salt=salt,
        entry=fields.base64("entry", at_most=MAX_ENTRY),
        mac=b"",
    )
    return ExportedLeaf(index=fields.integer("index"), place=fields.integer("place", minimum=1), entry=entry)


def _word(fields: Fields, name: str, at_most: int, *, at_least: int = 1) -> str:
    word = fields.text(name, at_most=at_most)
    if not _WORD.fullmatch(word) or len(word) < at_least:
        fields.fail(f"`{name}` is not printable ASCII without spaces")
    return word


def _line(members: dict[str, str | int]) -> str:
    return compact_json(members).decode("ascii") + "\n"

"""Finds secrets where they do not belong: in bytes of any kind, in every form that software writes bytes in.

A secret is looked for by its pieces of 16 bytes, so that any 31 bytes of it are found too. No 16 random
bytes are anywhere by chance.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kms.encoding import b64url

PIECE: Final = 16


class Found(NamedTuple):
    """Which secret is where, and how it is written there."""

    secret: str
    form: str
    place: str


def forms(piece: bytes) -> Iterator[tuple[str, bytes]]:
    """Give every way in which a piece may have been written, by name."""
    yield "raw", piece
    yield "hex", piece.hex().encode()
    yield "HEX", piece.hex().upper().encode()
    yield "hex with colons", piece.hex(":").encode()
    for offset in range(3):
        # What the characters are depends on where among three the piece begins; those that depend on its
        # neighbours too are cut off.
        encoded = base64.b64encode(bytes(offset) + piece)
        whole = encoded[(offset * 8 + 5) // 6 : (offset + len(piece)) * 8 // 6]
        yield f"base64 +{offset}", whole
        yield f"base64url +{offset}", whole.translate(bytes.maketrans(b"+/", b"-_"))
    yield "repr", repr(piece)[2:-1].encode()
    yield "repr of bytearray", repr(bytearray(piece))[12:-2].encode()
    yield "JSON", json.dumps(piece.decode("latin-1"))[1:-1].encode()
    yield "UTF-8", piece.decode("latin-1").encode()
    yield "list of numbers", ", ".join(map(str, piece)).encode()
    yield "escaped repr", json.dumps(repr(piece)[2:-1])[1:-1].encode()


@dataclass(frozen=True)
class Canaries:
    """Secrets by name, each of at least 16 bytes."""

    secrets: Mapping[str, bytes]

    def find(self, places: Iterable[tuple[str, bytes]]) -> list[Found]:
        """Give each secret that is in one of the places; once for each form."""
        needles = self._needles()
        return [
            Found(secret, form, place)
            for place, content in places
            for (secret, form), pieces in needles.items()
            if any(piece in content for piece in pieces)
        ]

    def _needles(self) -> dict[tuple[str, str], set[bytes]]:
        needles: dict[tuple[str, str], set[bytes]] = {}
        for name, secret in self.secrets.items():
            assert len(secret) >= PIECE, name
            for piece in _pieces(secret):
                for form, written in forms(piece):
                    needles.setdefault((name, form), set()).add(written)
            # As keys are written in a payload, before that is written in an envelope.
            for piece in _pieces(b64url(secret).encode()):
                for form, written in forms(piece):
                    needles.setdefault((name, f"{form} of base64url"), set()).add(written)
        return needles


def _pieces(secret: bytes) -> set[bytes]:
    """Cut a secret up; the last piece ends where the secret does, if there is no whole one left."""
    starts = {*range(0, len(secret) - PIECE + 1, PIECE), len(secret) - PIECE}
    return {secret[start : start + PIECE] for start in starts}

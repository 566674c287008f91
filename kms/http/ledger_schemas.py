"""The shapes of `/v1/ledger`, for the OpenAPI document."""

from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from kms.http import examples
from kms.http.schemas import Shape

_ORIGIN: Final = "attested-kms/v1/ledger/0c41b9e2a77d5f36"
_KEY: Final = f"{_ORIGIN}+5d1f0c77+AWpXk0pS8m1yG0aX4nQm8o8l2y3nJrQdQ0wq6d7kq3bC"
_HASH: Final = "W8sZ3tqDkQ1wG9uJ0xVbq0i7qv9YtJ6l2m4n5o6p7q8"
_NOTE: Final = f"{_ORIGIN}\n1042\n…\n\n\u2014 {_ORIGIN} …\n"


class LedgerAnswer(Shape):
    """The ledger's key, and the KMS identity's signature over it."""

    origin: str = Field(description="the first line of its checkpoints, and the name of its key")
    key: str = Field(description="verifier key (c2sp.org/signed-note)")
    size: int = Field(description="entries in the newest checkpoint")
    payload: str = Field(description='base64url of the RFC 8785 form of {"key","origin"}')
    signature: str = Field(description="Ed25519 over attested-kms/v1/ledger-key, 0x00, payload")
    identity: str = Field(description="of this public key")

    example: ClassVar[dict[str, Any]] = {
        "origin": _ORIGIN,
        "key": _KEY,
        "size": 1042,
        "payload": "eyJrZXkiOi…",
        "signature": "3vK2…",
        "identity": examples.PUBLIC_KEY,
    }


class ProofAnswer(Shape):
    """The proof that an entry is in the ledger."""

    release_id: str
    entry_sha256: str = Field(description="SHA-256 of salt and entry, hex: as in the receipt")
    index: int = Field(description="of the leaf, from 0")
    size: int = Field(description="of the checkpoint's tree")
    inclusion: list[str] = Field(description="hashes of RFC 6962 section 2.1.1, base64url")
    checkpoint: str = Field(description="the signed note")

    example: ClassVar[dict[str, Any]] = {
        "release_id": examples.ID,
        "entry_sha256": "7c" * 32,
        "index": 1037,
        "size": 1042,
        "inclusion": [_HASH, _HASH, _HASH],
        "checkpoint": _NOTE,
    }


class LedgerEntryAnswer(Shape):
    """An entry, byte for byte. All but the first two are null where somebody removed it from the record."""

    index: int | None = Field(description="of its leaf, from 0; null before the next checkpoint")
    place: int = Field(description="in the order of recording, from 1")
    id: str | None = Field(description="release id, or id of an operator's action")
    kind: Literal["decision", "action"] | None
    server: str | None = Field(description="the server that recorded it")
    salt: str | None = Field(description="16 bytes, base64url")
    entry: str | None = Field(description="its exact bytes, base64url: RFC 8785 form of a JSON object")

    example: ClassVar[dict[str, Any]] = {
        "index": 1037,
        "place": 1038,
        "id": examples.ID,
        "kind": "decision",
        "server": "kms-1",
        "salt": "q83vEjRWeJASNFZ4kBI0Vg",
        "entry": "eyJib290X2luZm8iOi…",
    }


class LedgerEntriesAnswer(Shape):
    """Entries, by index."""

    entries: list[LedgerEntryAnswer]
    next: int | None = Field(description="`from` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"entries": [LedgerEntryAnswer.example], "next": 1038}

"""A whole root outside of its provider, as backups keep it, and what can be said of it without a secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self

from kms.encoding import b64url, from_whole_seconds, whole_seconds
from kms.keys.check_value import CHECK_VALUE_LENGTH, check_value
from kms.keys.dstack import ROOT_LENGTH, DstackRoots
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.identity import Identity
from kms.keys.key_history import KeyHistory, read_adopted, read_generations
from kms.keys.root_messages import (
    FOUNDING_EPOCH,
    MAX_EPOCHS,
    SECRET_LENGTH,
    Mode,
    check_message,
    entries_message,
    identity_message,
    root_prf,
    rows_message,
)
from kms.keys.signed import read_public_key
from kms.strict_json import Fields, JsonValue

_FOUNDING_GENERATION: Final = 1
_DIGEST_LENGTH: Final = 32
_K256_LENGTH: Final = 33  # SEC 1, compressed


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackMarks:
    """What a dstack KMS publishes: SHA-256 (32 bytes) of its CA's key, and its secp256k1 key (33 bytes)."""

    ca_fingerprint: bytes
    k256_public_key: bytes

    @classmethod
    def of(cls, roots: DstackRoots) -> Self:
        """Give those of imported roots."""
        return cls(ca_fingerprint=roots.ca_fingerprint, k256_public_key=roots.k256_public_key)

    def to_json(self) -> dict[str, JsonValue]:
        """Give both as hex."""
        return {"ca_spki_sha256": self.ca_fingerprint.hex(), "k256_public_key": self.k256_public_key.hex()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What can be said of a root without a secret.

    `created_at` is when the copy was made, in whole seconds; `identity` is the public key (32 bytes) of
    generation 1; `check_values` (32 bytes each) are those of the epochs 1, 2, … without a gap. `history` says
    more of those that were adopted: of all of them, or of all but the last ones.
    """

    mode: Mode
    created_at: datetime
    identity: bytes
    check_values: Mapping[int, bytes]
    history: KeyHistory
    dstack: DstackMarks | None

    @property
    def plaintext_length(self) -> int:
        """How many bytes the secrets of such a root have, joined."""
        return len(self.check_values) * SECRET_LENGTH + (0 if self.dstack is None else 2 * ROOT_LENGTH)

    def to_json(self) -> dict[str, JsonValue]:
        """Give the members of a document."""
        return {
            "mode": self.mode.value,
            "created_at": whole_seconds(self.created_at),
            "identity": b64url(self.identity),
            "later_generations": self.history.generations_json(),
            "epochs": [
                {
                    "epoch": epoch,
                    "check_value": b64url(value),
                    "adopted": self.history.adopted_json(epoch),
                }
                for epoch, value in self.check_values.items()
            ],
            "dstack": None if self.dstack is None else self.dstack.to_json(),
        }

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read these members, none of it proven. Errors are those of `fields`."""
        check_values, adopted = _read_epochs(fields)
        return cls(
            mode=fields.convert("mode", fields.text("mode", at_most=32), Mode.parse),
            created_at=fields.convert(
                "created_at", fields.text("created_at", at_most=32), from_whole_seconds
            ),
            identity=read_public_key(fields, "identity"),
            check_values=check_values,
            history=KeyHistory(adopted, read_generations(fields, "later_generations")),
            dstack=fields.nullable("dstack", lambda name: _read_dstack(fields.object(name))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCopy:
    """The secret (32 bytes) of each epoch, 1, 2, …, and the imported roots of a dstack KMS, if there are any.

    Raises:
        ValueError: not such secrets, or a gap.

    """

    mode: Mode
    secrets: Mapping[int, bytes] = field(repr=False)
    dstack: DstackRoots | None = None

    def __post_init__(self) -> None:
        _require_epochs(list(self.secrets))
        if any(len(secret) != SECRET_LENGTH or not any(secret) for secret in self.secrets.values()):
            raise ValueError(f"an epoch's secret has {SECRET_LENGTH} bytes, not all zero")

    def described(self, created_at: datetime, history: KeyHistory) -> Description:
        """Say what it is; the secrets say nothing of its `history`."""
        founding = self.secrets[FOUNDING_EPOCH]
        return Description(
            mode=self.mode,
            created_at=created_at,
            identity=Identity.from_prf(root_prf(founding, identity_message(_FOUNDING_GENERATION))).public_key,
            check_values=self.check_values(),
            history=history,
            dstack=None if self.dstack is None else DstackMarks.of(self.dstack),
        )

    def check_values(self) -> dict[int, bytes]:
        """Give the key-check value (32 bytes) of each epoch."""
        return {
            epoch: check_value(root_prf(secret, check_message(self.mode, epoch)))
            for epoch, secret in self.secrets.items()
        }

    def entries_prf(self) -> bytes:
        """Give the PRF's output (64 bytes) that entries of the ledger are sealed with."""
        return root_prf(self.secrets[FOUNDING_EPOCH], entries_message())

    def rows_prf(self) -> bytes:
        """Give what the MACs of database rows are made with (`kms.keys.row_seal.RowSeal`), 64 bytes."""
        return root_prf(self.secrets[FOUNDING_EPOCH], rows_message())

    def plaintext(self) -> bytearray:
        """Join the secrets, oldest first, and the imported roots, for a caller that overwrites them."""
        joined = bytearray().join(self.secrets.values())
        if self.dstack is not None:
            joined += self.dstack.ca
            joined += self.dstack.k256
        return joined

    @classmethod
    def of(cls, plaintext: bytearray, description: Description) -> Self:
        """Take apart what `plaintext` joined, and make sure that it is the root that is described.

        Raises:
            ValueError: it is not.

        """
        if len(plaintext) != description.plaintext_length:
            raise ValueError("another length than that of its epochs")
        starts = range(0, len(plaintext), SECRET_LENGTH)  # dstack's roots are as long
        pieces = [bytes(plaintext[at : at + SECRET_LENGTH]) for at in starts]
        count = len(description.check_values)
        copy = cls(
            mode=description.mode,
            secrets=dict(zip(description.check_values, pieces[:count], strict=True)),
            dstack=None if description.dstack is None else DstackRoots(*pieces[count:]),
        )
        if copy.described(description.created_at, description.history) != description:
            raise ValueError("the secrets are not those of the root that is described")
        return copy


def _read_epochs(fields: Fields) -> tuple[dict[int, bytes], EpochTable]:
    """Read the check value of each epoch, and what is said of those that were adopted."""
    values: list[tuple[int, bytes]] = []
    adopted: list[Epoch] = []
    for item in fields.array("epochs", at_least=1, at_most=MAX_EPOCHS):
        epoch = Fields(item, "epoch")
        number, value = epoch.integer("epoch"), epoch.base64("check_value", at_most=CHECK_VALUE_LENGTH)
        said = epoch.nullable("adopted", epoch.object)
        epoch.end()
        if len(value) != CHECK_VALUE_LENGTH:
            fields.fail(f"a check value has {CHECK_VALUE_LENGTH} bytes")
        values.append((number, value))
        if said is not None:
            adopted.append(read_adopted(number, said))
    try:
        _require_epochs([number for number, _ in values])
        return dict(values), EpochTable(tuple(adopted))
    except ValueError as error:
        fields.fail(str(error))


def _read_dstack(fields: Fields) -> DstackMarks:
    marks = DstackMarks(
        ca_fingerprint=fields.hex("ca_spki_sha256", bytes),
        k256_public_key=fields.hex("k256_public_key", bytes),
    )
    fields.end()
    if len(marks.ca_fingerprint) != _DIGEST_LENGTH or len(marks.k256_public_key) != _K256_LENGTH:
        fields.fail("a digest or public key of another length")
    return marks


def _require_epochs(epochs: list[int]) -> None:
    # A gap is a lost secret, and without the first one there is no identity.
    if not 1 <= len(epochs) <= MAX_EPOCHS or epochs != list(range(FOUNDING_EPOCH, len(epochs) + 1)):
        raise ValueError("the epochs must be 1, 2, … without a gap")

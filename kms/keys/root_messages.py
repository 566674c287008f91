"""Every message that the root PRF is ever asked about, on one page.

The root of an epoch only ever computes ``HMAC-SHA-512(root, label || 0x00 || frame(fields))``. The labels
differ, so no output for one purpose can be had by asking for another: a stored key-check value says
nothing about an app's secret, and no app id can be chosen that gives the identity's seed.
"""

import hmac
from enum import StrEnum
from typing import Final, Self

from kms.identifiers import AppId
from kms.labels import (
    ROOT_APP,
    ROOT_APPS_CA,
    ROOT_CHALLENGE,
    ROOT_CHECK,
    ROOT_DEVELOPMENT,
    ROOT_ENTRIES,
    ROOT_FOREIGN,
    ROOT_IDENTITY,
    ROOT_LEDGER,
    ROOT_ROWS,
    frame,
    labelled,
)

PRF_LENGTH: Final = 64  # HMAC-SHA-512, the output of `kms.ports.RootKey.prf`
SECRET_LENGTH: Final = 32  # bytes of one epoch's root, where we make it; an HSM's keys have 64
MAX_EPOCHS: Final = 4096  # one a day for eleven years; a document of that many is still read

# What outlives rotation (the identity in guests' measured images, challenges on their way) is asked of the
# first epoch for ever. So the first root may be retired for releases, but never deleted.
FOUNDING_EPOCH: Final = 1

_MAX_INTEGER: Final = 2**53 - 1  # what JSON carries exactly: RFC 7493 section 2.2


class Mode(StrEnum):
    """What a root secret and a database are marked with when they are made."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a mode. Raises `ValueError`, which does not repeat the text."""
        try:
            return cls(text)
        except ValueError:
            raise ValueError("a mode is development or production") from None


def root_prf(secret: bytes | bytearray, message: bytes) -> bytes:
    """Give HMAC-SHA-512 (64 bytes) of a message under an epoch's root, for those who have it."""
    return hmac.digest(secret, message, "sha512")


def app_message(app_id: AppId) -> bytes:
    """Ask for the secret of one app in the epoch that the PRF is asked under."""
    return labelled(ROOT_APP, frame(app_id))


def identity_message(generation: int) -> bytes:
    """Ask `FOUNDING_EPOCH` for the KMS identity of a generation (1, 2, …); epochs do not touch it."""
    return labelled(ROOT_IDENTITY, frame(integer(generation)))


def challenge_message() -> bytes:
    """Ask `FOUNDING_EPOCH` for the key that authenticates challenges."""
    return labelled(ROOT_CHALLENGE, frame())


def rows_message() -> bytes:
    """Ask `FOUNDING_EPOCH` for the key that authenticates database rows that give power."""
    return labelled(ROOT_ROWS, frame())


def apps_ca_message() -> bytes:
    """Ask `FOUNDING_EPOCH` for the key of the CA of all apps' certificates; epochs do not touch it."""
    return labelled(ROOT_APPS_CA, frame())


def foreign_message() -> bytes:
    """Ask `FOUNDING_EPOCH` for the key under which another KMS's imported roots are kept."""
    return labelled(ROOT_FOREIGN, frame())


def entries_message() -> bytes:
    """Give the message whose PRF output (its first 32 bytes) is the MAC key of the ledger's entries."""
    return labelled(ROOT_ENTRIES, frame())


def ledger_message() -> bytes:
    """Give the message whose PRF output (its first 32 bytes) seeds the key that signs checkpoints."""
    return labelled(ROOT_LEDGER, frame())


def in_development(message: bytes) -> bytes:
    """Turn any of these messages into the one that a development server asks of a root without a mark.

    A key in Vault or an HSM does not say what it was made for. A development server that is pointed at
    production's by accident would hand production's keys to simulated guests; asking otherwise, it cannot.
    """
    return labelled(ROOT_DEVELOPMENT, frame(message))


def check_message(mode: Mode, epoch: int) -> bytes:
    """Ask for the key-check value of an epoch; the mode is in it, so that a changed mark is noticed."""
    return labelled(ROOT_CHECK, frame(mode.encode("ascii"), integer(epoch)))


def integer(value: int) -> bytes:
    """Encode a positive integer (an epoch, a generation) as a field: 8 bytes, big-endian.

    Raises:
        ValueError: zero, negative, or beyond 2^53 - 1.

    """
    if not 1 <= value <= _MAX_INTEGER:
        raise ValueError("an epoch or generation is from 1 to 2^53 - 1")
    return value.to_bytes(8, "big")


def require_prf_output(output: bytes) -> bytes:
    """Give the PRF output back if it has the length of one.

    Raises:
        ValueError: another length, as from a provider configured for another hash.

    """
    if len(output) != PRF_LENGTH:
        raise ValueError(f"a root PRF output has {PRF_LENGTH} bytes, not {len(output)}")
    return output

"""Revocation lists (CRLs): an ARK names the ASKs, ASVKs and ARKs that must not be believed any more.

AMD's endorsement certificates all carry serial number 0, so no list can name one of them: single chips are
denied by policy (`kind: revoked`). Source: RFC 5280 section 5; VCEK specification 57230.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from kms.checks import Check
from kms.snp.certificate import Certificate
from kms.snp.chain import Chain
from kms.snp.kds_paths import Line


class RevocationMode(StrEnum):
    """What `KMS_CRL` says: must there be a list, is one used where there is one, or are lists not asked."""

    REQUIRE = "require"
    WHEN_AVAILABLE = "when-available"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A parsed list. Parsing says nothing about trust: `check_revocation` asks who signed it.

    `line` is the line at whose KDS path the list was found; None where it came without one (a host's table).
    """

    der: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    issuer_name: str
    number: int | None
    this_update: datetime
    next_update: datetime | None
    serials: frozenset[int] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    signed_with_pss_sha384: bool
    line: Line | None = None

    def is_signed_by(self, ark: Certificate) -> bool:
        """Say whether `ark`'s RSA key signed this list with RSA-PSS and SHA-384."""
        raise NotImplementedError

    def replaces(self, older: "RevocationList") -> bool:
        """Say whether this list is newer than another of its ARK and line: by number, else by date."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """How revocation is judged (`KMS_CRL`, `KMS_CRL_MAX_AGE`), and the lists that are known, of any ARK."""

    mode: RevocationMode
    max_age: timedelta
    lists: tuple[RevocationList, ...] = ()


def check_revocation(chain: Chain, revocation: Revocation, now: datetime) -> tuple[Check, ...]:
    """Check the chain's authority and ARK against the lists that its ARK signed."""
    raise NotImplementedError

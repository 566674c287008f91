"""Revocation lists (CRLs): an ARK names the ASKs, ASVKs and ARKs that must not be believed any more.

AMD's endorsement certificates all carry serial number 0, so no list can name one of them: single chips are
denied by policy (`kind: revoked`). Source: RFC 5280 section 5; VCEK specification 57230.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from kms.checks import Check
from kms.snp.chain import Chain
from kms.snp.endorsed import line_of
from kms.snp.revocation_list import RevocationList, load_revocation_list

__all__ = [
    "LIST_MISSING",
    "REVOKED",
    "Revocation",
    "RevocationList",
    "RevocationMode",
    "check_revocation",
    "load_revocation_list",
]

REVOKED: Final = "certificate-revoked"
LIST_MISSING: Final = "revocation-list-missing"

_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)


class RevocationMode(StrEnum):
    """What `KMS_CRL` says: must there be a list, is one used where there is one, or are lists not asked."""

    REQUIRE = "require"
    WHEN_AVAILABLE = "when-available"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """How revocation is judged (`KMS_CRL`, `KMS_CRL_MAX_AGE`), and the lists that are known, of any ARK."""

    mode: RevocationMode
    max_age: timedelta
    lists: tuple[RevocationList, ...] = ()


def check_revocation(chain: Chain, revocation: Revocation, now: datetime) -> tuple[Check, ...]:
    """Check the chain's authority and ARK against the lists that its ARK signed.

    Only lists of the pinned ARK count: nobody else, not even its ASK, can revoke or vouch for anything. A
    serial number that any of them names is revoked, however old the list and whatever its line: an old list
    may no longer say who is good, but whom it names stays named. The list that a mode may require is another
    question: of the chain's line, or from a table that names none, and current.
    """
    if revocation.mode is RevocationMode.OFF:
        return (Check.of("revocation-list", True, "revocation lists are not asked for"),)
    known = _signed_lists(chain, revocation.lists)
    return (_check_not_revoked(chain, known), _check_list(chain, revocation, known, now))


def _signed_lists(chain: Chain, lists: Iterable[RevocationList]) -> list[RevocationList]:
    ark = chain.ark
    if ark is None or chain.product is None:  # not a pinned root: what it says counts for nothing
        return []
    return [each for each in lists if each.is_signed_by(ark)]


def _check_not_revoked(chain: Chain, known: list[RevocationList]) -> Check:
    issued = [certificate for certificate in (chain.authority, chain.ark) if certificate is not None]
    revoked = [
        certificate.subject_name
        for certificate in issued
        if any(certificate.serial in each.serials for each in known)
    ]
    detail = f"revoked: {', '.join(revoked)}" if revoked else "no known list names the authority or the root"
    return Check.of("not-revoked", not revoked, detail, reason=REVOKED)


def _check_list(chain: Chain, revocation: Revocation, known: list[RevocationList], now: datetime) -> Check:
    line = line_of(chain)
    newest: RevocationList | None = None
    current: RevocationList | None = None
    for each in known:
        if each.line is None or each.line == line:
            newest = _newer(each, newest)
            if each.this_update <= now <= taken_until(each, revocation.max_age):
                current = _newer(each, current)
    shown = current or newest
    said = "none is known" if shown is None else _describe(shown, revocation.max_age, now)
    good = current is not None or revocation.mode is not RevocationMode.REQUIRE
    return Check.of("revocation-list", good, f"revocation list: {said}", reason=LIST_MISSING)


def _newer(one: RevocationList, other: RevocationList | None) -> RevocationList:
    return one if other is None or one.replaces(other) else other


def taken_until(known: RevocationList, max_age: timedelta) -> datetime:
    """Give the last moment at which a list is still taken; without a next update it is stale at once."""
    try:
        return (known.next_update or known.this_update) + max_age
    except OverflowError:
        return _END_OF_TIME


def _describe(known: RevocationList, max_age: timedelta, now: datetime) -> str:
    issued = f"issued {known.this_update.isoformat()}"
    if known.next_update is None:
        issued, due = f"{issued}, no next update named", known.this_update
    else:
        issued, due = f"{issued}, next update {known.next_update.isoformat()}", known.next_update
    until = taken_until(known, max_age)
    if known.this_update > now:
        return f"not valid yet: {issued}"
    if now > until:
        return f"too old since {until.isoformat()}: {issued}"
    if now > due:
        return f"stale, accepted until {until.isoformat()}: {issued}"
    return issued

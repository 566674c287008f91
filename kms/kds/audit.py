"""What a store holds, judged again as if it had just come: the database is no proof of anything."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias

from kms.checks import failures
from kms.kds.judging import Judge, No
from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.chain import Chain, build_chain
from kms.snp.revocation import REVOKED, Revocation, RevocationMode, check_revocation, taken_until
from kms.snp.revocation_list import RevocationList
from kms.snp.roots import TrustedRoots

Stored: TypeAlias = StoredCertificate | StoredRevocationList


class Freshness(StrEnum):
    """How old a revocation list is, by its next update and `KMS_CRL_MAX_AGE`."""

    FRESH = "fresh"
    STALE = "stale"  # past its next update, and still taken
    TOO_OLD = "too-old"  # whom it names is still revoked; it vouches for nobody


@dataclass(frozen=True, slots=True)
class Judged:
    """What is stored, and everything that is wrong with it: nothing, usually."""

    stored: Stored
    problems: tuple[str, ...]


def freshness(known: RevocationList, max_age: timedelta, now: datetime) -> Freshness:
    """Say how old a list is."""
    if now > taken_until(known, max_age):
        return Freshness.TOO_OLD
    return Freshness.FRESH if now <= (known.next_update or known.this_update) else Freshness.STALE


async def judge_all(
    certificates: Sequence[StoredCertificate],
    lists: Sequence[StoredRevocationList],
    roots: TrustedRoots,
    revocation: Revocation,
    now: datetime,
) -> tuple[Judged, ...]:
    """Judge everything, in the order given, lists last.

    Revoked is revoked even where `KMS_CRL=off` would not ask; a list may be too old, and a line may be
    without one, only as far as the mode cares.
    """
    authorities = [each.certificate for each in certificates if each.role is not Role.LEAF]
    judge = Judge(roots=roots, now=now, source="store").knowing(authorities)
    known = replace(revocation, lists=tuple(each.list for each in lists))

    def work() -> tuple[Judged, ...]:
        return (
            *(Judged(each, _of_certificate(each, judge, known)) for each in certificates),
            *(Judged(each, _of_list(each, judge, known)) for each in lists),
        )

    return await asyncio.to_thread(work)


def _of_certificate(stored: StoredCertificate, judge: Judge, revocation: Revocation) -> tuple[str, ...]:
    judged = judge.certificate(stored.certificate)
    if isinstance(judged, No):
        return (judged.reason,)
    if replace(judged, source=stored.source) != stored:
        return ("it is stored under another line, chip, provider or TCB than it is for",)
    return _revoked(stored, judge, revocation)


def _revoked(stored: StoredCertificate, judge: Judge, revocation: Revocation) -> tuple[str, ...]:
    certificate = stored.certificate
    if stored.role is Role.LEAF:
        chain = build_chain(certificate, judge.authorities, judge.roots)
    else:
        issuer = next(each for each in judge.arks() if certificate.is_signed_by(each))
        # Its own place in a chain; of an ARK both places.
        product = stored.line.product
        chain = Chain(leaf=certificate, authority=certificate, ark=issuer, product=product)
    asked = revocation.mode
    mode = RevocationMode.WHEN_AVAILABLE if asked is RevocationMode.OFF else asked
    checks = check_revocation(chain, replace(revocation, mode=mode), judge.now)
    # Whether there is a current list is asked of what it would serve, not of the authorities.
    counted = checks if stored.role is Role.LEAF else [each for each in checks if each.reason == REVOKED]
    return tuple(check.detail for check in counted if failures([check]))


def _of_list(stored: StoredRevocationList, judge: Judge, revocation: Revocation) -> tuple[str, ...]:
    judged = judge.revocation_list(stored.list, stored.line.signer)
    if isinstance(judged, No):
        return (judged.reason,)
    if (judged.line, judged.ark) != (stored.line, stored.ark):
        return ("it is stored under another line or ARK than it is for",)
    age = freshness(stored.list, revocation.max_age, judge.now)
    if age is Freshness.TOO_OLD and revocation.mode is not RevocationMode.OFF:
        until = taken_until(stored.list, revocation.max_age)
        return (f"too old since {until:%Y-%m-%d %H:%M} UTC",)
    return ()

"""What of an answer may be kept: it chains to a pinned root, and it is what was asked for.

An answer comes from whoever sits at the other end, over plain http too. Only signatures speak for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kms.errors import MalformedEvidence
from kms.kds.answers import chain_of
from kms.kds.judging import Judge
from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.certificate import Certificate
from kms.snp.endorsement import load_any, load_pem
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, VcekOf
from kms.snp.revocation_list import load_revocation_list

UNREADABLE = "unreadable"
UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Unacceptable:
    """Why an answer must not be kept. `authentic`: AMD signed it, and it is not what was asked for."""

    kind: str
    authentic: bool = False


def accept_vcek(body: bytes, wanted: VcekOf, judge: Judge) -> StoredCertificate | Unacceptable:
    """Read the certificate of a chip at a TCB. The judge must know the line's chain."""
    try:
        found = load_any(body)
    except MalformedEvidence:
        return Unacceptable(UNREADABLE)
    judged = judge.certificate(found[0])
    if not isinstance(judged, StoredCertificate):
        return Unacceptable(UNVERIFIED)
    line = Line(Signer.VCEK, wanted.product)
    same = (judged.line, judged.role, judged.chip_id, judged.tcb) == (
        line,
        Role.LEAF,
        wanted.chip_id,
        wanted.tcb,
    )
    return judged if same else Unacceptable("wrong-certificate", authentic=True)


def accept_chain(body: bytes, line: Line, judge: Judge) -> tuple[StoredCertificate, ...] | Unacceptable:
    """Read the ASK or ASVK of a line and its ARK from PEM; what else stands there is left out."""
    try:
        found = load_pem(body)
    except MalformedEvidence:
        return Unacceptable(UNREADABLE)
    judge = judge.knowing(found)
    verified = [each for each in map(judge.certificate, found) if isinstance(each, StoredCertificate)]
    chain = chain_of(line, verified)
    if chain is None:
        return Unacceptable(UNVERIFIED)
    return tuple(each for each in verified if _is_in(each.certificate, chain))


def accept_list(
    body: bytes, line: Line, known: Iterable[StoredRevocationList], judge: Judge
) -> StoredRevocationList | Unacceptable:
    """Read the revocation list of a line. The judge must know the ARK; `known` are the lists that we have.

    An older list than ours, genuine as it is, would hide what was revoked since: whoever sits between could
    replay it (RFC 5280, section 5.2.3, numbers lists for that).
    """
    try:
        found = load_revocation_list(body, line=line)
    except MalformedEvidence:
        return Unacceptable(UNREADABLE)
    if found.this_update > judge.now:
        # It may be our clock that is wrong: nothing against the service.
        return Unacceptable("from-the-future", authentic=True)
    judged = judge.revocation_list(found, line.signer)
    if not isinstance(judged, StoredRevocationList):
        return Unacceptable(UNVERIFIED)
    if judged.line != line:
        return Unacceptable("wrong-list", authentic=True)
    ours = next((each for each in known if (each.ark, each.line) == (judged.ark, line)), None)
    if ours is not None and ours.list.replaces(judged.list):
        return Unacceptable("older-list", authentic=True)
    return judged


def _is_in(certificate: Certificate, chain: tuple[Certificate, ...]) -> bool:
    return any(each.der == certificate.der for each in chain)

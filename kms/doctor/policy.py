"""The policy in force: whether it may be used, what is odd about it, and what of it ends soon."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.policy_store import PolicyStore
from kms.database.recording import Recorder
from kms.doctor.root import founding_identity
from kms.findings import Finding, failed, ok, warning
from kms.keys.root_messages import FOUNDING_EPOCH, entries_message, rows_message
from kms.keys.row_seal import RowSeal
from kms.ledger.sealed_entry import EntrySeal
from kms.packaged import load_advisories
from kms.policy.documents import KINDS, AnyDocument, TcbDocument
from kms.policy.lint import lint
from kms.policy.revision import Revision, documents_of, written
from kms.policy_authority import PolicyAuthority, load_revision
from kms.ports import Clock
from kms.preflight import Checked
from kms.rootkey import CheckedRoot
from kms.settings import Settings

_SOON: Final = timedelta(days=30)
_MOST_SHOWN: Final = 5


async def policy_in_force(
    engine: AsyncEngine, root: CheckedRoot, checked: Checked, settings: Settings, clock: Clock
) -> Iterable[Finding]:
    """Look at what the database says is in force, as a server does before it uses it.

    Raises:
        PolicyUntrusted: it may not be used.
        LedgerUnavailable, RootKeyUnavailable: it cannot be told.

    """
    identity = await founding_identity(root)
    seal = RowSeal(await root.prf(FOUNDING_EPOCH, rows_message()))
    # It records what is changed, which here is nothing.
    recorder = Recorder(EntrySeal(await root.prf(FOUNDING_EPOCH, entries_message())), settings.server_name)
    store = PolicyStore(engine, clock, seal=seal, kms_identity=identity, recorder=recorder)
    head = await store.head()
    if head is None:
        return [failed("policy", "none is in force: no guest gets a key", "kms policy apply brings one")]
    authority = PolicyAuthority(trust=checked.trust, kms_identity=identity)
    await authority.verify(head, await checked.anchor.read(), store)
    revision = await load_revision(head.revision, store)
    files = await store.files(head.revision) or {"policy.yaml": written(documents_of(revision))}
    findings = lint(files, development=settings.development, advisories=load_advisories()).findings
    return [
        ok("policy", f"change {head.sequence}, {head.revision[:19]}…, {len(revision.documents)} documents"),
        _found([str(each) for each in findings]),
        *_ends(revision, clock()),
    ]


def _found(findings: Sequence[str]) -> Finding:
    if not findings:
        return ok("policy-findings", "lint finds nothing")
    return warning("policy-findings", _first(findings), "kms policy lint on the folder lists all of them")


def _ends(revision: Revision, now: datetime) -> Iterator[Finding]:
    """Say which documents are past their date or soon will be: minimum TCBs, and all others."""
    floors = [each for each in revision.documents if isinstance(each, TcbDocument)]
    others = [each for each in revision.documents if not isinstance(each, TcbDocument)]
    yield _expiry("policy-expiry", others, now)
    yield _expiry("tcb-expiry", floors, now)


def _expiry(name: str, documents: Sequence[AnyDocument], now: datetime) -> Finding:
    ending = sorted((each.expires_at, _called(each)) for each in documents if each.expires_at is not None)
    past = [f"{called} since {end:%Y-%m-%d}" for end, called in ending if end <= now]
    if past:
        return failed(name, f"expired: {_first(past)}", "renew expires_at, or remove the document, and apply")
    soon = [f"{called} on {end:%Y-%m-%d}" for end, called in ending if end - now < _SOON]
    if soon:
        return warning(name, f"expires soon: {_first(soon)}", "renew expires_at, and apply")
    return ok(name, f"none of {len(documents)} documents expires within {_SOON.days} days")


def _called(document: AnyDocument) -> str:
    return f"{KINDS[type(document)]} {document.name}"


def _first(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return "; ".join(texts[:_MOST_SHOWN]) + more

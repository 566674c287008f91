"""The ledger and its anchor: what was used last, kept where the owner of the database cannot reach it."""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from kms.anchor import Anchor, FileAnchor
from kms.database.engine import is_shared
from kms.database.ledger import LedgerStore
from kms.doctor.root import founding_identity
from kms.findings import Finding, failed, ok, unknown, warning
from kms.keys.root_messages import FOUNDING_EPOCH, ledger_message
from kms.ledger.ledger_key import derive_checkpoint_key
from kms.ledger_memory import LedgerMemory
from kms.rootkey import CheckedRoot


async def anchored(anchor: Anchor, database_url: str, *, data_dir: Path, new: bool) -> Iterable[Finding]:
    """Look at the anchor; `new` says that the database was never used.

    Raises:
        ConfigurationError: it cannot be used.

    """
    await anchor.require_usable(made_later=data_dir)
    if isinstance(anchor, FileAnchor) and not anchor.path.parent.exists():
        return [ok("anchor", f"{anchor.place} will be made with the data folder")]
    return [await _kept(anchor, new=new), _apart(anchor, database_url)]


async def ledger_in(engine: AsyncEngine, root: CheckedRoot, anchor: Anchor) -> Iterable[Finding]:
    """Look whether the ledger goes on from what the anchor has seen, as a server does before it records.

    Raises:
        LedgerUnavailable: it does not, or that cannot be told.
        RootKeyUnavailable: nor can the ledger's key.

    """
    seed, store = await root.prf(FOUNDING_EPOCH, ledger_message()), LedgerStore(engine)
    key = derive_checkpoint_key(seed, await founding_identity(root))
    memory = LedgerMemory(store, key.verifier_key, anchor)
    await memory.look()
    found = await memory.verify(await store.head())
    return [ok("ledger", f"{found.size} entries in its checkpoint; the anchor has seen {memory.seen.size}")]


async def _kept(anchor: Anchor, *, new: bool) -> Finding:
    head, keys, ledger = await anchor.read(), await anchor.read_keys(), await anchor.read_ledger()
    unused = head is None and ledger is None and keys.epochs == 0
    if new and not unused:
        return failed(
            "anchor",
            f"{anchor.place} knows a KMS that was in use, and the database is new",
            "bring the database back from its backup, or look whether KMS_DATABASE_URL is the right one",
        )
    if new:
        return ok("anchor", f"{anchor.place} and the database are both new")
    if unused:
        return warning(
            "anchor",
            f"{anchor.place} holds nothing yet: the first state that the database shows will be believed",
            "with a KMS that is in use, copy the anchor of another server",
        )
    size = 0 if ledger is None else ledger.size
    change = 0 if head is None else head.sequence
    return ok("anchor", f"{anchor.place} has seen change {change}, {keys.epochs} epochs, {size} entries")


def _apart(anchor: Anchor, database_url: str) -> Finding:
    name = "anchor-apart"
    if not isinstance(anchor, FileAnchor):
        return ok(name, "the anchor is not kept with the database")
    if is_shared(database_url):
        return unknown(
            name,
            "which disk PostgreSQL is on cannot be seen from here",
            f"see that {anchor.place} is on another one, and not in the same backups",
        )
    folders = [anchor.path.parent, Path(make_url(database_url).database or "").parent]
    if all(each.exists() for each in folders) and len({each.stat().st_dev for each in folders}) > 1:
        return ok(name, f"{anchor.place} is on another disk than the database")
    return warning(
        name,
        f"{anchor.place} is on the disk of the database: who puts an old copy of it back, puts back both",
        "set KMS_LEDGER_ANCHOR to a file on another disk",
    )

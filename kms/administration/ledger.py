"""The ledger for those who audit it: entries as they were recorded, and what anybody may have."""

from dataclasses import dataclass
from typing import Final

from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.encoding import b64url
from kms.errors import NotFound
from kms.ledger.sealed_entry import SealedEntry
from kms.ledger_ports import LedgerReader
from kms.ledger_publishing import PublicLedger
from kms.operators import Actor, Permission

_READ: Final = "ledger-read"
_PARTS: Final = ("id", "kind", "server", "salt", "entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAdministration:
    """Implements `kms.administration.office.LedgerWork`."""

    reader: LedgerReader
    public: PublicLedger
    journal: Journal

    async def entries(self, actor: Actor, *, start: int, limit: int, kind: str | None) -> Json:
        """Give entries from an index on; see `LedgerWork.entries`."""
        await self.journal.require(actor, Permission.READ_LEDGER, _READ)
        leaves = await self.reader.leaves(start, limit=limit + 1)
        looked_at = leaves[:limit]
        shown = [
            _item(each.index, each.place, each.entry)
            for each in looked_at
            # One that is gone is of no kind, and must not be overlooked for that.
            if kind is None or each.entry is None or each.entry.kind == kind
        ]
        if shown:
            await self.journal.record(actor, _READ, details={"from": start, "count": len(shown)})
        more = len(leaves) > limit
        return {"entries": [*shown], "next": leaves[limit].index if more else None}

    async def entry(self, actor: Actor, which: int | str) -> Json:
        """Give one entry; see `LedgerWork.entry`."""
        await self.journal.require(actor, Permission.READ_LEDGER, _READ, str(which))
        item = await (self._at(which) if isinstance(which, int) else self._of(which))
        await self.journal.record(actor, _READ, str(which))
        return item

    async def statement(self, _: Actor) -> Json:
        """Give the ledger's key; see `LedgerWork.statement`."""
        return await self.public.statement()

    async def checkpoint(self, _: Actor) -> str:
        """Give the newest checkpoint; see `LedgerWork.checkpoint`."""
        return await self.public.checkpoint()

    async def proof(self, _: Actor, release_id: str) -> Json:
        """Prove that a release is in the ledger; see `LedgerWork.proof`."""
        return await self.public.proof(release_id)

    async def _at(self, index: int) -> Json:
        for leaf in await self.reader.leaves(index, limit=1):
            if leaf.index == index:
                return _item(index, leaf.place, leaf.entry)
        raise NotFound("the ledger has no entry of this index", details={"index": index})

    async def _of(self, entry_id: str) -> Json:
        leaf = await self.reader.leaf_of(entry_id)
        if leaf is not None:
            return _item(leaf.index, leaf.place, leaf.entry)
        recorded = await self.reader.recorded(entry_id)
        if recorded is None:
            raise NotFound("there is nothing of this id in the record", details={"id": entry_id})
        return _item(None, recorded.place, recorded.sealed)


def _item(index: int | None, place: int, entry: SealedEntry | None) -> Json:
    """Give an entry as JSON: its members are null where the record has nothing that a KMS wrote."""
    if entry is None:
        return {"index": index, "place": place, **dict.fromkeys(_PARTS)}
    return {
        "index": index,
        "place": place,
        "id": entry.id,
        "kind": entry.kind,
        "server": entry.server,
        "salt": b64url(entry.salt),
        "entry": b64url(entry.entry),
    }

"""Accepting that the ledger went back: the only way on when the newest database is lost.

What it cannot do is make nobody notice. The entries that are missing were promised to guests by signed
receipts that will never be proven; and whoever keeps an old checkpoint (an auditor, a witness, the anchor of
another server) holds a signature of this KMS over a tree that the ledger no longer goes on from, and will say
that it was cut. The entry that this records tells them when, by whom and why. Of policies and epochs, what
went back is not accepted by this: the anchor knows of them by members of their own.
"""

from dataclasses import dataclass
from typing import Final

from kms.administration.permission import Journal
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.ledger_memory import LedgerMemory, described, load_edge, open_head
from kms.ledger_ports import ROLLED_BACK, LedgerAnchor, LedgerReader, SeenLedger
from kms.operators import Actor, Permission
from kms.strict_json import JsonValue

ACCEPT_ROLLBACK: Final = "ledger-accept-rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRollback:
    """The ledger that was seen, and the one that counts from now on."""

    before: SeenLedger
    after: SeenLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackAcceptance:
    """Works where the anchor is, and nowhere else: each server that has one of its own must be told.

    `key` is the ledger's verifier key.
    """

    ledger: LedgerReader
    key: str
    anchor: LedgerAnchor
    journal: Journal

    async def accept(self, actor: Actor, message: str) -> AcceptedRollback:
        """Set the anchor back to what the database verifiably is, and record that, and why.

        Raises:
            Forbidden: the actor may not.
            ConfigurationError: the ledger did not go back; nothing was changed.
            LedgerUnavailable: the ledger in the database is not one that this KMS made; or the database or
                the anchor does not answer.

        """
        await self.journal.require(actor, Permission.CHANGE_KEYS, ACCEPT_ROLLBACK)
        memory = LedgerMemory(self.ledger, self.key, self.anchor)
        await memory.look()
        head = await self.ledger.head()
        try:
            await memory.verify(head)
        except LedgerUnavailable as error:
            if error.reason != ROLLED_BACK:
                raise
        else:
            raise ConfigurationError(
                f"the ledger did not go back: the anchor knows one {described(memory.seen)},"
                " and the one in the database goes on from it",
                remedy="nothing was changed",
            )
        before, after = memory.seen, SeenLedger.nothing()
        if head is not None:
            after = open_head(head, self.key)
            await load_edge(self.ledger, after)
        # First the entry: where it cannot be recorded, nothing is accepted.
        await self.journal.record(
            actor,
            ACCEPT_ROLLBACK,
            details={"message": message, "before": _shown(before), "after": _shown(after)},
        )
        await self.anchor.accept_ledger(after)
        return AcceptedRollback(before=before, after=after)


def _shown(ledger: SeenLedger) -> JsonValue:
    return {"size": ledger.size, "root": ledger.root.hex(), "place": ledger.place}

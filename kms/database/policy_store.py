"""Policy revisions and their history in the database.

Owning the database is not owning the policy: a change counts only with the MAC of somebody who has the root
key, a body only if it hashes to its name, and signatures are verified by whoever reads them.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.background import collector_at_rest
from kms.database.dialect import insert_or, triggers_and_views
from kms.database.engine import reading, writing
from kms.database.policy_files import packed, unpacked
from kms.database.policy_rows import PolicyRows, read_signature, statement_digest
from kms.database.recording import Recorder
from kms.database.schema import (
    active_policy,
    policy_changes,
    policy_proposals,
    policy_revisions,
    policy_signatures,
)
from kms.errors import LedgerUnavailable, PolicyRefused
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.policy.history import Head, PolicyChange, PolicySignature
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.policy_authority import PolicyUntrusted
from kms.ports import Clock, PolicyMoved

_MOST_PROPOSALS: Final = 50  # that wait at once: whoever may propose shall not fill the disk
_MOST_SIGNATURES: Final = 100  # over one statement: a database that holds more was filled by hand
_MOST_ROWS: Final = 10_000  # that are looked through for authentic ones
_AT_ONCE: Final = 200


class PolicyStore:
    """Implements `kms.operator_ports.PolicyHistory`. `kms_identity` (32 bytes) is in every statement.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    def __init__(
        self, engine: AsyncEngine, clock: Clock, *, seal: RowSeal, kms_identity: bytes, recorder: Recorder
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._rows = PolicyRows(seal)
        self._kms_identity = kms_identity
        self._recorder = recorder
        self._kept: Revision | None = None
        # One at a time: a large one takes seconds of a processor, and memory of several times its size.
        self._loading = asyncio.Semaphore(1)

    async def head(self) -> Head | None:
        """Give what the pointer says; see `PolicyPast.head`.

        Raises:
            PolicyUntrusted: it is none.

        """
        async with reading(self._engine) as connection:
            pointer = await _pointer(connection)
        head = _head(pointer)
        if head is None and pointer is not None:
            raise PolicyUntrusted("the pointer to the policy in force is not a number and a name")
        return head

    async def last_sequence(self) -> int:
        """Give the sequence number of the newest authentic change; 0 where there is none."""
        newest = await self.changes(before=None, limit=1)
        return newest[0].sequence if newest else 0

    async def change(self, sequence: int) -> PolicyChange | None:
        """Give an authentic change with its signatures; see `PolicyPast.change`."""
        query = select(policy_changes).where(policy_changes.c.sequence == sequence)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
            return next(
                iter(await self._signed(connection, self._rows.authentic(policy_changes, rows))), None
            )

    async def changes(self, *, before: int | None, limit: int) -> tuple[PolicyChange, ...]:
        """Give authentic changes, newest first; see `PolicyPast.changes`."""
        found: list[PolicyChange] = []
        query = select(policy_changes).order_by(policy_changes.c.sequence.desc()).limit(_AT_ONCE)
        async with reading(self._engine) as connection:
            for _ in range(_MOST_ROWS // _AT_ONCE):
                below = query if before is None else query.where(policy_changes.c.sequence < before)
                rows = (await connection.execute(below)).mappings().all()
                found += self._rows.authentic(policy_changes, rows)
                # Past rows that were written by hand: they must not hide what is below them.
                if len(found) >= limit or len(rows) < _AT_ONCE:
                    break
                before = rows[-1]["sequence"]
            return await self._signed(connection, found[:limit])

    async def load(self, digest: str) -> Revision | None:
        """Load a stored revision and check it against its digest; see `PolicyPast.load`."""
        query = select(policy_revisions.c.documents).where(policy_revisions.c.revision == digest)
        if self._kept is not None and self._kept.digest == digest:
            return self._kept
        async with self._loading:
            async with reading(self._engine) as connection:
                row = (await connection.execute(query)).first()
            return None if row is None else await asyncio.to_thread(_read, row.documents, digest)

    def keep(self, revision: Revision) -> None:
        """Keep the revision in force at hand; see `PolicyPast.keep`."""
        self._kept = revision

    async def files(self, digest: str) -> Mapping[str, bytes] | None:
        """Give the files of a revision, unchecked; None where they are not known, or cannot be read."""
        query = select(policy_revisions.c.files).where(policy_revisions.c.revision == digest)
        async with reading(self._engine) as connection:
            row = (await connection.execute(query)).first()
        if row is None or row.files is None:
            return None
        return await asyncio.to_thread(unpacked, row.files)

    async def store(self, revision: Revision, files: Mapping[str, bytes] | None) -> None:
        """Store a revision, without putting it in force. Without `files` those that are known stay."""
        kept = None if files is None else await asyncio.to_thread(packed, files)
        values = {
            "revision": revision.digest,
            "documents": revision.canonical,
            "files": kept,
            "created_at": timestamp(self._clock()),
        }
        async with writing(self._engine) as connection:
            # A body that was altered by hand would otherwise stay, and nobody could apply the true one.
            await connection.execute(
                insert_or(connection, policy_revisions)
                .values(values)
                .on_conflict_do_update(
                    index_elements=["revision"],
                    set_={"documents": revision.canonical} | ({} if kept is None else {"files": kept}),
                )
            )

    async def append(
        self, change: PolicyChange, *, expect: Head | None, action: OperatorAction | None
    ) -> None:
        """Put a stored revision in force; see `PolicyHistory.append`. What was proposed is overtaken."""
        statement = statement_digest(Statement.of(change, self._kms_identity))
        async with writing(self._engine) as connection:
            if _head(await _pointer(connection)) != expect:
                raise PolicyMoved(change.revision)
            # The caller counts on from the newest authentic change: what is there was written by hand.
            await connection.execute(
                delete(policy_changes).where(policy_changes.c.sequence >= change.sequence)
            )
            await connection.execute(insert(policy_changes).values(self._rows.sealed(policy_changes, change)))
            await connection.execute(delete(active_policy))
            await connection.execute(
                insert(active_policy).values(id=1, revision=change.revision, sequence=change.sequence)
            )
            await _forget_proposals(connection, up_to=change.sequence, but=statement)
            if action is not None:
                await self._recorder.record_action(connection, action)
            await self._require_written(connection, change)

    async def _require_written(self, connection: AsyncConnection, change: PolicyChange) -> None:
        """Read back what was written: a database with triggers may do something else, and say nothing."""
        if triggers := await connection.run_sync(triggers_and_views):
            raise LedgerUnavailable(f"the database may not keep what it is given: {', '.join(triggers)}")
        query = select(policy_changes).where(policy_changes.c.sequence == change.sequence)
        rows = (await connection.execute(query)).mappings().all()
        written = self._rows.authentic(policy_changes, rows)
        if _head(await _pointer(connection)) != change.head or [each.head for each in written] != [
            change.head
        ]:
            raise LedgerUnavailable("the database did not keep the change of policy that it was given")

    async def propose(self, change: PolicyChange, statement: Statement) -> None:
        """Keep a change that waits for signatures; of the same statement the first words are kept.

        Raises:
            PolicyRefused: too many wait already.

        """
        values = self._rows.sealed(policy_proposals, change, statement=statement_digest(statement))
        async with writing(self._engine) as connection:
            waiting = select(policy_proposals.c.statement)
            found = set((await connection.execute(waiting)).scalars())
            if len(found) >= _MOST_PROPOSALS and values["statement"] not in found:
                raise PolicyRefused(
                    f"{_MOST_PROPOSALS} proposals wait for signatures already", reason="too-many-proposals"
                )
            proposing = insert_or(connection, policy_proposals).values(values)
            await connection.execute(proposing.on_conflict_do_nothing())

    async def proposals(self, revision: str | None = None) -> tuple[PolicyChange, ...]:
        """Give the proposals, newest first; see `PolicyHistory.proposals`."""
        query = select(policy_proposals).order_by(
            policy_proposals.c.sequence.desc(), policy_proposals.c.made_at.desc()
        )
        if revision is not None:
            query = query.where(policy_proposals.c.revision == revision)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query.limit(_MOST_ROWS))).mappings().all()
            return await self._signed(connection, self._rows.authentic(policy_proposals, rows))

    async def sign(self, statement: Statement, signature: PolicySignature) -> None:
        """Add a signature; see `PolicyHistory.sign`."""
        values = {"format": signature.format.value, "signature": signature.signature}
        async with writing(self._engine) as connection:
            await connection.execute(
                insert_or(connection, policy_signatures)
                .values(
                    statement=statement_digest(statement),
                    public_key=signature.public_key.hex(),
                    added_at=timestamp(self._clock()),
                    **values,
                )
                .on_conflict_do_update(index_elements=["statement", "public_key"], set_=values)
            )

    async def _signed(
        self, connection: AsyncConnection, changes: list[PolicyChange]
    ) -> tuple[PolicyChange, ...]:
        """Give the changes with the signatures that are there, valid or not."""
        digests = {statement_digest(Statement.of(each, self._kms_identity)): each for each in changes}
        query = select(policy_signatures).where(policy_signatures.c.statement.in_(digests))
        found: dict[str, list[PolicySignature]] = {}
        for row in await connection.execute(query.order_by(policy_signatures.c.added_at)):
            signatures, signature = found.setdefault(row.statement, []), read_signature(row)
            if signature is not None and len(signatures) < _MOST_SIGNATURES:
                signatures.append(signature)
        return tuple(replace(each, signatures=tuple(found.get(key, ()))) for key, each in digests.items())


def _read(documents: object, digest: str) -> Revision:
    # SQLite keeps whatever somebody writes by hand, of whatever type.
    canonical = documents if isinstance(documents, bytes) else b""
    with collector_at_rest():
        return Revision.from_canonical(canonical, digest=digest)


async def _pointer(connection: AsyncConnection) -> Row[Any] | None:
    return (await connection.execute(select(active_policy))).first()


def _head(pointer: Row[Any] | None) -> Head | None:
    """Give what a pointer says; None where it says nothing that could be."""
    if pointer is None or not isinstance(pointer.sequence, int) or not isinstance(pointer.revision, str):
        return None
    return Head(pointer.sequence, pointer.revision)


async def _forget_proposals(connection: AsyncConnection, *, up_to: int, but: str) -> None:
    """Forget what was overtaken, with the signatures over it; but not those of the change itself."""
    overtaken = select(policy_proposals.c.statement).where(policy_proposals.c.sequence <= up_to)
    await connection.execute(
        delete(policy_signatures).where(
            policy_signatures.c.statement.in_(overtaken), policy_signatures.c.statement != but
        )
    )
    await connection.execute(delete(policy_proposals).where(policy_proposals.c.sequence <= up_to))

"""Policy revisions and their history in the database.

Owning the database is not owning the policy: a change counts only with the MAC of somebody who has the root
key, a body only if it hashes to its name, and signatures are verified by whoever reads them.
"""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import structlog
from sqlalchemy import Row, RowMapping, Table, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.background import collector_at_rest
from kms.database.actions import insert_action
from kms.database.engine import reading, writing
from kms.database.policy_files import packed, unpacked
from kms.database.schema import (
    active_policy,
    policy_changes,
    policy_proposals,
    policy_revisions,
    policy_signatures,
)
from kms.keys.row_seal import RowSeal, optional
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import SALT_LENGTH, timestamp
from kms.policy.history import ChangeKind, Head, Intent, PolicyChange, PolicySignature, SignatureFormat
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.ports import Clock, PolicyMoved

_log = structlog.get_logger("kms.policy")

_MOST_PROPOSALS: Final = 200
_MOST_SIGNATURES: Final = 100  # over one statement: a database that holds more was filled by hand


class PolicyStore:
    """Implements `kms.operator_ports.PolicyHistory`. `kms_identity` (32 bytes) is in every statement.

    Every method raises `LedgerUnavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine, clock: Clock, *, seal: RowSeal, kms_identity: bytes) -> None:
        self._engine = engine
        self._clock = clock
        self._seal = seal
        self._kms_identity = kms_identity
        self._kept: Revision | None = None
        self._reported: set[tuple[str, object]] = set()

    async def head(self) -> Head | None:
        """Give what the pointer says; see `PolicyHistory.head`."""
        async with reading(self._engine) as connection:
            return await _head(connection)

    async def last_sequence(self) -> int:
        """Give the highest sequence number of any row, authentic or not; 0 where there is none."""
        async with reading(self._engine) as connection:
            return (await connection.execute(select(func.max(policy_changes.c.sequence)))).scalar() or 0

    async def change(self, sequence: int) -> PolicyChange | None:
        """Give an authentic change with its signatures; see `PolicyHistory.change`."""
        query = select(policy_changes).where(policy_changes.c.sequence == sequence)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
            return next(iter(await self._authentic(connection, policy_changes, rows)), None)

    async def changes(self, *, before: int | None, limit: int) -> tuple[PolicyChange, ...]:
        """Give authentic changes, newest first; see `PolicyHistory.changes`."""
        query = select(policy_changes).order_by(policy_changes.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(policy_changes.c.sequence < before)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
            return await self._authentic(connection, policy_changes, rows)

    async def load(self, digest: str) -> Revision | None:
        """Load a stored revision and check it against its digest; see `PolicyHistory.load`."""
        if self._kept is not None and self._kept.digest == digest:
            return self._kept
        query = select(policy_revisions.c.documents).where(policy_revisions.c.revision == digest)
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
                insert_or(policy_revisions)
                .values(values)
                .on_conflict_do_update(
                    index_elements=["revision"],
                    set_={"documents": revision.canonical} | ({} if kept is None else {"files": kept}),
                )
            )

    async def append(
        self, change: PolicyChange, *, expect: Head | None, action: OperatorAction | None
    ) -> None:
        """Put a stored revision in force; see `PolicyHistory.append`."""
        values = _values(change)
        async with writing(self._engine) as connection:
            last = (await connection.execute(select(func.max(policy_changes.c.sequence)))).scalar() or 0
            if await _head(connection) != expect or change.sequence <= last:
                raise PolicyMoved(change.revision)
            await connection.execute(
                insert(policy_changes).values(**values, mac=self._mac(policy_changes, values))
            )
            pointer = {"revision": change.revision, "sequence": change.sequence}
            moved = await connection.execute(update(active_policy).values(pointer))
            if moved.rowcount == 0:
                await connection.execute(insert(active_policy).values(id=1, **pointer))
            if action is not None:
                await insert_action(connection, action, secrets.token_bytes(SALT_LENGTH))

    async def propose(self, change: PolicyChange, statement: Statement) -> None:
        """Keep a change that waits for signatures; of the same statement the first words are kept."""
        values = {"statement": _digest(statement), **_values(change)}
        async with writing(self._engine) as connection:
            await connection.execute(
                insert_or(policy_proposals)
                .values(**values, mac=self._mac(policy_proposals, values))
                .on_conflict_do_nothing()
            )

    async def proposals(self, revision: str | None = None) -> tuple[PolicyChange, ...]:
        """Give the proposals, newest first; see `PolicyHistory.proposals`."""
        query = select(policy_proposals).order_by(
            policy_proposals.c.sequence.desc(), policy_proposals.c.made_at.desc()
        )
        if revision is not None:
            query = query.where(policy_proposals.c.revision == revision)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(query.limit(_MOST_PROPOSALS))).mappings().all()
            return await self._authentic(connection, policy_proposals, rows)

    async def sign(self, statement: Statement, signature: PolicySignature) -> None:
        """Add a signature; see `PolicyHistory.sign`."""
        values = {"format": signature.format.value, "signature": signature.signature}
        async with writing(self._engine) as connection:
            await connection.execute(
                insert_or(policy_signatures)
                .values(
                    statement=_digest(statement),
                    public_key=signature.public_key.hex(),
                    added_at=timestamp(self._clock()),
                    **values,
                )
                .on_conflict_do_update(index_elements=["statement", "public_key"], set_=values)
            )

    def _mac(self, table: Table, values: Mapping[str, Any]) -> bytes:
        return self._seal.mac(table.name, *_fields(values))

    def _is_authentic(self, table: Table, row: RowMapping) -> bool:
        values = dict(row)
        mac = values.pop("mac")
        # SQLite keeps whatever somebody writes by hand, of whatever type.
        return isinstance(mac, bytes) and self._seal.verifies(mac, table.name, *_fields(values))

    async def _authentic(
        self, connection: AsyncConnection, table: Table, rows: Iterable[RowMapping]
    ) -> tuple[PolicyChange, ...]:
        found = []
        for row in rows:
            if self._is_authentic(table, row):
                found.append(_change(row))
            elif (table.name, row["sequence"]) not in self._reported:
                self._reported.add((table.name, row["sequence"]))
                _log.error("policy-row-not-authentic", table=table.name, sequence=row["sequence"])
        return await self._signed(connection, found)

    async def _signed(
        self, connection: AsyncConnection, changes: list[PolicyChange]
    ) -> tuple[PolicyChange, ...]:
        """Give the changes with the signatures that are there, valid or not."""
        digests = {_digest(Statement.of(each, self._kms_identity)): each for each in changes}
        query = select(policy_signatures).where(policy_signatures.c.statement.in_(digests))
        found: dict[str, list[PolicySignature]] = {}
        for row in await connection.execute(query.order_by(policy_signatures.c.added_at)):
            signatures = found.setdefault(row.statement, [])
            try:
                if len(signatures) < _MOST_SIGNATURES:
                    signatures.append(_signature(row))
            except (ValueError, TypeError):
                _log.error("policy-signature-damaged", statement=row.statement)
        return tuple(
            replace(each, signatures=tuple(found.get(digest, ()))) for digest, each in digests.items()
        )


def _read(documents: bytes, digest: str) -> Revision:
    with collector_at_rest():
        return Revision.from_canonical(documents, digest=digest)


async def _head(connection: AsyncConnection) -> Head | None:
    row = (await connection.execute(select(active_policy))).first()
    return None if row is None else Head(row.sequence, row.revision)


def _values(change: PolicyChange) -> dict[str, Any]:
    return {
        "sequence": change.sequence,
        "revision": change.revision,
        "previous": change.previous,
        "folder": change.folder,
        "intent": change.intent.value,
        "kind": change.kind.value,
        "author": change.author,
        "message": change.message,
        "made_at": timestamp(change.made_at),
    }


def _fields(values: Mapping[str, Any]) -> list[bytes]:
    """Give what a MAC is over: every column, in the order of their names."""
    return [optional(None if value is None else str(value)) for _, value in sorted(values.items())]


def _change(row: RowMapping) -> PolicyChange:
    return PolicyChange(
        sequence=row["sequence"],
        revision=row["revision"],
        previous=row["previous"],
        intent=Intent(row["intent"]),
        kind=ChangeKind(row["kind"]),
        author=row["author"],
        message=row["message"],
        made_at=datetime.fromisoformat(row["made_at"]),
        folder=row["folder"],
    )


def _signature(row: Row[Any]) -> PolicySignature:
    return PolicySignature(SignatureFormat(row.format), bytes.fromhex(row.public_key), bytes(row.signature))


def _digest(statement: Statement) -> str:
    return sha256(statement.canonical).hexdigest()

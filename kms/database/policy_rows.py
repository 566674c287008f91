"""Rows of policy changes, proposals and signatures: how they are written, sealed and read."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import structlog
from sqlalchemy import Row, RowMapping, Table

from kms.keys.row_seal import RowSeal, optional
from kms.ledger.entries import timestamp
from kms.policy.history import ChangeKind, Intent, PolicyChange, PolicySignature, SignatureFormat
from kms.policy.statement import Statement

_log = structlog.get_logger("kms.policy")


class PolicyRows:
    """Seals rows with a MAC over every other column, and reads those whose MAC verifies.

    What does not verify was written by hand: it is left out, and said once.
    """

    def __init__(self, seal: RowSeal) -> None:
        self._seal = seal
        self._reported: set[tuple[str, object]] = set()

    def sealed(self, table: Table, change: PolicyChange, **more: str) -> dict[str, Any]:
        """Give the columns of a change, with the MAC."""
        values = {**_values(change), **more}
        return {**values, "mac": self._seal.mac(table.name, *_fields(values))}

    def authentic(self, table: Table, rows: Iterable[RowMapping]) -> list[PolicyChange]:
        """Give the changes of the rows that are authentic, in their order, without signatures."""
        found = []
        for row in rows:
            if self._is_authentic(table, row):
                found.append(_change(row))
            elif (table.name, row["sequence"]) not in self._reported:
                self._reported.add((table.name, row["sequence"]))
                _log.error("policy-row-not-authentic", table=table.name, sequence=row["sequence"])
        return found

    def _is_authentic(self, table: Table, row: RowMapping) -> bool:
        values = dict(row)
        mac = values.pop("mac")
        # SQLite keeps whatever somebody writes by hand, of whatever type; and the MAC is over texts.
        typed = type(row["sequence"]) is int and all(
            value is None or isinstance(value, str) for name, value in values.items() if name != "sequence"
        )
        return typed and isinstance(mac, bytes) and self._seal.verifies(mac, table.name, *_fields(values))


def statement_digest(statement: Statement) -> str:
    """Give the name that signatures are kept under: the SHA-256 (hex) of what is signed."""
    return sha256(statement.canonical).hexdigest()


def read_signature(row: Row[Any]) -> PolicySignature | None:
    """Read a signature; None, and a line in the log, for what is none."""
    try:
        # Not `bytes(…)`: of a number that would be as many zeros.
        if isinstance(row.signature, bytes):
            return PolicySignature(SignatureFormat(row.format), bytes.fromhex(row.public_key), row.signature)
    except (ValueError, TypeError):
        pass
    _log.error("policy-signature-damaged", statement=str(row.statement)[:64])
    return None


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

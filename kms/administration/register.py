"""The register of operators: who may operate the KMS by a token or a client certificate of their own."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.operators import Role
from kms.strict_json import JsonValue


class Standing(StrEnum):
    """Whether an entry of the register gives access now."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_AUTHENTIC = "not-authentic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An authentic entry: of a token (`token_id`, and `token_hash` in hex), or of a certificate (`subject`).

    `subject` is the RFC 4514 string of a client certificate's subject.
    """

    name: str
    role: Role
    token_id: str | None = None
    token_hash: str | None = field(default=None, repr=False)
    subject: str | None = None
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def standing(self, now: datetime) -> Standing:
        """Say whether it gives access."""
        if self.revoked_at is not None:
            return Standing.REVOKED
        if self.expires_at is not None and now >= self.expires_at:
            return Standing.EXPIRED
        return Standing.ACTIVE

    def to_json(self, now: datetime) -> dict[str, JsonValue]:
        """Give the entry as it is shown; never the token or its hash."""
        return {
            "name": self.name,
            "role": self.role.value,
            "kind": "certificate" if self.token_id is None else "token",
            "token_id": self.token_id,
            "subject": self.subject,
            "created_at": timestamp(self.created_at),
            "created_by": self.created_by,
            "expires_at": _time(self.expires_at),
            "revoked_at": _time(self.revoked_at),
            "last_used_at": _time(self.last_used_at),
            "standing": self.standing(now).value,
        }


@dataclass(frozen=True, slots=True)
class NotAuthentic:
    """An entry that was written or altered by hand: it gives nobody access, and only its name is told."""

    name: str

    def to_json(self, _: datetime) -> dict[str, JsonValue]:
        """Give the entry as it is shown."""
        return {
            "name": self.name,
            "role": None,
            "kind": None,
            "token_id": None,
            "subject": None,
            "created_at": None,
            "created_by": None,
            "expires_at": None,
            "revoked_at": None,
            "last_used_at": None,
            "standing": Standing.NOT_AUTHENTIC.value,
        }


Entry: TypeAlias = Operator | NotAuthentic


class LastAdmin(Exception):
    """After this revocation nobody could add or revoke operators any more."""


class Register(Protocol):
    """Where operators are kept. Every method raises `LedgerUnavailable` when it does not answer."""

    async def add(self, operator: Operator, action: OperatorAction) -> None:
        """Add an operator, with the record of who did it, in one transaction.

        An entry of the same name that gives access no more makes way.

        Raises:
            OperatorExists: the name is an active operator's, or the certificate some other entry's.

        """
        ...

    async def revoke(
        self, name: str, at: datetime, action: OperatorAction, *, keep_an_admin: bool
    ) -> Operator | None:
        """End an operator's access, with the record of who did it, in one transaction; give the entry.

        None where there is no authentic one; an entry that is revoked already stays as it is.

        Raises:
            LastAdmin: with `keep_an_admin`, no active admin would be left.

        """
        ...

    async def entries(self, *, after: str | None, limit: int) -> tuple[Entry, ...]:
        """Give the entries whose names sort after `after`, in the order of names."""
        ...

    async def by_token_id(self, token_id: str) -> Operator | None:
        """Give the authentic entry of a token, active or not."""
        ...

    async def by_subject(self, subject: str) -> Operator | None:
        """Give the authentic entry of a certificate, active or not."""
        ...

    async def touch(self, operator: Operator) -> None:
        """Note that somebody just acted as this operator. It never raises."""
        ...


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)

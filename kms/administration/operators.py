"""Adding and revoking operators, and reading what they did."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.administration.register import LastAdmin, Operator, Register
from kms.administration.token import OperatorToken
from kms.errors import Forbidden, MalformedRequest, NotFound
from kms.operators import Actor, Permission, Proof, Role
from kms.ports import Randomness
from kms.strict_json import JsonValue

DEFAULT_LIFE: Final = timedelta(days=90)
LONGEST_LIFE: Final = timedelta(days=366)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_MOST_SUBJECT: Final = 512  # characters
# RFC 4514 has no names for these; OpenSSL has.
_OPENSSL_NAMES: Final = {
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAdministration:
    """Implements `kms.administration.office.OperatorWork`."""

    register: Register
    journal: Journal
    randomness: Randomness

    async def operators(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        """Give ``{"operators": […], "next": name or null}``, by name; also entries that are not authentic."""
        await self.journal.require(actor, Permission.READ_OPERATORS, "operator-list")
        now = self.journal.clock()
        found = await self.register.entries(after=after, limit=limit + 1)
        page = found[:limit]
        entries: list[JsonValue] = [entry.to_json(now) for entry in page]
        return {"operators": entries, "next": page[-1].name if len(found) > limit else None}

    async def add(
        self, actor: Actor, name: str, role: Role, *, life: timedelta | None, subject: str | None
    ) -> Json:
        """Add an operator; give ``{"operator": {…}, "token": text or null}``. The token is never shown again.

        A token lives for `life`, `DEFAULT_LIFE` if that is None. With a `subject` there is no token, and
        without a `life` no expiry: the certificate has one of its own.

        Raises:
            Forbidden: the role does not include it.
            MalformedRequest: a name, life or subject that cannot be.
            OperatorExists: the name is an active operator's, or the certificate some other entry's.

        """
        await self.journal.require(actor, Permission.CHANGE_OPERATORS, "operator-add", name[:128])
        if not _NAME.fullmatch(name):
            raise MalformedRequest(
                "a name begins with a letter or digit, and has at most 128 of A-Z a-z 0-9 . _ @ -"
            )
        if life is not None and not timedelta(0) < life <= LONGEST_LIFE:
            raise MalformedRequest(f"a life is more than nothing and at most {LONGEST_LIFE.days} days")
        token = None
        if subject is None:
            token = OperatorToken.new(self.randomness)
            life = DEFAULT_LIFE if life is None else life
        now = self.journal.clock()
        operator = Operator(
            name=name,
            role=role,
            token_id=None if token is None else token.token_id,
            token_hash=None if token is None else token.hash,
            subject=None if subject is None else canonical_subject(subject),
            created_at=now,
            created_by=actor.name,
            expires_at=None if life is None else now + life,
        )
        shown = operator.to_json(now)
        told = ("role", "token_id", "subject", "expires_at")
        action = self.journal.entry(
            actor, "operator-add", name, details={member: shown[member] for member in told}
        )
        await self.register.add(operator, action)
        return {"operator": shown, "token": None if token is None else token.text}

    async def revoke(self, actor: Actor, name: str) -> Json:
        """End an operator's access from the next request on, for ever; give ``{"operator": {…}}``.

        Raises:
            Forbidden: the role does not include it; or (reason ``last-admin``) this is the last active admin
                of the register, and only the command line beside the database would be left.
            NotFound: there is no such operator.

        """
        await self.journal.require(actor, Permission.CHANGE_OPERATORS, "operator-revoke", name[:128])
        now = self.journal.clock()
        try:
            operator = await self.register.revoke(
                name,
                now,
                self.journal.entry(actor, "operator-revoke", name),
                keep_an_admin=actor.proof is not Proof.COMMAND_LINE,
            )
        except LastAdmin:
            await self.journal.record(actor, "operator-revoke", name, outcome=Forbidden.code)
            raise Forbidden(
                f"{name} is the last active admin; add another one first, or revoke on the command line",
                reason="last-admin",
            ) from None
        if operator is None:
            raise NotFound("there is no authentic operator of this name")
        return {"operator": operator.to_json(now)}

    async def actions(self, actor: Actor, *, before: str | None, limit: int) -> Json:
        """Give ``{"actions": […], "next": id or null}``, newest first."""
        await self.journal.require(actor, Permission.READ_OPERATORS, "operator-log")
        found = await self.journal.actions.actions(before=before, limit=limit + 1)
        page: list[JsonValue] = list(found[:limit])
        return {"actions": page, "next": found[limit - 1]["action_id"] if len(found) > limit else None}


def canonical_subject(text: str) -> str:
    """Give a certificate's subject in the one form that subjects are compared in (RFC 4514).

    Raises:
        MalformedRequest: not such a string, or an empty or overlong one.

    """
    try:
        subject = x509.Name.from_rfc4514_string(text, _OPENSSL_NAMES).rfc4514_string()
    except ValueError:
        raise MalformedRequest(
            "a certificate's subject is written as RFC 4514 says, for example CN=alice,O=Example"
            " (openssl x509 -noout -subject -nameopt RFC2253)"
        ) from None
    if not 0 < len(subject) <= _MOST_SUBJECT or not subject.isprintable():
        raise MalformedRequest(f"a certificate's subject has 1 to {_MOST_SUBJECT} printable characters")
    return subject

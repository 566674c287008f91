"""What stands between an operator's key and a server that asks for a signature.

A statement names a revision by its digest, so whoever signs what a server says signs whatever it likes. Here
the policy is computed from what the operator gave or asked for, the difference and its intent from the
revision before it, and only a statement that says the same is signed.
"""

import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kms.background import collector_at_rest
from kms.cli.policy_fetching import fetch_revision
from kms.cli.policy_words import difference_line, signers
from kms.cli.saying import AnswerUnreadable, Line, fields, optional_text, say
from kms.encoding import b64url
from kms.errors import OperatorRefusal
from kms.policy.diff import Difference, differences, intent_of
from kms.policy.history import Intent
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.policy.trust import sign_statement
from kms.strict_json import Fields, JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Json, Office
    from kms.operators import Actor

# Gives what was meant to come into force after this revision (None: after none).
Meant = Callable[[Revision | None], Awaitable[Revision]]


class NotSigned(OperatorRefusal):
    """The server's proposal is not what the operator asked for, so this machine did not sign it."""

    code = "not-signed"


@dataclass(frozen=True, slots=True)
class Checked:
    """A statement that says what was meant, and what it changes."""

    statement: Statement
    differences: tuple[Difference, ...]

    def lines(self) -> Iterator[Line]:
        """Say what is about to be signed."""
        if not self.differences:
            yield Line("no difference")
        for each in self.differences:
            yield difference_line(each.effect.value, each.document, each.text)
        statement = self.statement
        yield Line(
            f"change {statement.sequence} of KMS {b64url(statement.kms_identity)}: {statement.intent}s"
        )


def exactly(policy: Revision) -> Meant:
    """Mean this policy, whatever was in force before."""

    async def meant(_: Revision | None) -> Revision:
        return policy

    return meant


async def check_proposal(
    office: "Office", actor: "Actor", proposal: "Json", meant: Meant, *, identity: bytes | None
) -> Checked:
    """Check that a proposal is what was meant, by computing everything that its statement says.

    `identity` is the KMS that the operator means, where they said it.

    Raises:
        NotSigned: the statement says something else, or its time has passed.
        AnswerUnreadable: the server's answers make no sense.

    """
    read = fields(proposal, "proposal")
    statement = _statement(read.object("statement"))
    if read.take("stale") is not False:
        raise NotSigned("another change came into force since this was proposed: propose it again")
    if identity is not None and statement.kms_identity != identity:
        raise NotSigned("the statement is for another KMS than --identity names")
    previous = None
    if statement.previous is not None:
        previous = (await fetch_revision(office, actor, statement.previous)).revision
    policy = await meant(previous)
    if policy.digest != statement.revision:
        raise NotSigned(f"the statement names {statement.revision}; what was meant is {policy.digest}")
    with collector_at_rest():
        found = differences(previous, policy)
    # The other way round it only asks for more signatures: of what is put in force anew, for example.
    if statement.intent is Intent.NARROW and intent_of(found) is Intent.WIDEN:
        raise NotSigned("the statement says that it narrows; the documents say that it widens")
    return Checked(statement, found)


async def send_signature(
    office: "Office", actor: "Actor", checked: Checked, key: Ed25519PrivateKey
) -> "Json":
    """Sign a checked statement, send the signature, and give the proposal with it.

    Raises:
        NotSigned: somebody was shown what would be signed, and did not agree.

    """
    _ask(checked)
    return await office.policies.sign(
        actor, checked.statement.revision, sign_statement(checked.statement, key)
    )


def _ask(checked: Checked) -> None:
    """On a terminal, show what would be signed, and ask; elsewhere the command itself is the word."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    say(checked.lines(), error=True)
    sys.stderr.write("sign this? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise NotSigned("nothing was signed")


def proposal_lines(proposal: JsonValue) -> Iterator[Line]:
    """Say how many signatures a proposal has of how many, and what to run next; overtaken ones in a line."""
    read = fields(proposal, "proposal")
    statement = _statement(read.object("statement"))
    stale, ready, needed = read.take("stale") is True, read.take("ready") is True, read.take("needed")
    if stale:
        yield Line(f"overtaken by another change, propose it again: {statement.revision}", "dim")
        return
    if ready:
        yield Line(f"ready to apply: {statement.revision}", "green")
    else:
        yield Line(f"waits for signatures: {statement.revision}", "yellow")
    signed = sorted(set(signers(read)))
    of = f"{len(signed)} of {needed} signed" if isinstance(needed, int) else "no signature is needed"
    names = f" ({', '.join(signed)})" if signed else ""
    yield Line(f"  change {statement.sequence}, {statement.intent}s: {of}{names}")
    if ready:
        yield Line(f"  next: kms policy apply {statement.revision}")
    else:
        yield Line(f"  next: kms policy approve {statement.revision} --key FILE")


def _statement(read: Fields) -> Statement:
    try:
        intent = Intent(read.text("intent"))
    except ValueError:
        raise AnswerUnreadable("the statement has an intent that this version does not know") from None
    return Statement(
        revision=read.text("revision"),
        sequence=read.integer("sequence", minimum=1),
        previous=optional_text(read, "previous"),
        kms_identity=read.base64("kms_identity", at_most=32),
        intent=intent,
    )

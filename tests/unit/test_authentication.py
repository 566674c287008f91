"""Tokens and certificates of operators: added, accepted, refused."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import pytest

from kms.administration.authentication import Authentication, CredentialsNotAccepted
from kms.administration.office import Json
from kms.administration.operators import OperatorAdministration, canonical_subject
from kms.administration.token import OperatorToken
from kms.errors import Forbidden, MalformedRequest, NotFound, OperatorExists
from kms.operators import Actor, Permission, Proof, Role
from tests.unit.operator_samples import MemoryActions, MemoryRegister, actor, journal
from tests.world import NOW

CLIENT = "192.0.2.7"
SUBJECT = "CN=bob,O=Example"


@dataclass
class House:
    """An administration and an authentication on one register."""

    now: datetime = NOW
    actions: MemoryActions = field(default_factory=MemoryActions)

    def __post_init__(self) -> None:
        self.register = MemoryRegister(self.actions)
        self.administration = OperatorAdministration(
            register=self.register,
            journal=journal(self.actions, lambda: self.now),
            randomness=secrets.token_bytes,
        )
        self.authentication = Authentication(register=self.register, clock=lambda: self.now)

    async def token(
        self, name: str = "alice", role: Role = Role.OPERATOR, *, life: timedelta | None = None
    ) -> str:
        answer = await self.administration.add(actor(), name, role, life=life, subject=None)
        return str(answer["token"])

    async def why_not(self, token: str) -> tuple[str, str | None]:
        with pytest.raises(CredentialsNotAccepted) as refused:
            await self.authentication.by_token(token, CLIENT)
        assert refused.value.reason == "credentials-not-accepted"
        assert refused.value.detail == "the credentials are not accepted"
        assert refused.value.details == {}
        return refused.value.why, refused.value.who


@pytest.fixture
def house() -> House:
    return House()


async def test_a_token_gives_the_actor_that_was_added(house: House) -> None:
    token = await house.token()
    assert await house.authentication.by_token(token, CLIENT) == Actor(
        name="alice", role=Role.OPERATOR, proof=Proof.TOKEN, proof_id=token[5:21], client=CLIENT
    )
    assert house.register.touched == ["alice"]


async def test_lesson_31_and_35_a_token_is_stored_hashed_and_shown_once(house: House) -> None:
    token = await house.token()
    secret = token[22:]
    assert len(secret) == 43
    answers = [
        await house.administration.operators(actor(), after=None, limit=10),
        await house.administration.actions(actor(), before=None, limit=10),
    ]
    parsed = OperatorToken.parse(token)
    assert secret not in f"{answers} {house.register} {house.actions} {parsed} {parsed!r}"
    assert parsed.hash not in f"{answers} {house.register!r}"
    stored = house.register.operators["alice"].token_hash
    assert stored == parsed.hash


async def test_every_token_is_another() -> None:
    tokens = {OperatorToken.new(secrets.token_bytes).text for _ in range(100)}
    assert len(tokens) == 100
    assert all(OperatorToken.parse(token).text == token for token in tokens)


MALFORMED = ["", "kmso_", "kmso_0123456789abcdef_" + "a" * 42, "kmso_0123456789ABCDEF_" + "a" * 43]
MALFORMED += ["kmso_0123456789abcdef_" + "a" * 44, "x" * 65, "kmso_0123456789abcdef_" + "\u00e9" * 43]
MALFORMED += ["kmso_0123456789abcdef_" + "a" * 43 + "\n", "kmso_" + "0" * 16 + "_" + "\u0663" * 43]


@pytest.mark.parametrize("token", MALFORMED)
async def test_what_is_no_token_is_not_looked_up(house: House, token: str) -> None:
    assert await house.why_not(token) == ("token-malformed", None)


async def test_an_unknown_id_and_a_wrong_secret_look_the_same(house: House) -> None:
    token = await house.token()
    other = OperatorToken.new(secrets.token_bytes).text
    assert await house.why_not(other) == ("token-unknown", None)
    assert await house.why_not(token[:22] + other[22:]) == ("token-unknown", None)
    flipped = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
    assert await house.why_not(flipped) == ("token-unknown", None)
    assert house.register.touched == []


async def test_a_token_id_of_a_certificates_operator_has_no_secret(house: House) -> None:
    """Whatever stands in the register: without a stored hash, no token is right."""
    token = OperatorToken.new(secrets.token_bytes)
    await house.administration.add(actor(), "bob", Role.VIEWER, life=None, subject=SUBJECT)
    bob = house.register.operators["bob"]
    object.__setattr__(bob, "token_id", token.token_id)
    assert await house.why_not(token.text) == ("token-unknown", None)


async def test_a_token_ends_when_its_time_has_come(house: House) -> None:
    token = await house.token(life=timedelta(hours=1))
    house.now += timedelta(hours=1) - timedelta(microseconds=1)
    assert (await house.authentication.by_token(token, CLIENT)).name == "alice"
    house.now += timedelta(microseconds=1)
    assert await house.why_not(token) == ("token-expired", "alice")


async def test_a_revoked_token_ends_at_once(house: House) -> None:
    token = await house.token()
    await house.administration.revoke(actor(), "alice")
    assert await house.why_not(token) == ("token-revoked", "alice")


async def test_a_certificate_gives_the_actor_of_its_subject(house: House) -> None:
    answer = await house.administration.add(actor(), "bob", Role.VIEWER, life=None, subject=SUBJECT)
    assert answer["token"] is None
    assert answer["operator"]["kind"] == "certificate"  # type: ignore[index,call-overload]
    assert await house.authentication.by_certificate(SUBJECT, CLIENT) == Actor(
        name="bob", role=Role.VIEWER, proof=Proof.CERTIFICATE, proof_id=SUBJECT, client=CLIENT
    )
    house.now += timedelta(days=3650)
    assert (await house.authentication.by_certificate(SUBJECT, CLIENT)).name == "bob"


@pytest.mark.parametrize("subject", ["", "CN=bob", "CN=bob,O=example", "CN=mallory,O=Example"])
async def test_another_subject_is_nobody(house: House, subject: str) -> None:
    await house.token()  # has no subject, which must not be that of an empty one
    await house.administration.add(actor(), "bob", Role.VIEWER, life=None, subject=SUBJECT)
    with pytest.raises(CredentialsNotAccepted) as refused:
        await house.authentication.by_certificate(subject, CLIENT)
    assert refused.value.why == "certificate-unknown"


async def test_the_access_of_a_certificate_ends_as_that_of_a_token(house: House) -> None:
    life = timedelta(days=1)
    await house.administration.add(actor(), "bob", Role.VIEWER, life=life, subject=SUBJECT)
    house.now += life
    with pytest.raises(CredentialsNotAccepted) as refused:
        await house.authentication.by_certificate(SUBJECT, CLIENT)
    assert refused.value.why == "certificate-expired"
    house.now = NOW
    await house.administration.revoke(actor(), "bob")
    with pytest.raises(CredentialsNotAccepted) as refused:
        await house.authentication.by_certificate(SUBJECT, CLIENT)
    assert refused.value.why == "certificate-revoked"


@pytest.mark.parametrize(("life", "days"), [(None, 90), (timedelta(days=1), 1), (timedelta(days=366), 366)])
async def test_a_token_always_has_an_end(house: House, life: timedelta | None, days: int) -> None:
    await house.token(life=life)
    assert house.register.operators["alice"].expires_at == NOW + timedelta(days=days)


@pytest.mark.parametrize(
    ("name", "life", "subject"),
    [
        ("", None, None),
        ("a" * 129, None, None),
        ("alice bob", None, None),
        ("../alice", None, None),
        ("alice\n", None, None),
        ("\u00e4lice", None, None),
        ("alice", timedelta(0), None),
        ("alice", timedelta(days=-1), None),
        ("alice", timedelta(days=366, microseconds=1), None),
        ("alice", timedelta.max, "CN=alice"),
        ("alice", None, ""),
        ("alice", None, "alice"),
        ("alice", None, "CN = alice, O = Example"),
        ("alice", None, "CN=a\x1b[2J"),
        ("alice", None, ",".join(["OU=" + "x" * 60] * 9)),
    ],
)
async def test_an_operator_that_cannot_be_is_refused(
    house: House, name: str, life: timedelta | None, subject: str | None
) -> None:
    with pytest.raises(MalformedRequest):
        await house.administration.add(actor(), name, Role.VIEWER, life=life, subject=subject)
    assert house.register.operators == {}


def test_a_subject_has_one_form() -> None:
    assert canonical_subject(r"CN=a\2cb,O=Example") == canonical_subject(r"CN=a\,b,O=Example")
    assert canonical_subject(r"CN=\C3\BC") == "CN=\u00fc"
    assert canonical_subject("emailAddress=a@b,CN=x") == "1.2.840.113549.1.9.1=a@b,CN=x"


@pytest.mark.parametrize("role", Role)
async def test_only_who_may_changes_operators_and_attempts_are_recorded(house: House, role: Role) -> None:
    asking = actor(role)
    may_change, may_read = asking.may(Permission.CHANGE_OPERATORS), asking.may(Permission.READ_OPERATORS)
    await house.token("carol", Role.ADMIN)
    await house.token("dave", Role.ADMIN)
    house.actions.recorded.clear()
    administration = house.administration
    works: dict[str, tuple[bool, Callable[[], Awaitable[Json]]]] = {
        "operator-add": (
            may_change,
            partial(administration.add, asking, "eve", Role.VIEWER, life=None, subject=None),
        ),
        "operator-revoke": (may_change, partial(administration.revoke, asking, "dave")),
        "operator-list": (may_read, partial(administration.operators, asking, after=None, limit=1)),
        "operator-log": (may_read, partial(administration.actions, asking, before=None, limit=1)),
    }
    wanted = []
    for word, (allowed, work) in works.items():
        if allowed:
            await work()
        else:
            with pytest.raises(Forbidden):
                await work()
        if word in {"operator-add", "operator-revoke"} or not allowed:
            wanted.append((word, "done" if allowed else "forbidden"))
    assert [(each.action, each.outcome) for each in house.actions.recorded] == wanted
    assert all(each.actor == asking for each in house.actions.recorded)
    assert ("eve" in house.register.operators) == may_change


async def test_the_record_says_what_was_given(house: House) -> None:
    await house.token(life=timedelta(days=1))
    [action] = house.actions.recorded
    assert action.target == "alice"
    assert action.details == {
        "role": "operator",
        "token_id": house.register.operators["alice"].token_id,
        "subject": None,
        "expires_at": "2026-11-22T12:00:00.000000Z",
    }


async def test_the_last_admin_is_revoked_on_the_command_line_only(house: House) -> None:
    await house.token("alice", Role.ADMIN)
    with pytest.raises(Forbidden) as refused:
        await house.administration.revoke(actor(), "alice")
    assert refused.value.reason == "last-admin"
    assert house.actions.recorded[-1].outcome == "forbidden"
    answer = await house.administration.revoke(actor(proof=Proof.COMMAND_LINE), "alice")
    assert answer["operator"]["standing"] == "revoked"  # type: ignore[index,call-overload]


async def test_who_is_not_there_cannot_be_revoked(house: House) -> None:
    with pytest.raises(NotFound):
        await house.administration.revoke(actor(), "nobody")


async def test_an_active_name_is_not_given_twice(house: House) -> None:
    await house.token()
    with pytest.raises(OperatorExists):
        await house.token()


async def test_lists_come_in_pages(house: House) -> None:
    for name in ("alice", "bob", "carol"):
        await house.token(name)
    administration = house.administration
    page = await administration.operators(actor(), after=None, limit=2)
    assert page["next"] == "bob"
    page = await administration.operators(actor(), after="bob", limit=2)
    assert page["next"] is None
    assert [each["name"] for each in page["operators"]] == ["carol"]  # type: ignore[index,union-attr,call-overload]
    log = await administration.actions(actor(), before=None, limit=2)
    assert [each["target"] for each in log["actions"]] == ["carol", "bob"]  # type: ignore[index,union-attr,call-overload]
    log = await administration.actions(actor(), before=str(log["next"]), limit=2)
    assert [each["target"] for each in log["actions"]] == ["alice"]  # type: ignore[index,union-attr,call-overload]
    assert log["next"] is None

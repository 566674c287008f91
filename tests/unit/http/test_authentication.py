"""From a request's header or certificate to an actor, and what failing costs."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from kms.administration.authentication import Authentication, CredentialsNotAccepted
from kms.administration.operators import OperatorAdministration
from kms.errors import LedgerUnavailable, Unauthenticated
from kms.http.authentication import RequestAuthentication, TooManyFailures
from kms.operators import Actor, Proof, Role
from tests.certificates import Authority, pem
from tests.unit.operator_samples import MemoryActions, MemoryRegister, actor, journal
from tests.world import NOW

ADDRESS = "192.0.2.7"


@dataclass
class Provider:
    """Verifies foreign tokens: `good` is one."""

    seen: list[str] = field(default_factory=list)

    async def by_token(self, token: str, client: str) -> Actor:
        self.seen.append(token)
        if token != "good":
            raise CredentialsNotAccepted("oidc-malformed")
        return Actor(name="olga", role=Role.AUDITOR, proof=Proof.OIDC, proof_id="i olga", client=client)


@dataclass
class Door:
    """A request authentication on a register in memory."""

    elapsed: float = 1000.0
    now: datetime = NOW
    provider: Provider | None = None

    def __post_init__(self) -> None:
        self.actions = MemoryActions()
        self.register = MemoryRegister(self.actions)
        self.authenticate = RequestAuthentication(
            Authentication(register=self.register, clock=lambda: self.now),
            oidc=self.provider,
            clock=lambda: self.now,
            monotonic=lambda: self.elapsed,
        )

    async def add(self, name: str = "alice", subject: str | None = None) -> str:
        administration = OperatorAdministration(
            register=self.register, journal=journal(self.actions), randomness=secrets.token_bytes
        )
        answer = await administration.add(actor(), name, Role.OPERATOR, life=None, subject=subject)
        return str(answer["token"])

    async def why_not(self, request: Request) -> str:
        with capture_logs() as logs, pytest.raises(CredentialsNotAccepted) as refused:
            await self.authenticate(request)
        assert refused.value.reason == "credentials-not-accepted"
        [log] = logs
        assert log["event"] == "operator-not-authenticated"
        assert log["client"] == ADDRESS
        return str(log["why"])


def request(
    *authorization: str, certificate: tuple[str, str] | None = None, address: str = ADDRESS
) -> Request:
    """Make a request with these `Authorization` headers; `certificate` is its subject and PEM."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "client": (address, 5),
        "headers": [(b"authorization", each.encode("latin-1")) for each in authorization],
        "extensions": {"tls": {"client_cert_chain": [], "client_cert_name": None}},
    }
    if certificate is not None:
        scope["extensions"]["tls"] = {
            "client_cert_chain": [certificate[1]],
            "client_cert_name": certificate[0],
        }
    return Request(scope)


@pytest.fixture(scope="module")
def certificate() -> tuple[str, str]:
    authority = Authority("Operators", now=NOW)
    made, _ = authority.issue("bob")
    return made.subject.rfc4514_string(), pem(made)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_token_in_the_header_gives_its_operator(door: Door, scheme: str) -> None:
    token = await door.add()
    found = await door.authenticate(request(f"{scheme} {token}"))
    assert (found.name, found.proof, found.client) == ("alice", Proof.TOKEN, ADDRESS)


async def test_a_certificate_gives_its_operator(door: Door, certificate: tuple[str, str]) -> None:
    await door.add("bob", certificate[0])
    found = await door.authenticate(request(certificate=certificate))
    assert (found.name, found.proof, found.proof_id) == ("bob", Proof.CERTIFICATE, certificate[0])


async def test_nobody_is_told_to_show_something_and_pays_nothing(door: Door) -> None:
    for _ in range(100):
        with pytest.raises(Unauthenticated) as refused:
            await door.authenticate(request())
        assert refused.value.reason == "credentials-missing"
    without_tls = Request({"type": "http", "headers": [], "client": None})
    with pytest.raises(Unauthenticated):
        await door.authenticate(without_tls)


async def test_the_header_decides_whatever_certificate_there_is(
    door: Door, certificate: tuple[str, str]
) -> None:
    token = await door.add()
    await door.add("bob", certificate[0])
    both = request(f"Bearer {token}", certificate=certificate)
    assert (await door.authenticate(both)).name == "alice"
    bad = request("Bearer nonsense", certificate=certificate)
    assert await door.why_not(bad) == "token-malformed"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Basic YTpi", "Token x", "kmso_0123456789abcdef_" + "a" * 43, "Bearer\tx"]
)
async def test_what_is_no_bearer_token_is_refused(door: Door, header: str) -> None:
    assert await door.why_not(request(header)) in {"header-malformed", "token-malformed"}


async def test_two_headers_are_none(door: Door) -> None:
    token = await door.add()
    assert await door.why_not(request(f"Bearer {token}", f"Bearer {token}")) == "header-malformed"


async def test_only_tokens_that_are_not_ours_go_to_the_provider() -> None:
    provider = Provider()
    door = Door(provider=provider)
    token = await door.add()
    assert (await door.authenticate(request(f"Bearer {token}"))).name == "alice"
    assert await door.why_not(request("Bearer kmso_nonsense")) == "token-malformed"
    assert provider.seen == []
    assert (await door.authenticate(request("Bearer good"))).name == "olga"
    assert await door.why_not(request("Bearer bad")) == "oidc-malformed"
    assert provider.seen == ["good", "bad"]


async def test_a_certificate_that_expired_while_connected_counts_no_more(
    door: Door, certificate: tuple[str, str]
) -> None:
    """A connection may live for days, and a resumed session for hours."""
    await door.add("bob", certificate[0])
    door.now += timedelta(days=31)
    assert await door.why_not(request(certificate=certificate)) == "certificate-outlived"


async def test_lesson_35_no_log_names_a_token(door: Door) -> None:
    token = await door.add()
    wrong = token[:-3] + "abc"
    with capture_logs() as logs:
        for header in (f"Bearer {wrong}", f"bearer {token} {token}", f"Basic {token}"):
            with pytest.raises(CredentialsNotAccepted) as refused:
                await door.authenticate(request(header))
            assert token[22:-3] not in f"{refused.value!r} {refused.value.__dict__}"
    assert len(logs) == 3
    assert token[22:-3] not in f"{logs}"


async def test_lesson_37_who_fails_too_often_is_not_heard_any_more() -> None:
    provider = Provider()
    door = Door(provider=provider)
    for _ in range(20):
        await door.why_not(request("Bearer bad"))
    for _ in range(5):
        with pytest.raises(TooManyFailures) as limited:
            await door.authenticate(request("Bearer good"))
        assert (limited.value.code, limited.value.retry_after) == ("rate-limited", 1)
    assert len(provider.seen) == 20
    assert (await door.authenticate(request("Bearer good", address="192.0.2.8"))).name == "olga"
    door.elapsed += 0.2
    assert (await door.authenticate(request("Bearer good"))).name == "olga"


async def test_what_succeeds_is_not_counted(door: Door) -> None:
    token = await door.add()
    for _ in range(100):
        await door.authenticate(request(f"Bearer {token}"))


async def test_what_cannot_be_told_is_not_counted(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await door.add()

    async def fail(_: str) -> None:
        raise LedgerUnavailable("the database")

    monkeypatch.setattr(door.register, "by_token_id", fail)
    for _ in range(100):
        with pytest.raises(LedgerUnavailable):
            await door.authenticate(request(f"Bearer {token}"))

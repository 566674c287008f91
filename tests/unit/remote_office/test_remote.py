"""The remote office against the real application, in process: as if the office were here."""

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from typing_extensions import override

from kms.administration.office import Json, Office
from kms.errors import (
    CollateralUnavailable,
    ConfigurationError,
    EpochInUse,
    Forbidden,
    KeysConflict,
    KmsError,
    LedgerUnavailable,
    MalformedEvidence,
    MalformedRequest,
    NotFound,
    OperatorExists,
    OperatorRefusal,
    PolicyConflict,
    PolicyGated,
    PolicyRefused,
    RateLimited,
    RootKeyUnavailable,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from kms.operator_ports import RecordFilter
from kms.operators import Actor, Proof, Role
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.sshsig import parse_armored
from kms.remote_office import connection, open_remote
from kms.remote_office.errors import (
    AnswerRejected,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    ServerUntrusted,
)
from tests.api.operator_world import ACTOR, TOKEN, Operators, open_operators
from tests.unit.policy.test_sshsig import BY_SHA512

# Whoever runs the command; the server does not care.
ME = Actor(name="me", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
REVISION, OLD, RELEASE = "sha256:" + "9e" * 32, "sha256:" + "1c" * 32, "0" * 31 + "7"
FILES = {"a.yaml": b"\xef\xbb\xbfkind: app\r\n", "more/\xfc.yml": b"# [{,\"'\\ \xc3\xbc \xf0\x9f\x94\x91\n"}
AT = datetime(2026, 11, 1, 12, 0, 0, 250, tzinfo=UTC)
RAW = PolicySignature(SignatureFormat.ED25519, b"k" * 32, b"s" * 64)
ALL = RecordFilter(
    since=AT,
    until=AT + timedelta(days=1),
    app="ab" * 32,
    image="team/os 1&x=y",
    chip="ab" * 64,
    outcome="released",
    code="policy-denied",
    before=RELEASE,
)
MONTH = timedelta(days=30)

Asking = Callable[[Office, Actor], Awaitable[Json | str]]

ASKED: list[tuple[str, Asking]] = [
    ("status", lambda office, me: office.policies.status(me)),
    ("history", lambda office, me: office.policies.history(me, before=None, limit=50)),
    ("history", lambda office, me: office.policies.history(me, before=9, limit=500)),
    ("revision", lambda office, me: office.policies.revision(me, REVISION)),
    ("diff", lambda office, me: office.policies.diff(me, old=None, new=REVISION)),
    ("diff", lambda office, me: office.policies.diff(me, old=OLD, new=REVISION)),
    ("diff", lambda office, me: office.policies.diff(me, old=None, new=FILES)),
    ("diff", lambda office, me: office.policies.diff(me, old=OLD, new={})),
    ("lint", lambda office, me: office.policies.lint(me, FILES)),
    ("what_if", lambda office, me: office.policies.what_if(me, FILES, since=MONTH)),
    ("what_if", lambda office, me: office.policies.what_if(me, REVISION, since=MONTH)),
    ("apply", lambda office, me: office.policies.apply(me, FILES, message="", expect=None)),
    (
        "apply",
        lambda office, me: office.policies.apply(
            me, REVISION, message="two\nlines \u00fc", expect="none", gate=MONTH, lift_revocations=True
        ),
    ),
    ("rollback", lambda office, me: office.policies.rollback(me, OLD, message="m", expect=REVISION)),
    ("rollback", lambda office, me: office.policies.rollback(me, OLD, message="m", expect=None)),
    ("revoke", lambda office, me: office.policies.revoke(me, "image", "os/1", reason="no more")),
    ("proposals", lambda office, me: office.policies.proposals(me)),
    ("proposal", lambda office, me: office.policies.proposal(me, REVISION)),
    ("propose", lambda office, me: office.policies.propose(me, FILES, message="m")),
    (
        "propose",
        lambda office, me: office.policies.propose(me, REVISION, message="m", lift_revocations=True),
    ),
    ("sign", lambda office, me: office.policies.sign(me, REVISION, RAW)),
    ("sign", lambda office, me: office.policies.sign(me, REVISION, parse_armored(BY_SHA512))),
    ("releases", lambda office, me: office.records.releases(me, RecordFilter(), limit=50)),
    ("releases", lambda office, me: office.records.releases(me, ALL, limit=1)),
    ("release", lambda office, me: office.records.release(me, RELEASE)),
    ("explain", lambda office, me: office.records.explain(me, RELEASE)),
    ("verify", lambda office, me: office.records.verify(me, {"tee": "x"}, request=None, at=None)),
    ("verify", lambda office, me: office.records.verify(me, [1.5, None], request=b"{}", at=AT)),
    ("images", lambda office, me: office.images.images(me, after=None, limit=50)),
    ("images", lambda office, me: office.images.images(me, after="os 1&limit=2", limit=7)),
    ("measurements", lambda office, me: office.images.measurements(me, "os-1", after=None, limit=50)),
    ("measurements", lambda office, me: office.images.measurements(me, "a/../b:c?#", after="50", limit=50)),
    ("operators", lambda office, me: office.operators.operators(me, after=None, limit=50)),
    ("operators", lambda office, me: office.operators.operators(me, after="al@x.y", limit=1)),
    ("add", lambda office, me: office.operators.add(me, "bob", Role.VIEWER, life=MONTH, subject=None)),
    (
        "add",
        lambda office, me: office.operators.add(me, "b", Role.ADMIN, life=None, subject="CN=b\u00fc,O=x"),
    ),
    ("revoke_operator", lambda office, me: office.operators.revoke(me, "bob@example.com")),
    ("actions", lambda office, me: office.operators.actions(me, before=None, limit=50)),
    ("actions", lambda office, me: office.operators.actions(me, before=RELEASE, limit=50)),
    ("keys", lambda office, me: office.keys.keys(me)),
    ("rotate", lambda office, me: office.keys.rotate(me, at=None)),
    ("rotate", lambda office, me: office.keys.rotate(me, at=AT)),
    ("retire", lambda office, me: office.keys.retire(me, 7, seen_within=MONTH, force=False)),
    ("retire", lambda office, me: office.keys.retire(me, 12, seen_within=MONTH / 4, force=True)),
    ("rotation", lambda office, me: office.keys.rotation(me, app=None, since=MONTH)),
    ("rotation", lambda office, me: office.keys.rotation(me, app="ab" * 32, since=MONTH / 4)),
    ("rotate_identity", lambda office, me: office.keys.rotate_identity(me)),
    ("entries", lambda office, me: office.ledger.entries(me, start=0, limit=50, kind=None)),
    ("entries", lambda office, me: office.ledger.entries(me, start=7, limit=500, kind="action")),
    ("entry", lambda office, me: office.ledger.entry(me, 7)),
    ("entry", lambda office, me: office.ledger.entry(me, RELEASE)),
    ("statement", lambda office, me: office.ledger.statement(me)),
    ("checkpoint", lambda office, me: office.ledger.checkpoint(me)),
    ("proof", lambda office, me: office.ledger.proof(me, RELEASE)),
]


@pytest.fixture
async def kms() -> AsyncIterator[Operators]:
    async with open_operators() as operators:
        yield operators


@asynccontextmanager
async def remote(kms: Operators, *, token: str = TOKEN) -> AsyncIterator[Office]:
    transport = httpx2.ASGITransport(app=kms.app, raise_app_exceptions=False)
    async with open_remote("https://kms:8443", token=token, ca=None, transport=transport) as office:
        yield office


def test_every_method_is_asked() -> None:
    parts = Office.__annotations__.values()
    methods = {name for part in parts for name in vars(part) if not name.startswith("_")}
    assert {name.removesuffix("_operator") for name, _ in ASKED} == methods
    assert {"revoke", "revoke_operator"} <= {name for name, _ in ASKED}


@pytest.mark.parametrize(("method", "asking"), ASKED)
async def test_an_office_far_away_is_as_one_that_is_here(kms: Operators, method: str, asking: Asking) -> None:
    kms.fake.answers[method] = {"answered": [1, None, 2.5, "\u00fc", {"nested": True}]}
    here = await asking(kms.fake.office, ME)
    async with remote(kms) as office:
        there = await asking(office, ME)
    assert there == here
    locally, remotely = kms.fake.calls
    assert remotely.arguments == locally.arguments
    assert (locally.actor, remotely.actor) == (ME, ACTOR)


async def test_begun_seconds_count(kms: Operators) -> None:
    kms.fake.answers["what_if"] = {}
    async with remote(kms) as office:
        await office.policies.what_if(ME, REVISION, since=timedelta(microseconds=1))
    assert kms.fake.asked("what_if")[0]["since"] == timedelta(seconds=1)


async def test_what_is_no_text_is_no_policy(kms: Operators) -> None:
    async with remote(kms) as office:
        with pytest.raises(MalformedRequest, match=r"^b\.yaml: not UTF-8"):
            await office.policies.lint(ME, {"a.yaml": b"", "b.yaml": b"\xff"})


async def test_a_policy_of_many_megabytes_goes_there_and_back(kms: Operators) -> None:
    text = 'chips: ["' + '", "'.join(f"{number:0128x}" for number in range(30_000)) + '"]\n'
    documents: Json = {"documents": [{"chips": [str(number) for number in range(100_000)]}]}
    kms.fake.answers["lint"] = documents
    async with remote(kms) as office:
        assert await office.policies.lint(ME, {"rack.yaml": text.encode()}) == documents
    assert kms.fake.asked("lint") == [{"files": {"rack.yaml": text.encode()}}]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("the role viewer does not", reason="role-may-not-change-policy"),
        NotFound("no such revision"),
        PolicyConflict("another one", details={"expected": OLD, "active": None, "diff": {"changes": []}}),
        PolicyGated("they would be refused", details={"what_if": {"judged": 1, "newly_refused": [{}]}}),
        PolicyRefused("errors", details={"findings": [{"file": "a.yaml", "line": 1}]}),
        PolicyRefused("lifted", reason="revocations-lifted"),
        OperatorExists("there is a bob"),
        KeysConflict("epoch 3 waits for its time"),
        EpochInUse("1 guest is left behind", details={"guests": [{"epochs": [1]}], "count": 1}),
        MalformedRequest("a name has letters"),
        MalformedEvidence("the report ends at 12", reason="report-length"),
        TooLarge("the request is longer than 64 KiB", reason="request-too-large"),
        LedgerUnavailable("locked", retry_after=7),
        RootKeyUnavailable("sealed"),
        CollateralUnavailable("AMD is silent", reason="kds-throttled", retry_after=60),
    ],
    ids=lambda error: f"{type(error).__name__} {error.reason}",
)
async def test_a_refusal_far_away_is_as_one_that_is_here(kms: Operators, error: KmsError) -> None:
    kms.fake.answers["status"] = error
    async with remote(kms) as office:
        with pytest.raises(KmsError) as raised:
            await office.policies.status(ME)
    there = raised.value
    assert type(there) is type(error)
    assert (there.detail, there.reason, str(there)) == (error.detail, error.reason, str(error))
    if isinstance(error, OperatorRefusal) and isinstance(there, OperatorRefusal):
        assert there.details == error.details
    if isinstance(error, Unavailable) and isinstance(there, Unavailable):
        assert there.retry_after == error.retry_after


async def test_a_token_of_nobody(kms: Operators) -> None:
    async with remote(kms, token="kms_op_another-token") as office:
        with pytest.raises(Unauthenticated) as refused:
            await office.policies.status(ME)
    assert refused.value.details == {}
    assert "another-token" not in str(refused.value)
    assert kms.fake.calls == []


async def test_what_the_routes_refuse_is_malformed(kms: Operators) -> None:
    async with remote(kms) as office:
        with pytest.raises(MalformedRequest, match=r"`limit` must be a number from 1 to 500"):
            await office.policies.history(ME, before=None, limit=501)
        with pytest.raises(NotFound):
            await office.policies.revision(ME, "../../healthz")
        with pytest.raises(MalformedRequest, match="lone surrogate"):
            await office.policies.revoke(ME, "chip", "\udcff", reason="")
    assert kms.fake.calls == []


# ── what else can come ────────────────────────────────────────────────────────────────────────


class Network(httpx2.AsyncBaseTransport):
    """A server that answers as it is told, and what it was asked."""

    def __init__(self, answer: Callable[[], httpx2.Response]) -> None:
        self.answer = answer
        self.requests: list[httpx2.Request] = []

    @override
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        made = self.answer()
        if not made.is_stream_consumed:
            return made
        # As from a network: not read yet.
        return httpx2.Response(made.status_code, headers=made.headers, stream=httpx2.ByteStream(made.content))


async def status_of(network: Network) -> Json:
    async with open_remote("https://kms:8443", token=TOKEN, ca=None, transport=network) as office:
        return await office.policies.status(ME)


def problem(status: int, code: str, **members: object) -> Callable[[], httpx2.Response]:
    return lambda: httpx2.Response(status, json={"code": code, "request_id": "ab12", **members})


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (problem(429, "rate-limited", title="Too many"), RateLimited, "Too many"),
        (problem(503, "server-busy", title="Later"), ServerBusy, "^Later$"),
        (
            problem(500, "internal", detail="damaged"),
            ServerFailed,
            r"^damaged \(500 internal, request ab12\)$",
        ),
        (problem(405, "method-not-allowed"), ServerFailed, r"\(405 method-not-allowed, request ab12\)$"),
        (problem(403, "policy-denied"), ServerFailed, "403 policy-denied"),
        (problem(409, "policy-conflict", detail="\x1b[2J", title="Another"), PolicyConflict, "^Another$"),
        (problem(409, "policy-conflict", detail=7, details=7, reasons=7), PolicyConflict, "nothing more"),
        (problem(409, "x\n", request_id={}), ServerFailed, r"\(409 \)$"),
        (lambda: httpx2.Response(200, content=b"<html>"), AnswerRejected, "not JSON"),
        (lambda: httpx2.Response(502, content=b"Bad Gateway"), AnswerRejected, r"\(502\) is not JSON"),
        (lambda: httpx2.Response(200, json=[]), AnswerRejected, "not a JSON object"),
        (lambda: httpx2.Response(200, content=b'{"a":1,"a":2}'), AnswerRejected, "twice"),
        (lambda: httpx2.Response(204), AnswerRejected, "not JSON"),
        (lambda: httpx2.Response(200, content=b" " * 2000), AnswerRejected, "longer than"),
    ],
)
async def test_other_answers_are_errors_too(
    answer: Callable[[], httpx2.Response],
    expected: type[KmsError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER", 1000)
    with pytest.raises(expected, match=said) as raised:
        await status_of(Network(answer))
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7), ("9" * 400, 86_400), ("-1", 1), ("soon", 1), ("\u0663", 1), ("", 1)]
)
async def test_a_wait_is_a_number_of_seconds(header: str, wait: int) -> None:
    def answer() -> httpx2.Response:
        headers = [(b"retry-after", header.encode())]
        return httpx2.Response(503, json={"code": "ledger-unavailable"}, headers=headers)

    with pytest.raises(LedgerUnavailable) as raised:
        await status_of(Network(answer))
    assert raised.value.retry_after == wait


async def test_a_redirect_does_not_take_the_token_elsewhere() -> None:
    network = Network(lambda: httpx2.Response(307, json={}, headers={"location": "https://other/"}))
    with pytest.raises(ServerFailed):
        await status_of(network)
    assert [str(request.url) for request in network.requests] == ["https://kms:8443/v1/policy"]


def _fails(error: Exception) -> Callable[[], httpx2.Response]:
    def fail() -> httpx2.Response:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [httpx2.ReadTimeout(""), httpx2.WriteTimeout(""), httpx2.ReadError("reset"), httpx2.WriteError("reset"),
     httpx2.RemoteProtocolError("it hung up")],
)  # fmt: skip
async def test_after_something_was_sent_nobody_knows(error: Exception) -> None:
    with pytest.raises(ServerUnreachable, match=r"; whether the server did it is not known$") as raised:
        await status_of(Network(_fails(error)))
    assert raised.value.detail.startswith(str(error) or "no answer in time")


@pytest.mark.parametrize(
    ("url", "place"),
    [("https://kms:8443", "kms:8443"), ("https://kms/", "kms:443"), ("https://[2001:db8::1]:8443",
     "[2001:db8::1]:8443")],
)  # fmt: skip
@pytest.mark.parametrize("error", [httpx2.ConnectError("refused"), httpx2.ConnectTimeout("")])
async def test_without_a_connection_nothing_was_done(url: str, place: str, error: Exception) -> None:
    async with open_remote(url, token=TOKEN, ca=None, transport=Network(_fails(error))) as office:
        with pytest.raises(ServerUnreachable) as raised:
            await office.policies.status(ME)
    why = str(error) or "no answer in time"
    assert raised.value.detail == f"could not connect to {place}: {why}; nothing was done"


@pytest.mark.enable_socket
async def test_a_port_where_nobody_listens() -> None:
    """By the library's own errors, not by those that this test makes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{bound.getsockname()[1]}"
        async with open_remote(f"https://{place}", token=TOKEN, ca=None) as office:
            with pytest.raises(ServerUnreachable, match=f"^could not connect to {place}: .*; nothing was"):
                await office.policies.status(ME)


async def test_a_server_that_is_another() -> None:
    refused = ssl.SSLCertVerificationError("refused")
    refused.verify_message = "self-signed certificate"
    untrusted = httpx2.ConnectError("TLS")
    untrusted.__cause__ = refused
    with pytest.raises(ServerUntrusted, match="self-signed certificate"):
        await status_of(Network(_fails(untrusted)))


async def test_an_answer_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip() -> AsyncIterator[bytes]:
        import asyncio

        while True:
            yield b" "
            await asyncio.sleep(0.01)

    monkeypatch.setattr(connection, "_DEADLINE", 0.1)
    with pytest.raises(ServerUnreachable, match="no answer in time"):
        await status_of(Network(lambda: httpx2.Response(200, content=drip())))


# ── the token, and whom it is shown ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    ["http://kms:8443", "http://localhost", "https://", "kms:8443", "https://a@kms", "https://kms/?x=1",
     "https://kms/#x", "ftp://kms", ""],
)  # fmt: skip
async def test_only_https_is_spoken(url: str) -> None:
    with pytest.raises(ConfigurationError):
        async with open_remote(url, token=TOKEN, ca=None):
            pass


@pytest.mark.parametrize("token", ["", "two words", "line\nX-Other: 1", "\u00fc", "x" * 20_000, "\0"])
async def test_a_token_that_is_none_is_not_repeated(token: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with open_remote("https://kms", token=token, ca=None):
            pass
    assert token == "" or token not in str(refused.value) + refused.value.remedy


async def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match=name):
            async with open_remote("https://kms", token=TOKEN, ca=tmp_path / name):
                pass


async def test_the_token_is_in_one_header_and_nowhere_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    # What the environment says of passwords and proxies is not asked.
    netrc = tmp_path / "netrc"
    netrc.write_text("machine kms login somebody password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    network = Network(_fails(httpx2.ConnectError("refused")))
    async with open_remote("https://kms:8443", token=TOKEN, ca=None, transport=network) as office:
        with pytest.raises(ServerUnreachable) as raised:
            await office.policies.lint(ME, FILES)
        shown = [repr(office), str(raised.value), repr(raised.value), caplog.text]
        parts = (office.policies, office.records, office.operators, office.keys)
        shown += [repr(vars(part)) for part in parts]
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    assert not any(TOKEN in text for text in shown)
    (request,) = network.requests
    holding = [name for name, value in request.headers.items() if TOKEN in value]
    assert holding == ["authorization"]
    assert TOKEN not in str(request.url)
    assert TOKEN.encode() not in request.content

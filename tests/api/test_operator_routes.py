"""The operators' routes over an office that only remembers: who may ask, what is read, what is answered."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx2
import pytest
from starlette.types import Message
from structlog.testing import capture_logs

from kms.encoding import b64url
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
    PolicyConflict,
    PolicyGated,
    PolicyRefused,
    RootKeyUnavailable,
)
from kms.http import candidate_schemas, key_schemas, operator_schemas, policy_schemas, record_schemas
from kms.http.limits import MAX_BODY, MAX_LONG_BODY
from kms.http.problems import KINDS
from kms.http.schemas import Shape
from kms.operator_ports import RecordFilter
from kms.operators import Role
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.sshsig import armored
from tests.api.operator_world import ACTOR, TOKEN, Operators, open_operators
from tests.unit.policy.test_sshsig import BY_SHA256, BY_SHA512, FOR_FILES

REVISION = "sha256:" + "9e" * 32
OLD = "sha256:" + "1c" * 32
RELEASE = "0" * 31 + "7"
FILES = {"a.yaml": "kind: app\n", "more/ü.yml": '# [{,"\n'}
READ_FILES = {name: text.encode() for name, text in FILES.items()}
CANARY = "canary-4f1c9d"
DAY = timedelta(days=1)
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Route(NamedTuple):
    """A request, and what the office is asked by it."""

    method: str
    path: str
    asked: str
    arguments: dict[str, Any]
    body: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]} {self.asked}"


ROUTES = [
    Route("GET", "/v1/policy", "status", {}),
    Route("GET", "/v1/policy/changes", "history", {"before": None, "limit": 50}),
    Route("GET", "/v1/policy/changes?limit=500&before=7", "history", {"before": 7, "limit": 500}),
    Route("GET", f"/v1/policy/revisions/{REVISION}", "revision", {"revision": REVISION}),
    Route("GET", f"/v1/policy/diff?to={REVISION}", "diff", {"old": None, "new": REVISION}),
    Route("GET", f"/v1/policy/diff?from={OLD}&to={REVISION}", "diff", {"old": OLD, "new": REVISION}),
    Route("POST", "/v1/policy/diff", "diff", {"old": None, "new": READ_FILES}, {"files": FILES}),
    Route("POST", "/v1/policy/diff", "diff", {"old": OLD, "new": {}}, {"files": {}, "from": OLD}),
    Route("POST", "/v1/policy/lint", "lint", {"files": READ_FILES}, {"files": FILES}),
    Route(
        "POST",
        "/v1/policy/what-if",
        "what_if",
        {"new": REVISION, "since": DAY},
        {"revision": REVISION, "since_seconds": 86_400},
    ),
    Route(
        "POST",
        "/v1/policy/apply",
        "apply",
        {"new": READ_FILES, "message": "m", "expect": None, "gate": None, "lift_revocations": False},
        {"files": FILES, "message": "m"},
    ),
    Route(
        "POST",
        "/v1/policy/apply",
        "apply",
        {"new": REVISION, "message": "", "expect": "none", "gate": DAY, "lift_revocations": True},
        {
            "revision": REVISION,
            "message": "",
            "expect": "none",
            "gate_seconds": 86_400,
            "lift_revocations": True,
        },
    ),
    Route(
        "POST",
        "/v1/policy/rollback",
        "rollback",
        {"revision": OLD, "message": "two\nlines", "expect": REVISION},
        {"revision": OLD, "message": "two\nlines", "expect": REVISION},
    ),
    Route(
        "POST",
        "/v1/policy/revocations",
        "revoke",
        {"kind": "chip", "value": "ab" * 64, "reason": "stolen"},
        {"kind": "chip", "value": "ab" * 64, "reason": "stolen"},
    ),
    Route("GET", "/v1/policy/proposals", "proposals", {}),
    Route(
        "POST",
        "/v1/policy/proposals",
        "propose",
        {"new": REVISION, "message": "m", "lift_revocations": False},
        {"revision": REVISION, "message": "m"},
    ),
    Route("GET", f"/v1/policy/proposals/{REVISION}", "proposal", {"revision": REVISION}),
    Route(
        "POST",
        f"/v1/policy/proposals/{REVISION}/signatures",
        "sign",
        {
            "revision": REVISION,
            "signature": PolicySignature(SignatureFormat.ED25519, b"k" * 32, b"s" * 64),
        },
        {"format": "ed25519", "public_key": b64url(b"k" * 32), "signature": b64url(b"s" * 64)},
    ),
    Route("GET", "/v1/releases", "releases", {"wanted": RecordFilter(), "limit": 50}),
    Route(
        "GET",
        f"/v1/releases?since=2026-11-01T12:00:00Z&until=2026-11-01T12:00:00.5Z&app={'ab' * 20}&image=os/1"
        f"&chip={'ab' * 64}&outcome=refused&code=policy-denied&before={RELEASE}&limit=1",
        "releases",
        {
            "wanted": RecordFilter(
                since=AT,
                until=AT + timedelta(milliseconds=500),
                app="ab" * 20,
                image="os/1",
                chip="ab" * 64,
                outcome="refused",
                code="policy-denied",
                before=RELEASE,
            ),
            "limit": 1,
        },
    ),
    Route("GET", f"/v1/releases/{RELEASE}", "release", {"release_id": RELEASE}),
    Route("GET", f"/v1/releases/{RELEASE}/explanation", "explain", {"release_id": RELEASE}),
    Route(
        "POST",
        "/v1/verifications",
        "verify",
        {"evidence": {"tee": "sev-snp"}, "request": None, "at": None},
        {"evidence": {"tee": "sev-snp"}},
    ),
    Route(
        "POST",
        "/v1/verifications",
        "verify",
        {"evidence": [], "request": b"{}", "at": AT},
        {"evidence": [], "request": "e30", "at": "2026-11-01T12:00:00Z"},
    ),
    Route("GET", "/v1/images", "images", {"after": None, "limit": 50}),
    Route("GET", "/v1/images?after=os-1&limit=2", "images", {"after": "os-1", "limit": 2}),
    Route(
        "GET",
        "/v1/images/team%2Fos:1/measurements?after=10",
        "measurements",
        {"name": "team/os:1", "after": "10", "limit": 50},
    ),
    Route("GET", "/v1/operators", "operators", {"after": None, "limit": 50}),
    Route(
        "POST",
        "/v1/operators",
        "add",
        {"name": "bob", "role": Role.AUDITOR, "life": DAY, "subject": None},
        {"name": "bob", "role": "auditor", "life_seconds": 86_400},
    ),
    Route(
        "POST",
        "/v1/operators",
        "add",
        {"name": "bob", "role": Role.ADMIN, "life": None, "subject": "CN=bob"},
        {"name": "bob", "role": "admin", "subject": "CN=bob"},
    ),
    Route("DELETE", "/v1/operators/bob@example.com", "revoke_operator", {"name": "bob@example.com"}),
    Route("GET", f"/v1/operators/actions?before={RELEASE}", "actions", {"before": RELEASE, "limit": 50}),
    Route("GET", "/v1/keys", "keys", {}),
    Route("POST", "/v1/keys/rotate", "rotate", {"at": None}, {}),
    Route("POST", "/v1/keys/rotate", "rotate", {"at": AT}, {"at": "2026-11-01T12:00:00Z"}),
    Route(
        "POST",
        "/v1/keys/epochs/7/retire",
        "retire",
        {"epoch": 7, "seen_within": 30 * DAY, "force": False},
        {},
    ),
    Route(
        "POST",
        "/v1/keys/epochs/7/retire",
        "retire",
        {"epoch": 7, "seen_within": DAY, "force": True},
        {"seen_within_seconds": 86_400, "force": True},
    ),
    Route("GET", "/v1/keys/rotation", "rotation", {"app": None, "since": 30 * DAY}),
    Route(
        "GET",
        f"/v1/keys/rotation?app={'ab' * 32}&since_seconds=86400",
        "rotation",
        {"app": "ab" * 32, "since": DAY},
    ),
    Route("POST", "/v1/keys/identity", "rotate_identity", {}, {}),
    Route("GET", "/v1/ledger/entries", "entries", {"start": 0, "limit": 50, "kind": None}),
    Route(
        "GET",
        "/v1/ledger/entries?from=1000&limit=500&kind=action",
        "entries",
        {"start": 1000, "limit": 500, "kind": "action"},
    ),
    Route("GET", "/v1/ledger/entries/0", "entry", {"which": 0}),
    Route("GET", f"/v1/ledger/entries/{RELEASE}", "entry", {"which": RELEASE}),
]
BODIES = [route for route in ROUTES if route.body is not None]
LONG = [route for route in BODIES if route.body and "files" in route.body]


@pytest.fixture
async def kms() -> AsyncIterator[Operators]:
    async with open_operators() as operators:
        yield operators


def check_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert body["request_id"] == response.headers["kms-request-id"]
    assert CANARY not in response.text
    return body


# ── what is asked of the office ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_the_office_is_asked_and_its_answer_given(kms: Operators, route: Route) -> None:
    kms.fake.answers[route.asked] = {"answer": [route.asked, None, 1]}
    response = await kms.ask(route.method, route.path, json=route.body)
    assert response.status_code == (201 if route.asked == "add" else 200), response.text
    assert response.json() == {"answer": [route.asked, None, 1]}
    assert response.headers["cache-control"] == "no-store"
    assert kms.fake.asked(route.asked) == [route.arguments]
    assert [call.actor for call in kms.fake.calls] == [ACTOR]


async def test_an_ssh_signature_is_read_with_its_key(kms: Operators) -> None:
    kms.fake.answers["sign"] = {}
    path = f"/v1/policy/proposals/{REVISION}/signatures"
    for text in (BY_SHA256, BY_SHA512):
        response = await kms.ask("POST", path, json={"format": "sshsig", "signature": text})
        assert response.status_code == 200, response.text
    assert [armored(call["signature"]) for call in kms.fake.asked("sign")] == [BY_SHA256, BY_SHA512]


@pytest.mark.parametrize(
    "body",
    [
        {"format": "sshsig", "signature": FOR_FILES},
        {"format": "sshsig", "signature": BY_SHA256, "public_key": b64url(b"k" * 32)},
        {"format": "pgp", "signature": BY_SHA256},
        {"format": "ed25519", "signature": BY_SHA256, "public_key": b64url(b"k" * 32)},
        {"format": "ed25519", "signature": b64url(b"s" * 63), "public_key": b64url(b"k" * 32)},
        {"format": "ed25519", "signature": b64url(b"s" * 64), "public_key": b64url(b"k" * 33)},
        {"format": "ed25519", "signature": b64url(b"s" * 64)},
    ],
)
async def test_another_signature_is_refused(kms: Operators, body: dict[str, str]) -> None:
    response = await kms.ask("POST", f"/v1/policy/proposals/{REVISION}/signatures", json=body)
    check_problem(response, 400, "malformed-request")
    assert kms.fake.calls == []


# ── who may ask ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize("token", [None, "another"])
async def test_nobody_else_is_answered_or_told_why(kms: Operators, route: Route, token: str | None) -> None:
    wrong = route.path + ("&x=1" if "?" in route.path else "?x=1")
    response = await kms.ask(route.method, wrong, token=token, json=route.body)
    problem = check_problem(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    assert set(problem) == {"type", "title", "status", "code", "request_id"}
    assert kms.fake.calls == []


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"{", {"content-type": "application/json"}),
        (b"\xff" * 100, {"content-type": "text/plain"}),
        (b"x", {"content-encoding": "gzip"}),
        (b"[" * 100_000, {}),
        (b"x" * (MAX_BODY + 1), {"content-type": "application/json"}),
    ],
)
@pytest.mark.parametrize("path", sorted({route.path for route in BODIES}))
async def test_whatever_the_body_is_a_stranger_gets_401(
    kms: Operators, path: str, content: bytes, headers: dict[str, str]
) -> None:
    response = await kms.ask("POST", path, token=None, content=content, headers=headers)
    check_problem(response, 401, "unauthenticated")


@pytest.mark.parametrize(("token", "read"), [("another", 0), (TOKEN, 1)])
async def test_no_byte_of_a_strangers_body_is_read(kms: Operators, token: str, read: int) -> None:
    kms.fake.answers["lint"] = {}
    sent: list[Message] = []

    async def receive() -> Message:
        kms.order.append("body")
        return {"type": "http.request", "body": b'{"files":{}}', "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/policy/lint",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
    }
    await kms.app(scope, receive, send)
    assert kms.order == ["authenticated"] + ["body"] * read
    assert sent[0]["status"] == (200 if read else 401)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/verifications", {"POST"}),
        ("/v1/releases", {"GET", "POST"}),
        ("/v1/policy/diff", {"GET", "POST"}),
        ("/v1/policy/apply", {"POST"}),
        ("/v1/operators", {"GET", "POST"}),
        ("/v1/keys", {"GET"}),
        ("/v1/keys/identity", {"POST"}),
    ],
)
async def test_another_method_is_named_as_such(kms: Operators, path: str, allowed: set[str]) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        if method not in allowed:
            response = await kms.ask(method, path, token=None)
            assert response.status_code == 405
            assert set(response.headers["allow"].split(", ")) == allowed
    assert kms.order == []


# ── what is refused ───────────────────────────────────────────────────────────────────────────

BAD_QUERIES = [
    ("/v1/policy", f"{CANARY}=1"),
    ("/v1/policy", "limit=1"),
    *(("/v1/policy/changes", f"limit={value}") for value in ("0", "501", "-1", "1.0", "x", "", "٣", "5e1")),
    ("/v1/policy/changes", "limit=1&limit=1"),
    ("/v1/policy/changes", "before=0"),
    ("/v1/policy/changes", f"before={'9' * 30}"),
    ("/v1/policy/changes", f"before={RELEASE}"),
    ("/v1/policy/diff", ""),
    ("/v1/policy/diff", f"from={OLD}"),
    ("/v1/policy/diff", f"to={CANARY}"),
    ("/v1/policy/diff", f"to={REVISION.upper()}"),
    ("/v1/policy/diff", f"to={REVISION}&from="),
    ("/v1/policy/diff", f"to={REVISION}%0a"),
    *(("/v1/releases", f"app={value}") for value in ("", "ab", "AB" * 20, "00" * 20, "ab" * 21, CANARY)),
    *(("/v1/releases", f"chip={value}") for value in ("ab" * 32, "00" * 64, "zz" * 64)),
    *(("/v1/releases", f"image={value}") for value in ("", "%00", "%ff", "a" * 513, "%0a", "%1b%5b2J")),
    ("/v1/releases", "outcome=allowed"),
    ("/v1/releases", "code=Policy"),
    ("/v1/releases", "before=x"),
    *(
        ("/v1/releases", f"since={value}")
        for value in (
            "2026", "2026-11-01", "2026-11-01T12:00:00", "2026-11-01T12:00:00+01:00", "2026-13-01T12:00:00Z",
            "2026-11-01T25:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "now", "1762000000",
            "2026-11-01T12:00:00.1234567Z", "२०२६-11-01T12:00:00Z",
        )
    ),
    ("/v1/images", f"after={'a' * 513}"),
    ("/v1/images", "after="),
    ("/v1/operators", "after=%00"),
    ("/v1/operators/actions", "before=1"),
    ("/v1/operators/actions", "%00=1"),
    ("/v1/keys", "epoch=1"),
    *(("/v1/keys/rotation", f"app={value}") for value in ("", "ab", "00" * 32, CANARY)),
    *(
        ("/v1/keys/rotation", f"since_seconds={value}")
        for value in ("", "0", "-1", "1.5", "30d", "315360001", "9" * 20, "٣")
    ),
    *(("/v1/ledger/entries", f"from={value}") for value in ("", "-1", "01", "1.5", "9" * 16, "٣", "%0a1")),
    *(("/v1/ledger/entries", f"kind={value}") for value in ("", "decisions", "Action", CANARY)),
    ("/v1/ledger/entries/0", "kind=action"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "query"), BAD_QUERIES)
async def test_a_query_is_read_strictly(kms: Operators, path: str, query: str) -> None:
    response = await kms.ask("GET", f"{path}?{query}")
    assert check_problem(response, 400, "malformed-request")["detail"].startswith("query: ")
    assert kms.fake.calls == []


async def test_an_unknown_parameter_is_named_if_it_is_a_word(kms: Operators) -> None:
    told = [
        check_problem(await kms.ask("GET", f"/v1/images?{name}=x"), 400, "malformed-request")["detail"]
        for name in ("lmit", "%3Cscript%3E", "a" * 65)
    ]
    known = "known: `limit`, `after`"
    assert told == [f"query: unknown parameter `lmit`; {known}", *[f"query: unknown parameter; {known}"] * 2]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/policy/revisions/x",
        f"/v1/policy/revisions/{REVISION}0",
        f"/v1/policy/revisions/{REVISION.upper()}",
        f"/v1/policy/revisions/{REVISION}/",
        f"/v1/policy/proposals/{REVISION[7:]}",
        "/v1/releases/x",
        f"/v1/releases/{'A' * 32}",
        f"/v1/releases/{RELEASE}0",
        f"/v1/releases/{RELEASE}%0a",
        "/v1/releases/..%2f..%2fetc",
        "/v1/images//measurements",
        "/v1/images/%00/measurements",
        f"/v1/images/{'a' * 513}/measurements",
        "/v1/policy/",
        "/v1/operators/",
        "/v1/nothing",
        "/v1/keys/",
        "/v1/keys/epochs",
        "/v1/ledger/entries/",
        "/v1/ledger/entries/-1",
        "/v1/ledger/entries/01",
        f"/v1/ledger/entries/{'9' * 16}",
        f"/v1/ledger/entries/{'A' * 32}",
        "/v1/ledger/entries/1%0a",
        "/v1/ledger/entries/٣",
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_path_that_can_name_nothing_is_not_there(
    kms: Operators, path: str, token: str | None
) -> None:
    check_problem(await kms.ask("GET", path, token=token), 404, "not-found")
    assert kms.fake.calls == []


@pytest.mark.parametrize("epoch", ["0", "-1", "01", "1.0", "x", "%00", "1%0a", "9" * 10, "٣", ""])
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_an_epoch_is_a_number(kms: Operators, epoch: str, token: str | None) -> None:
    response = await kms.ask("POST", f"/v1/keys/epochs/{epoch}/retire", token=token, json={})
    check_problem(response, 404, "not-found")
    assert kms.fake.calls == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/keys/rotate", {"at": "2026-11-01T12:00:00"}),
        ("/v1/keys/rotate", {"at": "2026-11-01T12:00:00+01:00"}),
        ("/v1/keys/rotate", {"at": None}),
        ("/v1/keys/epochs/7/retire", {"seen_within_seconds": 0}),
        ("/v1/keys/epochs/7/retire", {"seen_within_seconds": 315_360_001}),
        ("/v1/keys/epochs/7/retire", {"force": 1}),
        ("/v1/keys/identity", {"generation": 2}),
    ],
)
async def test_a_change_of_keys_is_read_strictly(kms: Operators, path: str, body: dict[str, Any]) -> None:
    check_problem(await kms.ask("POST", path, json=body), 400, "malformed-request")
    assert kms.fake.calls == []


NOT_JSON = [
    b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff", b"{}{}", b"[" * 200_000, b"NaN", b'{"a":1,"a":1}',
    b"[" + b"1," * 200_000 + b"1]", b'{"message":"\\ud800"}',
]  # fmt: skip
ODD: list[object] = [
    None, True, 0, -1, 1.5, 2**53 - 1, "", "x", "\0", "\x1b[2J", "\ud800", "é" * 5000, [], [[]], {}, {"a": 1},
    {"../a.yaml": ""}, {"a.yaml": 1}, CANARY,
]  # fmt: skip


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.name)
async def test_bodies_are_read_strictly(kms: Operators, route: Route) -> None:
    as_json = {"content-type": "application/json"}
    for content in NOT_JSON:
        response = await kms.ask("POST", route.path, content=content, headers=as_json)
        check_problem(response, 400, "malformed-request")
    assert route.body is not None
    wrong = [{**route.body, CANARY: CANARY}, {"body": route.body}]
    # Of two alternatives each is enough without the other, and some members may be left out.
    needed = set(route.body) - {
        *("from", "expect", "gate_seconds", "lift_revocations", "request", "at", "life_seconds", "subject"),
        *("seen_within_seconds", "force"),
    }
    wrong += [{k: v for k, v in route.body.items() if k != name} for name in needed]
    for body in wrong:
        response = await kms.ask("POST", route.path, json=body)
        check_problem(response, 400, "malformed-request")
    assert kms.fake.calls == []


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.name)
async def test_no_value_of_a_member_makes_the_server_fail(kms: Operators, route: Route) -> None:
    kms.fake.answers[route.asked] = {}
    assert route.body is not None
    for name in route.body:
        for value in ODD:
            content = json.dumps({**route.body, name: value})
            response = await kms.ask(
                "POST", route.path, content=content, headers={"content-type": "application/json"}
            )
            if response.status_code >= 300:
                check_problem(response, 400, "malformed-request")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a.yaml", "/a.yaml", "a/../b.yaml", "a//b.yaml", "./a.yaml", ".a.yaml", "a/.b/c.yaml",
     "a.txt", "a", "a\\b.yaml", "a\n.yaml", "a/", "a.yaml/", "\0.yaml", "a" * 5000 + ".yaml"],
)  # fmt: skip
async def test_a_file_has_a_name_that_a_folder_gives(kms: Operators, name: str) -> None:
    """Whoever asks for the revision may write its files to a disk."""
    response = await kms.ask("POST", "/v1/policy/lint", json={"files": {name: ""}})
    check_problem(response, 400, "malformed-request")
    assert kms.fake.calls == []


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.name)
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
    ids=str,
)
async def test_a_body_says_that_it_is_json(kms: Operators, route: Route, headers: dict[str, str]) -> None:
    """What says nothing is refused too: a web page can send it with an operator's client certificate."""
    content = json.dumps(route.body).encode()
    response = await kms.ask("POST", route.path, content=content, headers=headers)
    check_problem(response, 415, "unsupported-media-type")
    assert kms.fake.calls == []


# ── long bodies ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.name)
async def test_only_what_holds_policies_may_be_long(kms: Operators, route: Route) -> None:
    kms.fake.answers[route.asked] = {}
    content = json.dumps({**(route.body or {}), "files": {"a.yaml": "[{,\"'" * 300_000}}).encode()
    assert len(content) > MAX_BODY
    as_json = {"content-type": "application/json"}
    response = await kms.ask("POST", route.path, content=content, headers=as_json)
    if route in LONG:
        assert response.status_code == 200, response.text
    elif "revision" in (route.body or {}) and route.asked in {"apply", "propose", "what_if"}:
        check_problem(response, 400, "malformed-request")  # read, and both of two alternatives
    else:
        check_problem(response, 413, "too-large")
        assert response.headers["connection"] == "close"


async def test_a_long_body_has_a_limit_by_its_word_and_in_fact(kms: Operators) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * (1 << 20)

    for content, length in ((b"{}", str(MAX_LONG_BODY + 1)), (endless(), None)):
        headers = {"content-type": "application/json"} | ({"content-length": length} if length else {})
        response = await kms.ask("POST", "/v1/policy/lint", content=content, headers=headers)
        check_problem(response, 413, "too-large")


async def test_two_long_bodies_are_worked_on_at_once_and_short_ones_beside(kms: Operators) -> None:
    kms.fake.answers["lint"] = {}
    go_on, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"files":'
        begun.release()
        await go_on.wait()
        yield b"{}}"

    as_json = {"content-type": "application/json"}

    async def long() -> httpx2.Response:
        return await kms.ask("POST", "/v1/policy/lint", content=slow(), headers=as_json)

    waiting = [asyncio.create_task(long()) for _ in range(2)]
    for _ in waiting:
        await begun.acquire()
    third = await long()
    check_problem(third, 503, "server-busy")
    assert third.headers["retry-after"] == "1"
    assert (await kms.ask("POST", "/v1/policy/lint", json={"files": FILES})).status_code == 200
    go_on.set()
    assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
    assert (await long()).status_code == 200


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "status", "details"),
    [
        (Forbidden("the role viewer does not", reason="role-may-not-change-policy"), 403, None),
        (NotFound("no such revision", details={"revision": REVISION}), 404, {"revision": REVISION}),
        (PolicyConflict("another one", details={"active": None}), 409, {"active": None}),
        (PolicyGated("they would be refused", details={"what_if": {}}), 409, {"what_if": {}}),
        (OperatorExists("there is a bob"), 409, None),
        (KeysConflict("epoch 3 waits for its time"), 409, None),
        (EpochInUse("1 guest", details={"guests": [], "count": 1}), 409, {"guests": [], "count": 1}),
        (PolicyRefused("errors", details={"findings": []}), 422, {"findings": []}),
        (MalformedRequest("a name has letters"), 400, None),
        (MalformedEvidence("the report ends at 12", reason="report-length"), 400, None),
        (LedgerUnavailable("locked", retry_after=7), 503, None),
        (CollateralUnavailable("AMD is silent"), 503, None),
        (RootKeyUnavailable("sealed", reason="vault-sealed", retry_after=5), 503, None),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
async def test_an_operator_is_told_why(
    kms: Operators, error: KmsError, status: int, details: dict[str, Any] | None
) -> None:
    kms.fake.answers["status"] = error
    response = await kms.ask("GET", "/v1/policy")
    problem = check_problem(response, status, error.code)
    assert problem["detail"] == error.detail
    assert problem.get("details") == details
    assert problem.get("reasons") == (None if error.reason == error.code else [error.reason])
    waits = {"locked": "7", "AMD is silent": "2", "sealed": "5"}
    assert response.headers.get("retry-after") == waits.get(error.detail)


async def test_an_error_that_is_no_refusal_is_told_to_operators_alone(kms: Operators) -> None:
    kms.fake.answers["status"] = ConfigurationError("the anchor is damaged")
    problem = check_problem(await kms.ask("GET", "/v1/policy"), 500, "internal")
    assert problem["detail"] == "the anchor is damaged"


async def test_a_bug_tells_nothing(kms: Operators) -> None:
    kms.fake.answers["status"] = RuntimeError(CANARY)
    with capture_logs() as logs:
        response = await kms.ask("GET", "/v1/policy")
    problem = check_problem(response, 500, "internal")
    assert [(entry["event"], entry["request_id"]) for entry in logs] == [("failed", problem["request_id"])]
    assert set(problem) == {"type", "title", "status", "code", "request_id"}


# ── the document ──────────────────────────────────────────────────────────────────────────────

SHAPES = [
    shape
    for module in (candidate_schemas, key_schemas, operator_schemas, policy_schemas, record_schemas)
    for shape in vars(module).values()
    if isinstance(shape, type) and issubclass(shape, Shape) and "example" in vars(shape)
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_examples_are_of_their_shape(shape: type[Shape]) -> None:
    shape.model_validate(shape.example)


@pytest.fixture
async def document(kms: Operators) -> dict[str, Any]:
    loaded: dict[str, Any] = (await kms.client.get("/openapi.json")).json()
    return loaded


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "operators" in operation.get("tags", ()):
                yield method.upper(), path, operation


async def test_every_route_is_described_whole(document: dict[str, Any]) -> None:
    described = list(operations(document))
    assert (
        len(described)
        == len({(r.method, r.asked, *((r.path,) if "diff" in r.path else ())) for r in ROUTES}) - 1
    )
    for method, path, operation in described:
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["security"] == [{"bearer": []}, {"mutualTLS": []}], where
        status = "201" if where == "POST /v1/operators" else "200"
        answer = operation["responses"][status]["content"]["application/json"]
        assert answer["schema"]["$ref"], where
        assert answer["example"], where
        for status in ("400", "401", "403", "429", "503"):
            problem = operation["responses"][status]["content"]["application/problem+json"]
            assert problem["schema"]["$ref"] == "#/components/schemas/OperatorProblem", where
            assert problem["example"]["status"] == int(status), where
        assert "422" not in operation["responses"] or "policy-invalid" in str(operation["responses"]["422"])
        if method == "POST":
            body = operation["requestBody"]["content"]["application/json"]
            assert body["schema"]["$ref"], where
            assert isinstance(body["example"], dict), where
            assert {"413", "415"} <= set(operation["responses"]), where
        in_path = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), where
        for each in operation["parameters"]:
            assert each["description"], where
            assert each["schema"]["type"], where
            assert each["example"] is not None, where


async def test_the_document_refers_to_nothing_that_is_not_there(document: dict[str, Any]) -> None:
    models = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in models
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["components"]["securitySchemes"]["mutualTLS"]["type"] == "mutualTLS"
    assert set(models["OperatorProblem"]["properties"]) >= {"detail", "details", "reasons"}


async def test_documented_examples_are_read(kms: Operators, document: dict[str, Any]) -> None:
    """What the document says of parameters and bodies is what the routes take."""
    names = {(r.method, r.path.partition("?")[0]): r.asked for r in ROUTES}
    for method, path, operation in operations(document):
        filled, query = path, {}
        for each in operation["parameters"]:
            if each["in"] == "path":
                filled = filled.replace(f"{{{each['name']}}}", str(each["example"]))
            else:
                query[each["name"]] = each["example"]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        kms.fake.answers = {asked: {"answered": True} for asked in names.values()}
        response = await kms.ask(method, filled, params=query, json=body)
        assert response.json() == {"answered": True}, (method, filled, response.text)


async def test_bodies_are_described_with_the_members_that_are_read(
    kms: Operators, document: dict[str, Any]
) -> None:
    """Every described member is looked at: an odd value of it is refused, and not as unknown."""
    models = document["components"]["schemas"]
    for _, path, operation in operations(document):
        if "requestBody" not in operation:
            continue
        media = operation["requestBody"]["content"]["application/json"]
        model = models[media["schema"]["$ref"].rpartition("/")[2]]
        # What evidence is, the office says.
        for name in set(model["properties"]) - {"evidence"}:
            filled = path.replace("{revision}", REVISION).replace("{epoch}", "7")
            response = await kms.ask("POST", filled, json={**media["example"], name: {"": 1.5}})
            detail = check_problem(response, 400, "malformed-request")["detail"]
            assert "unknown" not in detail, (path, name)


async def test_the_page_shows_every_route_and_loads_nothing(kms: Operators) -> None:
    page = (await kms.client.get("/docs")).text
    for route in ROUTES:
        known = route.path.partition("?")[0].replace(REVISION, "{revision}").replace(RELEASE, "{release_id}")
        known = known.replace("team%2Fos:1", "{image}").replace("bob@example.com", "{name}")
        known = known.replace("/7/", "/{epoch}/").replace("/entries/{release_id}", "/entries/{entry}")
        known = known.replace("/entries/0", "/entries/{entry}")
        assert f"<code>{route.method} {known}</code>" in page
    assert "&quot;revision&quot;" in page
    assert "<script" not in page
    assert "src=" not in page


def test_titles_are_sentences_without_values() -> None:
    assert all(re.fullmatch(r"[A-Z][A-Za-z' ,;]+", kind.title) for kind in KINDS.values())

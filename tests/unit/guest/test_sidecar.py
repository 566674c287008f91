"""`kms guest serve`: which process gets which key, how it is asked, and what it is told otherwise."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass

import h11
import pytest

from kms.encoding import b64url
from kms.errors import ConfigurationError, KmsError
from kms.guest import sidecar as module
from kms.guest.config import ServedKey
from kms.guest.errors import (
    AnswerRejected,
    AppDocumentRefused,
    EvidenceError,
    Problem,
    Refused,
    ServerUnreachable,
    ServerUntrusted,
)
from kms.guest.key_memory import HeldKey, KeyMemory
from kms.guest.peer_allowlist import PeerAllowlist
from kms.guest.sidecar import MAX_HEAD, Sidecar
from kms.guest.unix_sockets import Peer
from kms.guest.workload import WorkloadRefused
from kms.keys.names import KeyName, KeyRequest, Scope
from kms.keys.released import ReleasedKey
from tests.unit.guest.event_loop import until
from tests.unit.guest.key_machine import Machine, value

pytestmark = pytest.mark.enable_socket
APP = Peer(pid=10, uid=1000, groups=frozenset({1000}))
GROUP = Peer(pid=11, uid=2000, groups=frozenset({2000, 100}))
ROOT = Peer(pid=12, uid=0, groups=frozenset({0}))
OTHER = Peer(pid=13, uid=3000, groups=frozenset({3000}))
DB = KeyName.parse("custom:db/main")
SERVED = (
    ServedKey(key=KeyName.parse("disk"), scope=Scope.APP, uids=frozenset({1000})),
    ServedKey(key=DB, scope=Scope.APP, uids=frozenset({1000}), gids=frozenset({100})),
    ServedKey(key=KeyName.parse("dstack:disk"), scope=Scope.INSTANCE, uids=frozenset({1000})),
)
DISK = KeyRequest.parse("disk", "app")
GET_DISK = b"GET /keys/disk HTTP/1.1\r\nHost: kms\r\n\r\n"


def sidecar(machine: Machine) -> Sidecar:
    return Sidecar(PeerAllowlist(SERVED), memory_of(machine))


def memory_of(machine: Machine, *, keep: float = 3600) -> KeyMemory:
    return KeyMemory(machine.fetch, keep=keep)


async def until_used(keys: KeyMemory, key: KeyRequest, *, by: int) -> None:
    """Wait until so many want a key, or have it, at the same time."""
    await until(lambda: key in keys._questions and keys._questions[key].users == by)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        assert self.headers["content-type"] == "application/problem+json"
        problem: dict[str, object] = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["type"] == f"urn:attested-kms:problem:{problem['code']}"
        return problem


def parsed(received: bytes, method: str = "GET") -> Answered:
    """Read a whole answer as another HTTP implementation does."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "kms")]))
    http.send(h11.EndOfMessage())
    http.receive_data(received)
    http.receive_data(b"")
    head = http.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := http.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    headers = {name.decode(): text.decode() for name, text in head.headers}
    assert headers["cache-control"] == "no-store"
    assert headers["connection"] == "close"
    return Answered(head.status_code, headers, body)


async def exchange(served: Sidecar, request: bytes, peer: Peer = APP) -> bytes:
    """Send bytes, and give all that comes back."""
    client, server = socket.socketpair()
    with client, server:
        client.settimeout(30)
        server.setblocking(False)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        await served.answer(server, peer)
        server.close()
        received = b""
        try:
            while part := client.recv(65536):
                received += part
        except ConnectionResetError:  # more was sent than was read
            pass
        return received


async def get(
    machine: Machine, target: str, peer: Peer = APP, *, method: str = "GET", headers: str = ""
) -> Answered:
    request = f"{method} {target} HTTP/1.1\r\nHost: kms\r\n{headers}\r\n".encode("latin-1")
    return parsed(await exchange(sidecar(machine), request, peer), method)


class TestKeys:
    async def test_a_key_is_its_bytes(self) -> None:
        machine = Machine()
        answered = await get(machine, "/keys/disk")
        assert machine.asked == [KeyRequest.parse("disk", "app")]
        assert (answered.status, answered.body) == (200, value(machine.asked[0]))
        assert answered.headers["content-type"] == "application/octet-stream"
        assert answered.headers["key-epoch"] == "7"
        assert answered.headers["key-algorithm"] == "symmetric-256"

    async def test_scope_and_epoch_are_asked_for(self) -> None:
        machine = Machine()
        answered = await get(machine, "/keys/custom:db/main?epoch=2&scope=app")
        wanted = KeyRequest.parse("custom:db/main", "app", 2)
        assert (machine.asked, answered.body) == ([wanted], value(wanted))
        assert answered.headers["key-epoch"] == "2"

    async def test_what_dstack_derives_has_no_epoch(self) -> None:
        answered = await get(Machine(), "/keys/dstack:disk?scope=instance")
        assert answered.status == 200
        assert "key-epoch" not in answered.headers

    @pytest.mark.parametrize(
        ("accept", "as_json"),
        [
            ("application/json", True),
            ("text/html, Application/JSON;q=0.9", True),
            ("*/*", False),
            ("application/json, application/octet-stream", False),
            ("application/jsonp", False),
        ],
    )
    async def test_json_is_for_those_who_want_it(self, accept: str, as_json: bool) -> None:
        machine = Machine()
        answered = await get(machine, "/keys/disk", headers=f"Accept: {accept}\r\n")
        if not as_json:
            assert len(answered.body) == 32
            return
        assert answered.headers["content-type"] == "application/json"
        assert json.loads(answered.body) == {
            "name": "disk",
            "scope": "app",
            "epoch": 7,
            "algorithm": "symmetric-256",
            "value": b64url(value(machine.asked[0])),
        }

    async def test_a_head_has_no_body(self) -> None:
        answered = await get(Machine(), "/keys/disk", method="HEAD")
        assert (answered.status, answered.headers["content-length"], answered.body) == (200, "32", b"")

    async def test_that_it_lives_is_for_everybody(self) -> None:
        answered = await get(Machine(), "/healthz", OTHER)
        assert (answered.status, json.loads(answered.body)) == (200, {"status": "alive"})

    async def test_no_key_is_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        answered = await get(Machine(), "/keys/disk")
        assert "/keys/disk" in caplog.text
        assert "uid 1000" in caplog.text
        for text in (answered.body.hex(), b64url(answered.body), repr(answered.body)):
            assert text not in caplog.text


class TestWho:
    @pytest.mark.parametrize(
        ("peer", "target", "status"),
        [
            (APP, "/keys/disk", 200),
            (APP, "/keys/custom:db/main", 200),
            (GROUP, "/keys/custom:db/main", 200),
            (GROUP, "/keys/disk", 403),
            (OTHER, "/keys/disk", 403),
            # Root is nobody special: a container's root may be the machine's.
            (ROOT, "/keys/disk", 403),
            (APP, "/keys/disk?scope=instance", 403),
            (APP, "/keys/disk?scope=chip", 403),
            (APP, "/keys/signing", 403),
            (APP, "/keys/custom:db/main2", 403),
            (APP, "/keys/custom:db", 403),
            # A uid that is a listed gid, and the other way round.
            (Peer(pid=1, uid=100, groups=frozenset({5})), "/keys/custom:db/main", 403),
            (Peer(pid=1, uid=5, groups=frozenset({1000})), "/keys/disk", 403),
        ],
    )
    async def test_only_who_is_listed_for_this_key(self, peer: Peer, target: str, status: int) -> None:
        machine = Machine()
        answered = await get(machine, target, peer)
        assert answered.status == status
        assert len(machine.asked) == (status == 200)

    async def test_a_key_of_others_and_one_of_nobody_look_the_same(self) -> None:
        of_others, of_nobody = [await get(Machine(), target, OTHER) for target in ("/keys/disk", "/keys/env")]
        assert of_others == of_nobody
        assert of_others.problem["code"] == "key-not-served"

    def test_nothing_is_allowed_by_default(self) -> None:
        assert not PeerAllowlist([]).allows(ROOT, KeyRequest.parse("disk", "app"))


class TestRequests:
    @pytest.mark.parametrize(
        "target",
        [
            "/keys/",
            "/keys/disk/",
            "/keys/DISK",
            "/keys/disk%20",
            "/keys/%64isk",
            "/keys/custom:../x",
            "/keys/custom:a//b",
            "/keys/disk?scope",
            "/keys/disk?scope=all",
            "/keys/disk?scope=app&scope=app",
            "/keys/disk?scope=app&epoch=1&x=1",
            "/keys/disk?key=1",
            "/keys/disk?epoch=0",
            "/keys/disk?epoch=-1",
            "/keys/disk?epoch=1.0",
            "/keys/disk?epoch=%D9%A1",
            "/keys/disk?epoch=99999999999",
            "/keys/env?scope=chip",
            "/keys/dstack:disk?scope=instance&epoch=1",
        ],
    )
    async def test_what_names_no_key_is_refused_and_not_repeated(self, target: str) -> None:
        machine = Machine()
        answered = await get(machine, target)
        assert (answered.status, answered.problem["code"]) == (400, "malformed-request")
        assert machine.asked == []
        assert target not in answered.body.decode()

    @pytest.mark.parametrize("target", ["/", "/keys", "/healthz/", "/x", "*", "http://kms/keys/disk"])
    async def test_nothing_else_is_there(self, target: str) -> None:
        assert (await get(Machine(), target)).problem["code"] == "not-found"

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"])
    async def test_other_methods_are_not_served(self, method: str) -> None:
        answered = await get(Machine(), "/keys/disk", method=method)
        assert answered.problem["code"] == "method-not-allowed"
        assert answered.headers["allow"] == "GET, HEAD"

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", 400),
            (b"GET /keys/disk HTTP/1.1\r\n\r\n", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 200),
            (b"GET /keys/disk\r\n\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\n", 400),  # ends in the middle
            (b"GET /keys/disk HTTP/1.1\r\nHost: x\r\nX: \xff\x00\r\n\r\n", 400),
            (b"GET /keys/d\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n", 431),
        ],
    )
    async def test_what_is_no_plain_request_is_refused(self, request_bytes: bytes, status: int) -> None:
        assert parsed(await exchange(sidecar(Machine()), request_bytes)).status == status

    async def test_nobody_who_asks_nothing_is_answered(self) -> None:
        assert await exchange(sidecar(Machine()), b"") == b""

    async def test_a_request_that_does_not_end_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_HEAD_WITHIN", 0.2)
        client, server = socket.socketpair()
        with client, server:
            server.setblocking(False)
            client.sendall(b"GET /keys/disk HTTP/1.1\r\n")
            await sidecar(Machine()).answer(server, APP)
            server.close()
            client.settimeout(30)
            assert parsed(client.recv(65536)).problem["code"] == "request-timeout"

    async def test_a_reader_that_does_not_read_is_not_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_SENT_WITHIN", 0.2)
        client, server = socket.socketpair()
        with client, server:
            server.setblocking(False)
            client.sendall(GET_DISK)
            # Fill what the kernel keeps for the other end.
            with contextlib.suppress(BlockingIOError):
                while server.send(b"x" * 4096):
                    pass
            with pytest.raises(TimeoutError):
                await sidecar(Machine()).answer(server, APP)


UPSTREAM = Problem(status=503, code="ledger-unavailable", request_id="q9", retry_after=17)


class TestRefusals:
    @pytest.mark.parametrize(
        ("failure", "status", "code", "retry_after"),
        [
            (
                Refused(Problem(status=403, code="policy-denied", reasons=("app-revoked",), request_id="q9")),
                *(403, "policy-denied", None),
            ),
            (
                Refused(Problem(status=400, code="malformed-request", request_id="q9")),
                502,
                "malformed-request",
                None,
            ),
            (Refused(Problem(status=404, code="unknown")), 502, "unknown", None),
            (ServerUnreachable("no answer", problem=UPSTREAM), 503, "ledger-unavailable", "17"),
            (ServerUnreachable("no answer at kms.internal"), 503, "server-unreachable", "5"),
            (ServerUntrusted("certificate of kms.internal"), 502, "server-untrusted", None),
            (AnswerRejected("kms.internal", reason="identity-mismatch"), 502, "answer-rejected", None),
            (EvidenceError("/sys/kernel", reason="tsm-missing"), 503, "evidence-unavailable", "5"),
            (AppDocumentRefused("kms.internal"), 403, "app-document-refused", None),
            (WorkloadRefused("kms.internal"), 403, "workload-refused", None),
            (ConfigurationError("/etc/attested-kms"), 500, "internal", None),
        ],
    )
    async def test_what_the_kms_and_this_machine_refuse_is_passed_on(
        self,
        failure: KmsError,
        status: int,
        code: str,
        retry_after: str | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        answered = await get(Machine(failure=failure), "/keys/disk")
        problem = answered.problem
        assert (answered.status, problem["code"]) == (status, code)
        assert answered.headers.get("retry-after") == retry_after
        upstream = getattr(failure, "problem", None)
        assert problem.get("request_id") == (upstream.request_id if upstream else None)
        assert problem.get("reasons", []) == (list(upstream.reasons) if upstream else [])
        # The sentence is for whoever reads the log.
        assert "kms.internal" not in answered.body.decode()
        assert failure.detail in caplog.text

    async def test_a_bug_is_told_as_one_and_said_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        answered = await get(Machine(failure=RuntimeError("a bug")), "/keys/disk")
        assert (answered.status, answered.problem["code"]) == (500, "internal")
        assert "a bug" not in answered.body.decode()
        assert "a bug" in caplog.text


class TestFairness:
    async def test_one_user_with_many_connections_keeps_no_other_out(self) -> None:
        served = sidecar(Machine())
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            idle = []
            for number in range(20):
                client, server = (stack.enter_context(closing(each)) for each in socket.socketpair())
                client.settimeout(30)
                server.setblocking(False)
                # A stranger with many users is one all the same.
                stranger = Peer(pid=number, uid=5000 + number, groups=frozenset({5000}))
                idle.append(loop.create_task(served.answer(server, stranger)))
                await asyncio.sleep(0)
                if number == 19:
                    assert parsed(client.recv(65536)).problem["code"] == "server-busy"
            assert sum(task.done() for task in idle) == 12
            assert parsed(await exchange(served, GET_DISK)).status == 200
            for task in idle:
                task.cancel()
            await asyncio.wait(idle)
        assert parsed(await exchange(served, GET_DISK, OTHER)).status == 403

    def test_there_is_room_for_everybody_at_once(self) -> None:
        # The user and the group of the list, the others, and one who is told that there are too many.
        assert sidecar(Machine()).at_most == 8 * (1 + 1 + 1) + 1


class TestMemory:
    async def test_those_who_want_one_key_at_once_ask_once(self) -> None:
        machine = Machine(held=(go := threading.Event()))
        keys = memory_of(machine)
        served = Sidecar(PeerAllowlist(SERVED), keys)
        asking = [asyncio.create_task(exchange(served, GET_DISK)) for _ in range(4)]
        await until_used(keys, DISK, by=4)
        go.set()
        assert {parsed(await each).body for each in asking} == {value(DISK)}
        assert len(machine.asked) == 1

    async def test_one_that_goes_away_does_not_take_the_key_from_the_others(self) -> None:
        machine = Machine(held=(go := threading.Event()))
        keys = memory_of(machine)
        served = Sidecar(PeerAllowlist(SERVED), keys)
        first, second = (asyncio.create_task(exchange(served, GET_DISK)) for _ in range(2))
        await until_used(keys, DISK, by=2)
        first.cancel()
        await until_used(keys, DISK, by=1)
        go.set()
        assert parsed(await second).status == 200
        assert len(machine.asked) == 1

    async def test_other_keys_and_epochs_are_asked_for(self) -> None:
        machine = Machine()
        served = sidecar(machine)
        for target in ("/keys/disk", "/keys/disk?epoch=1", "/keys/custom:db/main", "/keys/disk"):
            await exchange(served, f"GET {target} HTTP/1.0\r\n\r\n".encode())
        assert len(machine.asked) == 3

    async def test_a_refusal_is_remembered_too(self) -> None:
        """A container that is started again and again asks the hardware no oftener for being refused."""
        machine = Machine(failure=Refused(Problem(status=403, code="policy-denied")))
        served = sidecar(machine)
        for _ in range(3):
            assert parsed(await exchange(served, GET_DISK)).status == 403
        assert len(machine.asked) == 1

    async def test_a_key_is_forgotten_and_wiped_after_its_time(self) -> None:
        machine = Machine()
        keys = memory_of(machine, keep=0.2)
        async with keys.held(DISK) as held:
            assert bytes(held.raw) == value(DISK)
        await until(lambda: DISK not in keys._questions)
        assert_wiped(held)
        async with keys.held(DISK):
            assert len(machine.asked) == 2

    async def test_a_key_in_use_is_not_wiped_before_its_last_user_is_done(self) -> None:
        keys = memory_of(Machine())
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(keys.held(DISK))
            async with keys.held(DISK) as second:
                assert second is first
                keys.forget_all()
            assert bytes(first.raw) == value(DISK)
        assert_wiped(first)

    async def test_all_are_forgotten_at_the_end_also_those_that_come_later(self) -> None:
        machine = Machine()
        keys = memory_of(machine)
        custom = KeyRequest.parse("custom:x", "app")
        async with keys.held(DISK) as held:
            pass
        machine.held = threading.Event()
        later = asyncio.create_task(take(keys, custom))
        await until_used(keys, custom, by=1)
        keys.forget_all()
        assert_wiped(held)
        machine.held.set()
        assert_wiped(await later)

    def test_no_repr_shows_a_key(self) -> None:
        released = ReleasedKey(name=DB, scope=Scope.APP, epoch=1, value=b"\x41" * 32)
        assert "AAAA" not in repr(HeldKey.of(released))


async def take(keys: KeyMemory, wanted: KeyRequest) -> HeldKey:
    async with keys.held(wanted) as key:
        return key


def assert_wiped(key: HeldKey) -> None:
    assert len(key.raw) == 32
    assert not any(key.raw)
    assert not any(key.document)

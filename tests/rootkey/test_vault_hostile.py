"""A Vault that is somebody else: whatever it sends, each call has an end, a reason, and little memory."""

import asyncio
import base64
import gzip
import json
import os
import re
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from kms.errors import RootKeyUnavailable
from kms.keys.root_messages import MAX_EPOCHS, Mode
from kms.rootkey import RootAccess, open_provider, root_document
from kms.rootkey.root_document import RootDocument
from kms.rootkey.vault_access import AppRole, TokenFile, VaultAccess
from kms.rootkey.vault_exchange import VaultConnection
from kms.rootkey.vault_location import Location
from kms.rootkey.vault_session import VaultSession
from kms.rootkey.vault_transit import TransitRootKey
from tests.certificates import SERVER, Authority, pem, write
from tests.rootkey.vault_roots import NOW, QUESTION, reason
from tests.servers.vault import write_private

pytestmark = pytest.mark.enable_socket

_OUTPUT: Final = bytes(range(64))
_MEBIBYTE: Final = 1 << 20


def _http(body: bytes, *, status: int = 200, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, len(body), body)


def _json(value: object) -> bytes:
    return _http(json.dumps(value).encode())


def _key(**members: object) -> bytes:
    """Answer any question about a transit key with two versions of 64 bytes, and about a token."""
    result = {"hmac": "vault:v1:" + base64.b64encode(_OUTPUT).decode()}
    return _json({"data": {"type": "hmac", "latest_version": 2, "batch_results": [result], **members}})


def _request(client: socket.socket) -> bytes:
    """Read a request, which comes in pieces."""
    request = b""
    while piece := client.recv(65536):
        request += piece
        head, end, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            break
    return request


class _Hostile:
    """A server that sends the pieces of `answer` to whatever it is asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[], Iterable[bytes]] = lambda: [_key()]
        self.requests: list[bytes] = []
        self.sent = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def says(self, answer: bytes) -> None:
        self.answer = lambda: [answer]

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            with client:
                while request := _request(client):
                    self.requests.append(request)
                    for piece in self.answer():
                        client.sendall(piece)
                        self.sent += len(piece)


@contextmanager
def _hostile(tls: ssl.SSLContext | None = None) -> Iterator[_Hostile]:
    server = _Hostile(tls)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def server() -> Iterator[_Hostile]:
    with _hostile() as hostile:
        yield hostile


def _access(
    server: _Hostile, folder: Path, *, seconds: float = 2.0, ca: Path | None = None, role: bool = False
) -> VaultAccess:
    credential = folder / "credential"
    if not credential.exists():
        write_private(credential, "hvs.canary")
    login = AppRole("role", credential) if role else TokenFile(credential)
    return VaultAccess(address=server.address, login=login, ca=ca, timeout=timedelta(seconds=seconds))


def _transit(access: VaultAccess) -> TransitRootKey:
    return TransitRootKey(VaultSession(access), Location("transit", "root"))


def _forever(piece: bytes, *, first: bytes = b"", pause: float = 0.1) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield first
        while True:
            yield piece
            time.sleep(pause)

    return pieces


_HEAD: Final = b"HTTP/1.1 200 OK\r\n"
_CHUNKED: Final = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_ENDLESS: Final = {
    "a body": _forever(b" ", first=_HEAD + b"Content-Length: 100000\r\n\r\n"),
    "a body without length": _forever(b" ", first=_HEAD + b"\r\n"),
    "chunks": _forever(b"1\r\n \r\n", first=_CHUNKED),
    "the length of a chunk": _forever(b"0", first=_CHUNKED),
    "a status line": _forever(b"H"),
    "a header": _forever(b"a", first=_HEAD + b"X: "),
    "continue": _forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
}


async def _all_end_and_it_heals(
    root: TransitRootKey, server: _Hostile, answer: Callable[[], Iterable[bytes]]
) -> None:
    """Ask in all the threads there are; with a second for each call."""
    good = server.answer
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)
    server.answer = answer
    started = time.monotonic()
    assert {*await asyncio.gather(*(reason(root) for _ in range(8)))} == {"root-key-slow"}
    assert time.monotonic() - started < 8  # and not for ever
    server.answer = good
    await asyncio.sleep(1.1)  # until the breaker lets somebody look
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)


@pytest.mark.parametrize("endless", _ENDLESS)
async def test_an_answer_without_end_holds_no_thread(endless: str, server: _Hostile, tmp_path: Path) -> None:
    root = _transit(_access(server, tmp_path, seconds=1.0))
    await _all_end_and_it_heals(root, server, _ENDLESS[endless])
    await root.close()


async def test_an_answer_without_end_holds_no_thread_under_tls(tmp_path: Path) -> None:
    authority = Authority("Hostile CA", now=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write(tmp_path, "server", authority.issue("127.0.0.1", usages=(SERVER,))))
    ca = tmp_path / "ca.pem"
    ca.write_text(pem(authority.certificate))
    with _hostile(context) as server:
        root = _transit(_access(server, tmp_path, seconds=1.0, ca=ca))
        await _all_end_and_it_heals(root, server, _ENDLESS["continue"])
        await root.close()


async def test_callers_who_give_up_hold_up_nobody(server: _Hostile, tmp_path: Path) -> None:
    root = _transit(_access(server, tmp_path, seconds=5.0))
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)
    good, server.answer = server.answer, _ENDLESS["a body"]
    given_up = [asyncio.create_task(root.outputs(1, QUESTION)) for _ in range(8)]
    await asyncio.sleep(0.3)
    for each in given_up:
        each.cancel()
    await asyncio.wait(given_up)
    server.answer = good
    started = time.monotonic()
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)
    assert time.monotonic() - started < 4  # a thread that is held is held for 5
    await root.close()


_DEEP: Final = {"array": b"[" * 200_000, "object": b'{"data":' * 100_000}


@pytest.mark.parametrize(
    "answer",
    [
        _http(_DEEP["array"]),
        _http(_DEEP["object"]),
        _key(latest_version=30_000_000),
        _key(latest_version=MAX_EPOCHS + 1),
        _key(latest_version=0),
        _key(latest_version=-1),
        _key(latest_version=True),
        _key(latest_version=1e300),
        _http(b'{"data":{"type":"hmac","latest_version":' + b"9" * 4000 + b"}}"),
        _http(b'{"data":{"type":"hmac","latest_version":' + b"9" * 40 + b"}}"),
        _http(b'{"data":{"type":"hmac","latest_version":1,"latest_version":2}}'),
        _http(b'{"data":{"type":"\\ud800","latest_version":1}}'),
        _http(b""),
        _http(b"<html>"),
        _http(b"[1]"),
        _http(b"null"),
        _http(b"\xff\xfe\x00\xd8"),
        _http(b"{}"),
        _http(b"<html>", status=400),
        _http(b"<html>", status=404),
        _http(b"{}", status=999),
        b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
        _HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n" + b" " * (2 * _MEBIBYTE),
        _HEAD + b"\r\n" + b" " * (2 * _MEBIBYTE),
        _CHUNKED + b"1\r\n \r\n" * 500_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
        _http(gzip.compress(b"{}", mtime=0), head=b"Content-Encoding: gzip\r\n"),
        _http(b"{}", head=b"Content-Encoding: identity, br\r\n"),
    ],
    ids=lambda answer: f"{answer[:70]!r} ({len(answer)})",
)
async def test_an_answer_that_is_not_vaults_is_a_vault_that_fails(
    answer: bytes, server: _Hostile, tmp_path: Path
) -> None:
    root = _transit(_access(server, tmp_path))
    assert await root.versions() == (1, 2)
    server.says(answer)
    with pytest.raises(RootKeyUnavailable) as caught:
        await root.versions()
    assert caught.value.reason == "root-key-failing"
    assert len(caught.value.detail) < 100
    server.says(_key())
    assert await root.versions() == (1, 2)
    await root.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"GARBAGE\r\n\r\n", "root-key-unreachable"),
        (_HEAD + b"Content-Length: -5\r\n\r\n{}", "root-key-slow"),
        (_CHUNKED + b"ZZZZ\r\n{}", "root-key-unreachable"),
        (_HEAD + b"X: a\r\n" * 500 + b"\r\n", "root-key-unreachable"),
        (_http(b"", status=307, head=b"Location: http://[::bad/\r\n"), "root-key-standby"),
        (_http(b"", status=307, head=b"Location: http://\xff\xfe:99999999/\r\n"), "root-key-standby"),
    ],
)
async def test_other_hostile_answers_have_a_reason_too(
    answer: bytes, expected: str, server: _Hostile, tmp_path: Path
) -> None:
    root = _transit(_access(server, tmp_path))
    assert await root.versions() == (1, 2)
    server.says(answer)
    assert await reason(root) == expected
    server.says(_key())
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)
    await root.close()


async def test_as_many_versions_as_epochs_are_served(server: _Hostile, tmp_path: Path) -> None:
    server.says(_key(latest_version=MAX_EPOCHS))
    root = _transit(_access(server, tmp_path))
    assert await root.versions() == tuple(range(1, MAX_EPOCHS + 1))
    await root.close()


def _bomb(length: int) -> bytes:
    return gzip.compress(bytes(length), 9)


@pytest.mark.parametrize("status", [200, 307, 400, 500])
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_of_many_mebibytes_takes_little_memory(
    status: int, packed: bool, server: _Hostile, tmp_path: Path
) -> None:
    whole = 64 * _MEBIBYTE
    head = b"Location: /v1/elsewhere\r\n" + (b"Content-Encoding: gzip\r\n" if packed else b"")
    bomb = _bomb(whole) if packed else b""
    start = b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n" % (status, head, len(bomb) or whole)
    piece = bytes(65536)
    server.answer = lambda: [start, bomb] if packed else [start, *[piece] * (whole // len(piece))]
    connection = VaultConnection(_access(server, tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(RootKeyUnavailable) as caught:
            connection.exchange("get", "transit/keys/root")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        connection.close()
    assert caught.value.reason == "root-key-failing"
    assert peak < 6 * _MEBIBYTE
    assert server.sent < 32 * _MEBIBYTE  # what fits into the buffers of two sockets: nobody reads on


def test_a_root_of_as_many_epochs_as_there_may_be_is_read(server: _Hostile, tmp_path: Path) -> None:
    secrets = {epoch: os.urandom(32) for epoch in range(1, MAX_EPOCHS + 1)}
    document = RootDocument(Mode.PRODUCTION, NOW, secrets)
    text = root_document.write(document).decode()
    server.says(_json({"data": {"data": {"root": text}, "metadata": {"version": 1}}}))
    connection = VaultConnection(_access(server, tmp_path))
    inner = connection.exchange("get", "kv/data/root").data["data"]
    connection.close()
    assert inner == {"root": text}


def test_cookies_are_not_kept_and_compression_is_not_asked_for(server: _Hostile, tmp_path: Path) -> None:
    cookies = b"".join(b"Set-Cookie: a%d=%s; Path=/\r\n" % (each, b"c" * 3000) for each in range(60))
    server.says(_http(b"{}", head=cookies))
    connection = VaultConnection(_access(server, tmp_path))
    for _ in range(2):
        connection.exchange("get", "transit/keys/root")
    connection.close()
    assert len(server.requests) == 2
    assert b"Accept-Encoding: identity\r\n" in server.requests[1]
    assert b"Cookie" not in server.requests[1]


@pytest.mark.parametrize("scheme", ["vault-transit:transit", "vault-kv:kv"])
@pytest.mark.parametrize(
    "answer", [_http(b"<html>"), _http(b""), _http(b"<html>", status=404), _http(b"<html>", status=400)]
)
async def test_a_start_waits_for_a_vault_behind_a_proxy_that_answers_itself(
    scheme: str, answer: bytes, server: _Hostile, tmp_path: Path
) -> None:
    # The token is taken, and then it is the proxy that answers. "There is no root" would have us make one.
    answers = iter([_key(), answer])
    server.answer = lambda: [next(answers)]
    access = RootAccess(mode=Mode.PRODUCTION, vault=_access(server, tmp_path))
    with pytest.raises(RootKeyUnavailable) as caught:
        await open_provider(f"{scheme}/root", access)
    assert caught.value.reason == "root-key-failing"


@pytest.mark.parametrize("token", ["", "a\r\nX-Other: b", "a b", "☃", "a" * 8001, 7, None, ["a"]])
async def test_a_login_that_gives_no_token_is_tried_again(
    token: object, server: _Hostile, tmp_path: Path
) -> None:
    root = _transit(_access(server, tmp_path, role=True))
    server.says(_json({"auth": {"client_token": token, "lease_duration": 0}}))
    assert await reason(root) == "root-key-token-expired"
    answers = iter([_json({"auth": {"client_token": "hvs.good", "lease_duration": 0}}), _key()])
    server.answer = lambda: [next(answers)]
    assert await root.outputs(1, QUESTION) == (_OUTPUT,)
    await root.close()


@pytest.mark.parametrize("error", [KeyError("hvs.canary"), RecursionError(), MemoryError(), ValueError("x")])
def test_whatever_the_library_raises_is_a_vault_that_fails(
    error: Exception, server: _Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    connection = VaultConnection(_access(server, tmp_path))
    monkeypatch.setattr(connection._adapter, "request", fail)
    with pytest.raises(RootKeyUnavailable) as caught:
        connection.exchange("get", "transit/keys/root", token="hvs.canary")
    assert caught.value.reason == "root-key-failing"
    assert "canary" not in repr(caught.value)
    assert caught.value.__context__ is None

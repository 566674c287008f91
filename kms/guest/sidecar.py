"""Keys for containers: HTTP/1.1 on a Unix socket, one request to a connection.

``GET /keys/NAME?scope=SCOPE&epoch=N`` gives the bytes of a key, or with ``Accept: application/json`` its
entry as the protocol has it, to the users and groups that may have it. Errors are problem documents
(`kms.guest.local_problems`). ``GET /healthz`` says that the process lives.
"""

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import h11

from kms.errors import KmsError
from kms.guest.key_memory import HeldKey, KeyMemory
from kms.guest.local_problems import LocalProblem, problem_of
from kms.guest.local_service import send_all
from kms.guest.peer_allowlist import PeerAllowlist
from kms.guest.unix_sockets import Peer
from kms.keys.names import KeyName, KeyRequest, Scope

MAX_HEAD: Final = 8192  # bytes, of request line and headers
_AT_MOST: Final = 8  # connections of one share (`PeerAllowlist.share_of`)
_HEAD_WITHIN: Final = 5.0  # seconds
_SENT_WITHIN: Final = 10.0
_KEYS: Final = "/keys/"
_MAX_DIGITS: Final = 10
_SHOWN: Final = 256  # characters of a target in the log; h11 lets only visible ASCII through
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | bytearray


class Sidecar:
    """Answers the processes of this machine."""

    def __init__(self, allowed: PeerAllowlist, keys: KeyMemory) -> None:
        self._allowed = allowed
        self._keys = keys
        self._connections: Counter[str] = Counter()

    @property
    def at_most(self) -> int:
        """How many connections there can be: all that are served, and one that is told to come again."""
        return _AT_MOST * self._allowed.shares + 1

    async def answer(self, connection: socket.socket, peer: Peer) -> None:
        """Answer the one request of a connection."""
        share = self._allowed.share_of(peer)
        if self._connections[share] >= _AT_MOST:
            busy = LocalProblem("server-busy", retry_after=1)
            await _send(connection, _problem(busy), head_only=False)
            return
        self._connections[share] += 1
        try:
            await self._converse(connection, peer)
        finally:
            self._connections[share] -= 1

    async def _converse(self, connection: socket.socket, peer: Peer) -> None:
        head_only, asked = False, "no request"
        try:
            request = await _read_request(connection)
            if request is None:
                return
            head_only, asked = request.method == b"HEAD", request.target[:_SHOWN].decode("ascii")
            path, wanted = _read_target(request)
            if wanted is None:
                _require(path == "/healthz", "not-found")
                await _send(connection, _alive(), head_only=head_only)
                return
            # Whether such a key is served to others is nobody else's business: one answer for both.
            _require(self._allowed.allows(peer, wanted), "key-not-served")
            async with self._keys.held(wanted) as key:
                answer = _key_answer(key, as_json=_wants_json(request))
                await _send(connection, answer, head_only=head_only)
        except LocalProblem as problem:
            told, why = problem, ""
        except KmsError as error:
            told, why = problem_of(error), f": {error.detail!a}"
        except OSError:
            raise  # the other end is gone
        except Exception as error:  # noqa: BLE001 - a bug: who asked is told, and the traceback shows no values
            _log.error("a request failed", exc_info=error)
            told, why = LocalProblem("internal"), ""
        else:
            _log.info("%s given to uid %d (pid %d)", asked, peer.uid, peer.pid)
            return
        _log.warning("%s of uid %d (pid %d): %s%s", asked, peer.uid, peer.pid, told.code, why)
        await _send(connection, _problem(told), head_only=head_only)


async def _read_request(connection: socket.socket) -> h11.Request | None:
    """Read a request without a body; None where the other end closed without one. Raises `LocalProblem`."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    room = MAX_HEAD
    try:
        async with asyncio.timeout(_HEAD_WITHIN):
            while (event := http.next_event()) is h11.NEED_DATA:
                _require(room > 0, "head-too-large")
                part = await asyncio.get_running_loop().sock_recv(connection, room)
                room -= len(part)
                http.receive_data(part)
        if isinstance(event, h11.ConnectionClosed):
            return None
        if not isinstance(event, h11.Request) or _has_body(event):
            raise LocalProblem("malformed-request")
    except TimeoutError:
        raise LocalProblem("request-timeout") from None
    except h11.RemoteProtocolError as error:
        too_large = error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise LocalProblem("head-too-large" if too_large else "malformed-request") from None
    return event


def _has_body(request: h11.Request) -> bool:
    """Say whether a body is announced (RFC 9112 section 6.3); one in parts too, however short it is."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in request.headers
    )


def _read_target(request: h11.Request) -> tuple[str, KeyRequest | None]:
    """Give the path, and the key that it names if it is a key's. Raises `LocalProblem`."""
    _require(request.method in {b"GET", b"HEAD"}, "method-not-allowed")
    path, _, query = request.target.decode("ascii").partition("?")
    if not path.startswith(_KEYS):
        return path, None
    try:
        # As it is written: names have no characters that a URL must escape, and one spelling is enough.
        name = KeyName.parse(path.removeprefix(_KEYS))
        pairs = (
            parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=2) if query else []
        )
        options = dict(pairs)
        if len(options) != len(pairs) or not options.keys() <= {"scope", "epoch"}:
            raise ValueError
        scope = Scope.parse(options.get("scope", Scope.APP))
        return path, KeyRequest(name, scope, _epoch(options.get("epoch")))
    except ValueError:
        raise LocalProblem("malformed-request") from None


def _epoch(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ValueError
    return int(text)


def _wants_json(request: h11.Request) -> bool:
    """Say whether the Accept header (RFC 9110 section 12.5.1) names JSON, and not raw bytes."""
    accepted = b",".join(value for name, value in request.headers if name == b"accept").decode("latin-1")
    types = {each.partition(";")[0].strip().lower() for each in accepted.split(",")}
    return _JSON in types and _BYTES not in types


def _key_answer(key: HeldKey, *, as_json: bool) -> _Answer:
    headers = [("Key-Algorithm", key.algorithm)]
    if key.epoch is not None:
        headers.append(("Key-Epoch", str(key.epoch)))
    return _Answer(
        status=200,
        headers=(("Content-Type", _JSON if as_json else _BYTES), *headers),
        body=key.document if as_json else key.raw,
    )


def _alive() -> _Answer:
    return _Answer(status=200, headers=(("Content-Type", _JSON),), body=b'{"status": "alive"}\n')


def _problem(problem: LocalProblem) -> _Answer:
    return _Answer(status=problem.status, headers=problem.headers, body=problem.body())


async def _send(connection: socket.socket, answer: _Answer, *, head_only: bool) -> None:
    http = h11.Connection(h11.SERVER)
    headers = [
        *answer.headers,
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
    reason = HTTPStatus(answer.status).phrase
    head = http.send(h11.Response(status_code=answer.status, headers=headers, reason=reason))
    await send_all(connection, head, within=_SENT_WITHIN)
    if not head_only:
        await send_all(connection, answer.body, within=_SENT_WITHIN)


def _require(held: bool, code: str) -> None:
    if not held:
        raise LocalProblem(code)

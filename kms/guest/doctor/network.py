"""The way to the server, one step after another: name, connection, TLS, identity, readiness, clock."""

import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import SOCK_STREAM, getaddrinfo
from typing import Final, NamedTuple

import httpcore2
import httpx2

from kms.findings import Finding, failed, ok, unknown
from kms.guest.config import GuestConfig
from kms.guest.doctor import server_answers
from kms.guest.sockets import DeadlineSockets, DeadlineTransport
from kms.guest.threads import in_thread
from kms.guest.transport import MAX_ANSWER, Answer
from kms.https_client import certificate_fault, client_context, https_url

STEPS: Final = (
    "server-name",
    "server-connect",
    "server-tls",
    "server-identity",
    "server-clock",
    "server-ready",
)
WITHIN: Final = 5.0  # seconds, for each step
# openssl x509_vfy.h: what a clock that is wrong makes of a certificate, and names that differ.
_OF_TIME: Final = frozenset({9, 10})
_OF_NAME: Final = frozenset({62, 64})


class _Stopped(Exception):
    """A step failed, so there is no next one."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


class _Heard(NamedTuple):
    answer: Answer
    date: str | None


def way_to_server(
    config: GuestConfig, *, now: Callable[[], float] = time.time, within: float = WITHIN
) -> list[Finding]:
    """Go the way that a request goes, and say of every step of `STEPS` what was seen.

    `within`, in seconds, holds for each step whatever the server does. `now` gives seconds since 1970.

    Raises:
        ConfigurationError: the server's address or the CA file cannot be used.

    """
    url, context = https_url(config.server), client_context(config.ca)
    host, port = url.host, url.port or 443
    left, found = _Left(within), list[Finding]()
    try:
        found.append(_name(host, port, left))
        stream = _connection(host, port, left)
        found.append(ok("server-connect", f"port {port} is open"))
        found.append(_tls(partial(stream.start_tls, context, host), config.ca, left, now))
        transport = DeadlineTransport(context, left)
        with httpx2.Client(base_url=url, transport=transport, trust_env=False) as client:
            first = _get(client, "/v1/identity", "server-identity", left)
            found.append(server_answers.identity(config.identity, first.answer))
            found.append(server_answers.clock(first.date, now()))
            second = _get(client, "/readyz", "server-ready", left)
            found.append(server_answers.readiness(second.answer))
    except _Stopped as stopped:
        found.append(stopped.finding)
    reached = {each.name for each in found}
    rest = [name for name in STEPS if name not in reached]
    return found + [unknown(name, f"not reached: {found[-1].name} comes first") for name in rest]


class _Left:
    """The seconds that are left of a step, of `within`."""

    def __init__(self, within: float) -> None:
        self.within = within
        self.start()

    def start(self) -> None:
        """Begin the next step."""
        self._end = time.monotonic() + self.within

    def __call__(self) -> float:
        return self._end - time.monotonic()


def _name(host: str, port: int, left: _Left) -> Finding:
    name = "server-name"
    remedy = "is there a network (ip addr), a name server (/etc/resolv.conf), a typing error?"
    looked_up = in_thread(
        lambda: getaddrinfo(host, port, type=SOCK_STREAM), name="attested-kms-doctor", daemon=True
    )
    try:
        addresses = dict.fromkeys(str(each[4][0]) for each in looked_up.result(left.within))
    except TimeoutError:
        raise _Stopped(failed(name, f"{host}: no answer within {left.within:g} s", remedy)) from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be looked up
        raise _Stopped(failed(name, f"{host}: {_words(error)}", remedy)) from None
    return ok(name, host if host in addresses else f"{host} is {', '.join(addresses)}")


def _connection(host: str, port: int, left: _Left) -> httpcore2.NetworkStream:
    name = "server-connect"
    left.start()
    try:
        return DeadlineSockets(left).connect_tcp(host, port)
    except httpcore2.TimeoutException:
        remedy = "is the way there open: address, route, firewalls?"
        raise _Stopped(failed(name, f"port {port}: no connection within {left.within:g} s", remedy)) from None
    except httpcore2.NetworkError as error:
        remedy = "does the server run, on this port, and may this machine reach it?"
        raise _Stopped(failed(name, f"port {port}: {_words(error)}", remedy)) from None


def _tls(
    start: Callable[[], httpcore2.NetworkStream], ca_file: Path | None, left: _Left, now: Callable[[], float]
) -> Finding:
    name, ca = "server-tls", "the system's CAs" if ca_file is None else str(ca_file)
    left.start()
    try:
        start().close()
    except httpcore2.TimeoutException:
        remedy = "does another program listen on this port, or is the server overloaded?"
        raise _Stopped(failed(name, f"no TLS handshake within {left.within:g} s", remedy)) from None
    except httpcore2.NetworkError as error:
        fault = certificate_fault(error)
        if fault is None:
            remedy = "does a server with HTTPS listen on this port?"
            raise _Stopped(failed(name, f"no TLS: {_words(error)}", remedy)) from None
        raise _Stopped(
            failed(name, f"its certificate does not verify by {ca}: {fault}", _about(error, now))
        ) from None
    return ok(name, f"its certificate verifies by {ca}")


def _about(error: BaseException, now: Callable[[], float]) -> str:
    """Say what to do about a certificate that does not verify."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    code = None if cause is None else cause.verify_code
    if code in _OF_TIME:
        shown = f"{datetime.fromtimestamp(now(), UTC):%Y-%m-%d %H:%M} UTC"
        return f"is this machine's clock right? It shows {shown}"
    if code in _OF_NAME:
        return "name the server as its certificate does, or have this name put into it (KMS_TLS_NAMES)"
    return "is it the CA file of this server? If it is, somebody else answers in the server's place"


def _get(client: httpx2.Client, path: str, step: str, left: _Left) -> _Heard:
    left.start()
    try:
        with client.stream("GET", path, timeout=left.within) as response:
            body = bytearray()
            for part in response.iter_raw():
                body += part
                if len(body) > MAX_ANSWER:
                    raise _Stopped(failed(step, f"GET {path}: an answer without end", "is it a KMS?"))
    except httpx2.TimeoutException:
        remedy = "is the server overloaded, or is it another program?"
        seen = f"GET {path}: no whole answer within {left.within:g} s"
        raise _Stopped(failed(step, seen, remedy)) from None
    except httpx2.TransportError as error:
        raise _Stopped(failed(step, f"GET {path}: {_words(error)}", "is it a KMS?")) from None
    answer = Answer(status=response.status_code, body=bytes(body), retry_after=None)
    return _Heard(answer, response.headers.get("Date"))


def _words(error: BaseException) -> str:
    """Say what went wrong in the system's words."""
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return str(error) or type(error).__name__

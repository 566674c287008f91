"""Hostile clients of a server on this machine, each kind in a process of its own, on many addresses of it.

What they send is bounded by what one process can send. None of them does what it is told by Retry-After.
"""

import asyncio
import contextlib
import json
import multiprocessing
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import httpx2

from kms.errors import KmsError
from kms.guest.client import KeyClient
from kms.keys.sealing import Suite
from tests.e2e.rack import KEYS, Guest

_RELEASE = b"POST /v1/releases HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"

# It trusts whoever answers: that is not what these clients are about.
_TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE

_Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and until when (`time.monotonic`, which all processes share) it is attacked."""

    port: int
    ca: Path
    until: float

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until


def transport_from(address: str, ca: Path) -> httpx2.HTTPTransport:
    """Give a client's transport that speaks from one address."""
    return httpx2.HTTPTransport(
        verify=ssl.create_default_context(cafile=str(ca)), local_address=address, trust_env=False
    )


@contextmanager
def attacked(target: Target, forbidden: Sequence[Guest]) -> Iterator[None]:
    """Let all kinds of hostile clients do what they do, until the time is over."""
    # Forked: the chips' private keys cannot be sent to another process.
    context = multiprocessing.get_context("fork")
    works: list[Callable[[], None]] = [
        lambda: asyncio.run(_slow(target)),
        lambda: asyncio.run(_floods(target)),
        lambda: _forbidden(target, forbidden),
    ]
    processes = [context.Process(target=work, daemon=True) for work in works]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.join(max(target.until - time.monotonic(), 0) + 15)
            process.kill()
            process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0], "a hostile client had an accident"


async def _slow(target: Target) -> None:
    """Hold as many connections as possible: mute, and with headers, bodies and readers that take for ever."""
    kinds = (_mute, _slow_header, _slow_body, _slow_reader)
    await asyncio.gather(
        *(_again(target, kind, f"127.0.2.{number % 20 + 1}") for number in range(60) for kind in kinds)
    )


async def _floods(target: Target) -> None:
    """Send what is none of a request as fast as possible."""
    kinds = (_no_tls, _no_http, _no_json, _no_evidence, _challenges)
    await asyncio.gather(
        *(_again(target, kind, f"127.0.3.{number % 30 + 1}") for number in range(12) for kind in kinds)
    )


def _forbidden(target: Target, guests: Sequence[Guest]) -> None:
    """Prove to be genuine, again and again, and not allowed."""

    def run(number: int, guest: Guest) -> None:
        while not target.over:
            client = KeyClient(
                target.url,
                ca_file=target.ca,
                identity=None,
                source=guest,
                suite=Suite.X25519_SEALEDBOX,
                deadline=5.0,
                transport=transport_from(f"127.0.4.{number + 1}", target.ca),
                sleep=lambda _: None,
            )
            with contextlib.suppress(KmsError):
                client.fetch(KEYS, app_document=guest.document)

    with ThreadPoolExecutor(len(guests)) as pool:
        for each in [pool.submit(run, number, guest) for number, guest in enumerate(guests)]:
            each.result()


_Kind: TypeAlias = Callable[[Target, str], Awaitable[None]]


async def _again(target: Target, kind: _Kind, address: str) -> None:
    while not target.over:
        began = time.monotonic()
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            async with asyncio.timeout(max(target.until - began, 0.01)):
                await kind(target, address)
        # Turned away at the door: a loop of connecting alone would only measure this machine's kernel.
        await asyncio.sleep(max(0.005 - (time.monotonic() - began), 0))


@contextlib.asynccontextmanager
async def _connection(target: Target, address: str, *, tls: bool = True) -> AsyncIterator[_Streams]:
    plain = socket.socket()
    try:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        plain.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", target.port))
        reader, writer = await asyncio.open_connection(
            sock=plain, ssl=_TRUSTING if tls else None, server_hostname="127.0.0.1" if tls else None
        )
    except BaseException:
        plain.close()
        raise
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _mute(target: Target, address: str) -> None:
    async with _connection(target, address, tls=False) as (reader, _):
        await reader.read()


async def _slow_header(target: Target, address: str) -> None:
    async with _connection(target, address) as (reader, writer):
        writer.write(b"GET /v1/identity HTTP/1.1\r\nHost: kms\r\nX: ")
        while not reader.at_eof():
            writer.write(b"x")
            await _drained(reader, writer)


async def _slow_body(target: Target, address: str) -> None:
    async with _connection(target, address) as (reader, writer):
        writer.write(_RELEASE + b"Content-Length: 1000000\r\n\r\n" + b" " * 900_000)
        while not reader.at_eof():
            writer.write(b" ")
            await _drained(reader, writer)


async def _slow_reader(target: Target, address: str) -> None:
    async with _connection(target, address) as (reader, writer):
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: kms\r\n\r\n" * 20)
        await writer.drain()
        while await reader.read(1):  # noqa: ASYNC110 -- that is how slow it is
            await asyncio.sleep(0.5)


async def _drained(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await reader.read(1 << 16)


async def _no_tls(target: Target, address: str) -> None:
    async with _connection(target, address, tls=False) as (reader, writer):
        writer.write(secrets.token_bytes(1000))
        await reader.read()


async def _no_http(target: Target, address: str) -> None:
    async with _connection(target, address) as (reader, writer):
        writer.write(secrets.token_bytes(1000) + b"\r\n\r\n")
        await reader.read()


async def _no_json(target: Target, address: str) -> None:
    await _releases(target, address, b"[" * 100_000)


async def _no_evidence(target: Target, address: str) -> None:
    """What looks like a request as far as possible without a signature."""
    words = {"request": "A" * 1000, "evidence": {"type": "sev-snp", "report": "A" * 1579 + "="}}
    await _releases(target, address, json.dumps(words).encode())


async def _challenges(target: Target, address: str) -> None:
    await _many(target, address, b"POST /v1/challenges HTTP/1.1\r\nHost: kms\r\nContent-Length: 0\r\n\r\n")


async def _releases(target: Target, address: str, body: bytes) -> None:
    await _many(target, address, _RELEASE + b"Content-Length: %d\r\n\r\n" % len(body) + body)


async def _many(target: Target, address: str, request: bytes) -> None:
    """Ask on one connection, without a pause, as long as the server answers."""
    async with _connection(target, address) as (reader, writer):
        for _ in range(200):
            writer.write(request)
            await writer.drain()
            header = await reader.readuntil(b"\r\n\r\n")
            length = header.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))

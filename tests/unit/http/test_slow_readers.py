"""Those who ask and do not take the answer, and the end of a server that somebody is asking."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from kms.http.connections import Door
from kms.http.guarded import GuardedServer

pytestmark = pytest.mark.enable_socket

LONG = b"x" * (8 << 20)
WITHIN = 0.5


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with much, after a while, or at once."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    response = Response(LONG) if scope["path"] == "/long" else PlainTextResponse("here")
    await response(scope, receive, send)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[GuardedServer, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = GuardedServer(
        app,
        listener,
        None,
        door=Door(most=20, most_of_one=20),
        malformed=lambda: Response(status_code=400),
        keep_alive=5,
        grace=5,
        write_within=WITHIN,
    )
    task = asyncio.create_task(server.serve())
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def asking(port: int, path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect and ask; nothing is read ahead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        if path:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: kms\r\n\r\n".encode())
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def end_of(server: GuardedServer) -> float:
    """Tell the server to stop; give how long that took."""
    began = time.monotonic()
    server.should_exit = True
    while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110 -- only asked
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_lesson_37_an_answer_that_nobody_takes_is_given_up() -> None:
    async with serving() as (server, port), asking(port, "/long"):
        for _ in range(400):
            await asyncio.sleep(0.01)
            if server.server_state.total_requests and not server.server_state.connections:
                break
        await asyncio.sleep(2 * WITHIN)
        assert not server.server_state.connections
        assert not server.server_state.tasks


async def test_who_reads_slowly_is_served() -> None:
    async with serving() as (_, port), asking(port, "/long") as (reader, _writer):
        header = await reader.readuntil(b"\r\n\r\n")
        assert header.startswith(b"HTTP/1.1 200")
        received, began = 0, time.monotonic()
        while received < len(LONG):
            received += len(await reader.readexactly(min(512 << 10, len(LONG) - received)))
            await asyncio.sleep(0.1)
        assert time.monotonic() - began > 2 * WITHIN


async def test_a_server_that_stops_answers_who_asked_and_then_closes() -> None:
    async with serving() as (server, port), asking(port, "/slow") as (reader, _):
        await asyncio.sleep(0.2)
        await end_of(server)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"here")


async def test_who_connected_just_before_may_ask_once() -> None:
    """Accepted or not yet: the system says "connected" before the server knows."""
    async with serving() as (server, port):
        await asyncio.sleep(0.2)
        async with asking(port, "") as (_, writer), asking(port, "") as (other, _other):
            ending = asyncio.create_task(end_of(server))
            await asyncio.sleep(0.4)
            writer.write(b"GET / HTTP/1.1\r\nHost: kms\r\n\r\n")
            assert b"connection: close" in (await _.read()).lower()
            assert await other.read() == b""
            assert await ending < 3


async def test_a_server_that_is_about_to_stop_says_so_on_every_connection() -> None:
    async with serving() as (server, port):
        await asyncio.sleep(0.2)
        async with asking(port, "/") as (reader, writer):
            assert b"connection: close" not in (await reader.readuntil(b"here")).lower()
            server.stopping = True
            writer.write(b"GET / HTTP/1.1\r\nHost: kms\r\n\r\n")
            assert b"connection: close" in (await reader.read()).lower()

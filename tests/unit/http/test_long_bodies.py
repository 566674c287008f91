"""Bodies that hold policies, through the server's door: long for operators, and for nobody else."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from kms.errors import MalformedRequest
from kms.http.connections import Door
from kms.http.guarded import GuardedServer
from kms.http.limits import read_long_body
from tests.api.operator_world import TOKEN, Operators, open_operators

MIB = 1 << 20


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Operators, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    async with open_operators() as operators:
        server = GuardedServer(
            operators.app,
            listener,
            None,
            door=Door(most=20, most_of_one=20),
            malformed=lambda: Response(status_code=400),
            keep_alive=5,
            grace=1,
        )
        task = asyncio.create_task(server.serve())
        try:
            yield operators, listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def send(
    port: int, path: str, length: int, pieces: list[bytes], token: str = TOKEN
) -> tuple[bytes, int]:
    """Send a request; give the status line of the answer, and how many bytes of the body were taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    header = f"POST {path} HTTP/1.1\r\nHost: kms\r\nAuthorization: Bearer {token}\r\n"
    header += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    taken = 0
    try:
        with suppress(ConnectionError):
            writer.write(header.encode())
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                taken += len(piece)
        line = b""
        with suppress(ConnectionError):
            line = await reader.readline()
        return line.strip(), taken
    finally:
        writer.transport.abort()


@pytest.mark.enable_socket
async def test_an_operator_sends_a_policy_of_twenty_megabytes() -> None:
    text = "a" * (20 * MIB)
    body = json.dumps({"files": {"a.yaml": text}}).encode()
    async with serving() as (operators, port):
        operators.fake.answers["lint"] = {}
        line, _ = await send(port, "/v1/policy/lint", len(body), [body])
        assert line == b"HTTP/1.1 200 OK"
        assert operators.fake.asked("lint") == [{"files": {"a.yaml": text.encode()}}]


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("path", "token"), [("/v1/policy/lint", "another"), ("/v1/policy/rollback", TOKEN), ("/healthz", TOKEN)]
)
async def test_nobody_else_sends_more_than_some_mebibytes(path: str, token: str) -> None:
    async with serving() as (operators, port):
        length = 60 * MIB
        _, taken = await send(port, path, length, [b" " * MIB] * 60, token)
        # What was on its way counts too: the buffers of both ends.
        assert taken < 30 * MIB
        assert operators.fake.calls == []


async def test_a_long_body_has_a_deadline_and_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.http.limits.LONG_BODY_WITHIN", 0.1)

    async def drip() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": [], "state": {}}, drip)
    with pytest.raises(MalformedRequest) as refused:
        await read_long_body(request)
    assert refused.value.reason == "body-too-slow"
    assert request.scope["state"] == {"long_body": True}

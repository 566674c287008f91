"""``python -m bench.server_floor FOLDER PORT [URL]``: a server that does a release's parts and nothing else.

HTTP and TLS are the real server's, and behind them stands a bare ASGI application. What asks for a challenge
is answered with bytes that lie ready. What asks for a release costs what no server can save: one P-384
verification, one HMAC and one expansion, one signature, one seal, and its share of a durable commit that it
shares with whoever waits at the same moment. Nothing is parsed, checked, decided or logged.

With a URL (``postgresql://…``) the commit is made there, else in a SQLite file in the folder.
"""

import asyncio
import hmac
import os
import socket
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import asyncpg  # type: ignore[import-untyped]
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kms.http.connections import Door
from kms.http.guarded import GuardedServer
from kms.http.tls import LocalTls, server_context
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Recipient, Suite, seal
from kms.wiring.stores import utc_now

# As long as those of a release of one key.
_SIGNED: Final = 672
_PAYLOAD: Final = 560
_ENVELOPE: Final = 920
_ENTRY: Final = 13_000
_CHALLENGE_ANSWER: Final = b"c" * 160
_RELEASE_ANSWER: Final = b"r" * 4600
_CONNECTIONS: Final = 4096

Commit = Callable[[int], Awaitable[object]]


def cryptography() -> Callable[[], None]:
    """Give the cryptography of one release, with everything lying ready."""
    private = ec.generate_private_key(ec.SECP384R1())
    signed, scheme, vcek = os.urandom(_SIGNED), ec.ECDSA(SHA384()), private.public_key()
    signature = private.sign(signed, scheme)
    root, message, info = os.urandom(32), os.urandom(60), os.urandom(96)
    signer, payload, envelope = Ed25519PrivateKey.generate(), os.urandom(_PAYLOAD), os.urandom(_ENVELOPE)
    recipient = Recipient.parse(
        Suite.X25519_SEALEDBOX, RecipientKey.generate(Suite.X25519_SEALEDBOX).public_key
    )
    digest = os.urandom(64)

    def work() -> None:
        vcek.verify(signature, signed, scheme)
        HKDFExpand(SHA512(), 32, info).derive(hmac.digest(root, message, "sha512"))
        signer.sign(payload)
        seal(recipient, envelope, digest)

    return work


class Floor:
    """The application. Those who wait while a commit is made share the next one."""

    def __init__(self, commit: Commit) -> None:
        self._work = cryptography()
        self._commit = commit
        self._waiting: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        while (await receive()).get("more_body"):
            pass
        status, body = 200, b"ready"
        if scope["path"] == "/v1/challenges":
            status, body = 201, _CHALLENGE_ANSWER
        elif scope["path"] == "/v1/releases":
            self._work()
            await self._committed()
            body = _RELEASE_ANSWER
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _committed(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await done

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._commit(len(batch))
            for done in batch:
                done.set_result(None)


def to_sqlite(folder: Path) -> Commit:
    """Commit so many rows to a file, durably, in a thread."""
    thread = ThreadPoolExecutor(1)
    row = (os.urandom(_ENTRY),)

    def connected() -> sqlite3.Connection:
        database = sqlite3.connect(folder / "floor.sqlite3", isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE entries (place INTEGER PRIMARY KEY, entry BLOB)")
        return database

    database = connected()

    def commit(number: int) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO entries (entry) VALUES (?)", [row] * number)
        database.execute("COMMIT")

    return lambda number: asyncio.get_running_loop().run_in_executor(thread, commit, number)


async def to_postgresql(url: str) -> Commit:
    """Commit so many rows to a table, durably."""
    database = await asyncpg.connect(url)
    await database.execute("CREATE TABLE floor (place BIGSERIAL PRIMARY KEY, entry BYTEA)")
    row = (os.urandom(_ENTRY),)

    async def commit(number: int) -> None:
        async with database.transaction():
            await database.executemany("INSERT INTO floor (entry) VALUES ($1)", [row] * number)

    return commit


async def serve(folder: Path, port: int, url: str | None) -> None:
    """Serve until the process is told to end."""
    tls = LocalTls(folder / "tls")
    tls.ensure({"localhost", "127.0.0.1"}, utc_now())
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    await GuardedServer(
        Floor(to_sqlite(folder) if url is None else await to_postgresql(url)),
        listener,
        server_context(tls.certificate, tls.key, "1.3", None),
        door=Door(most=_CONNECTIONS, most_of_one=_CONNECTIONS),
        malformed=lambda: Response(status_code=400),
        keep_alive=75,
        grace=1,
    ).serve()


def main() -> None:
    """Read the command line and serve."""
    folder, port, url = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(folder, port, url))


if __name__ == "__main__":
    main()

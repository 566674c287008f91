"""Guests that cost little: kept-alive connections, requests as bytes, and the keys opened and compared.

What `kms guest fetch` does is tested elsewhere; here tens of thousands of releases are asked for by one
process, of servers that may be killed while they answer.
"""

import asyncio
import base64
import json
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha512
from pathlib import Path
from typing import Any

from nacl.public import PrivateKey, SealedBox

from tests.e2e.rack import Guest

_ANSWER_WITHIN = 30.0
_PATIENCE = 0.2  # seconds before a refused connection is tried again


class Lost(Exception):
    """The connection ended before the answer was whole: nobody knows what the server did."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whole."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


class Wire:
    """A kept-alive connection to one server, from `address`."""

    def __init__(self, port: int, trust: ssl.SSLContext, address: str = "127.0.0.1") -> None:
        self.port = port
        self._trust = trust
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """Send a request and read its answer. Raises `Lost`."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN):
                reader, writer = await self._open()
                writer.write(
                    f"{method} {path} HTTP/1.1\r\nHost: kms\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
                answer = await reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError, TimeoutError, ssl.SSLError) as error:
            await self.close()
            raise Lost(repr(error)) from error
        if headers.get("connection") == "close":
            await self.close()
        return Reply(int(head[0].split()[1]), answer)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1",
                self.port,
                ssl=self._trust,
                server_hostname="127.0.0.1",
                local_addr=(self._address, 0),
                limit=1 << 20,
            )
        return self._streams

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()
            with suppress(OSError, ssl.SSLError):
                await streams[1].wait_closed()


@dataclass(slots=True)
class Held:
    """What all guests hold, and what they were answered."""

    keys: dict[str, bytes] = field(default_factory=dict)  # release id → value of the key
    receipts: dict[str, Any] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    lost: int = 0


class LeanGuest:
    """Asks for its disk key again and again, of any of the servers."""

    def __init__(self, guest: Guest, ports: Sequence[int], ca: Path, held: Held) -> None:
        trust = ssl.create_default_context(cafile=str(ca))
        self._guest = guest
        self._wires = [Wire(port, trust) for port in ports]
        self._held = held
        self._private = PrivateKey.generate()
        self._public = base64.urlsafe_b64encode(bytes(self._private.public_key)).rstrip(b"=").decode()

    async def run(self, wanted: Callable[[], bool]) -> None:
        """Ask until nothing more is `wanted`."""
        while wanted():
            await self.ask()

    async def ask(self) -> bool:
        """Ask once, of a challenge of one server and a release of another; say whether there is a key."""
        first, second = secrets.choice(self._wires), secrets.choice(self._wires)
        try:
            challenge = await first.ask("POST", "/v1/challenges")
            self._note(challenge)
            if challenge.status != 201:
                return False
            answer = await second.ask("POST", "/v1/releases", self._body(challenge.json["challenge"]))
        except Lost:
            self._held.lost += 1
            await asyncio.sleep(_PATIENCE)
            return False
        self._note(answer)
        if answer.status != 200:
            await asyncio.sleep(_PATIENCE)
            return False
        self._keep(answer.json)
        return True

    async def ask_everywhere(self) -> list[int]:
        """Send one and the same request to every server at once; give the statuses of those that answered."""
        challenge = await self._wires[0].ask("POST", "/v1/challenges")
        body = self._body(challenge.json["challenge"])
        answers = await asyncio.gather(
            *(wire.ask("POST", "/v1/releases", body) for wire in self._wires), return_exceptions=True
        )
        replies = [each for each in answers if isinstance(each, Reply)]
        for each in replies:
            if each.status == 200:
                self._keep(each.json)
        return [each.status for each in replies]

    async def close(self) -> None:
        for each in self._wires:
            await each.close()

    def _body(self, challenge: str) -> bytes:
        request = json.dumps(
            {
                "challenge": challenge,
                "recipient": {"suite": "x25519-sealedbox", "public_key": self._public},
                "keys": [{"name": "disk", "scope": "app"}],
            }
        ).encode()
        evidence = self._guest.evidence(sha512(b"attested-kms/v1/request\x00" + request).digest())
        return json.dumps({"request": base64.b64encode(request).decode(), "evidence": evidence}).encode()

    def _note(self, reply: Reply) -> None:
        self._held.statuses[reply.status] += 1
        if reply.status >= 400:
            self._held.codes[f"{reply.status} {reply.json['code']} {reply.json.get('reasons', '')}"] += 1

    def _keep(self, answer: dict[str, Any]) -> None:
        opened = SealedBox(self._private).decrypt(_decoded(answer["sealed"]))
        payload = json.loads(_decoded(json.loads(opened)["payload"]))
        assert payload["release_id"] == answer["release_id"]
        assert answer["release_id"] not in self._held.keys, "one release was given twice"
        [key] = payload["keys"]
        self._held.keys[answer["release_id"]] = _decoded(key["value"])
        self._held.receipts[answer["release_id"]] = json.loads(_decoded(answer["receipt"]["payload"]))


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

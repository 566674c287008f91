"""Guests that ask a server for keys while something happens to its database.

A guest gets its key, or a 503 that says why; `/readyz` says why, too. Afterwards the same server process
serves on, and every key that a guest holds was recorded exactly once.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from tests.conformance.own_server import Server
from tests.e2e.lean_guest import Held, LeanGuest
from tests.e2e.rack import Rack

GUESTS = 8
KEYS = 20  # that guests get before something happens, and after it
WITHIN = 60.0


@dataclass
class Room:
    """A server, its guests, and what they hold."""

    server: Server
    held: Held

    def readiness(self) -> tuple[int, set[str]]:
        trust = ssl.create_default_context(cafile=str(self.server.ca))
        with httpx2.Client(verify=trust, trust_env=False) as client:
            answer = client.get(f"{self.server.url}/readyz", timeout=30)
        return answer.status_code, set(answer.json().get("reasons", ()))

    async def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WITHIN
        while not await asyncio.to_thread(what):
            assert time.monotonic() < end, (self.held.statuses, self.held.codes, self.readiness())
            await asyncio.sleep(0.1)

    async def serves(self) -> None:
        """Wait until guests get keys (again), and the server says that it is ready."""
        count = len(self.held.keys) + KEYS
        await self.until(lambda: len(self.held.keys) >= count)
        await self.until(lambda: self.readiness() == (200, set()))

    async def refuses(self, *reasons: str) -> None:
        """Wait until guests are told one of these reasons, and `/readyz` names one of them, too."""
        told = {f"503 ledger-unavailable {[reason]}" for reason in reasons}
        await self.until(lambda: not told.isdisjoint(self.held.codes))
        await self.until(lambda: not self.readiness()[1].isdisjoint(reasons))


@asynccontextmanager
async def guests_of(server: Server, rack: Rack, *, clock: bool = False) -> AsyncIterator[Room]:
    """Let guests ask for keys; at the end nobody was answered anything but 200, 201, 429 or 503.

    Where the `clock` leaps, a challenge of before may also be one that has expired: 410.
    """
    room, over = Room(server, Held()), asyncio.Event()
    guests = [LeanGuest(rack.guest(n), [server.port], server.ca, room.held) for n in range(GUESTS)]
    asking = [asyncio.create_task(guest.run(lambda: not over.is_set())) for guest in guests]
    try:
        await room.serves()
        yield room
        await room.serves()
    finally:
        over.set()
        await asyncio.gather(*asking)
        for guest in guests:
            await guest.close()
    print(f"{len(room.held.keys)} keys, {dict(room.held.codes)}, {room.held.lost} connections lost")
    assert set(room.held.statuses) <= {200, 201, 429, 503} | ({410} if clock else set())
    expected = {"ledger-unavailable"} | ({"challenge-expired"} if clock else set())
    assert {each.split()[1] for each in room.held.codes} <= expected, room.held.codes
    assert len(set(room.held.keys.values())) == 1  # it is the app's disk key
    assert server.alive()
    assert "Traceback" not in server.log_text()

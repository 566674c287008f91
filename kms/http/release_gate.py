"""The way to the release desk: what a release must pass before a byte of it is parsed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request

from kms.addresses import network_of
from kms.http.limits import ServerBusy, read_body
from kms.http.places import Places
from kms.http.shares import Shares
from kms.http.total_limit import TotalLimit

# Bodies that are on their way or being worked on: some 2000 of the usual size. Without a limit, strangers
# who send a megabyte each, slowly, on as many connections as there are, would use up the memory.
BODIES: Final = 32 << 20


class ReleaseGate:
    """Lets releases in: by the limit of all addresses, the room for bodies, and the places to work in."""

    def __init__(self, total: TotalLimit, places: Places, bodies: Shares) -> None:
        self._total = total
        self._places = places
        self._bodies = bodies

    @asynccontextmanager
    async def admitted(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body, and keep a place for as long as the context lasts.

        A request has no place while its body is on its way: so nobody takes one by sending slowly.

        Raises:
            RateLimited: all addresses together ask too often, and this one's network much.
            ServerBusy: there is no room for its body, or no place.
            TooLarge, MalformedRequest: as `kms.http.limits.read_body`.

        """
        address = request.client.host if request.client else "unknown"
        network = network_of(address)
        self._total.take(address)
        held = 0

        def room(length: int) -> None:
            nonlocal held
            if not self._bodies.take(network, length):
                raise ServerBusy("too many bodies at once", retry_after=1)
            held += length

        try:
            body = await read_body(request, room)
            async with self._places.place(network):
                yield body
        finally:
            self._bodies.give_back(network, held)

"""Limits before anything expensive: how often an address may ask, how much and how slowly it may send."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.requests import Request

from kms.addresses import network_of
from kms.buckets import Buckets
from kms.errors import MalformedRequest, TooLarge, Unavailable

MAX_BODY: Final = 1 << 20
BODY_WITHIN: Final = 15.0  # seconds, for all of it
BODY_TOO_SLOW: Final = "body-too-slow"
# Policies of 10,000 apps and 100,000 chips are some 20 MB; only authenticated operators may send as much.
MAX_LONG_BODY: Final = 64 << 20
LONG_BODY_WITHIN: Final = 120.0  # seconds
LONG_BODY: Final = "long_body"  # member of a request's state: its connection may send so much


class AddressLimiter:
    """A token bucket for the network of each address. `monotonic` gives seconds.

    An IPv6 customer has at least a /64: limiting single addresses of it would limit nobody.
    """

    def __init__(self, per_second: int, burst: int, monotonic: Callable[[], float]) -> None:
        self.buckets = Buckets(per_second, burst, monotonic)

    def retry_after(self, address: str) -> float | None:
        """Take a token; None if there was one, else the seconds until there is one again."""
        return self.buckets.retry_after(network_of(address))

    def give_back(self, address: str) -> None:
        """Give back the token that `retry_after` just took: what it was taken for does not count."""
        self.buckets.give_back(network_of(address))


class ServerBusy(Unavailable):
    """As many requests as the server works on at once are being worked on."""

    code = "server-busy"


class InFlight:
    """How many requests are worked on at once. One whose body is still on its way has no place yet.

    So somebody who sends many bodies slowly takes no place from those who are ready.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for as long as the context lasts.

        Raises:
            ServerBusy: there is none.

        """
        if self._now >= self._most:
            raise ServerBusy("too many requests at once", retry_after=1)
        self._now += 1
        try:
            yield
        finally:
            self._now -= 1


def is_plain_json(headers: Iterable[tuple[bytes, bytes]], *, said: bool = False) -> bool:
    """Say whether a body is JSON without encoding by its headers; unless it must be `said`, also by silence.

    Compressed bodies are how a small request becomes a large one (field lesson 37).
    """
    given = dict(headers)
    media_type = given.get(b"content-type", b"").split(b";")[0].strip().lower()
    encoded = given.get(b"content-encoding", b"identity").lower() != b"identity"
    return not encoded and (media_type == b"application/json" or (not media_type and not said))


def declared_length(request: Request) -> int | None:
    """Give the length that the request declares for its body; None where it declares none."""
    text = request.headers.get("content-length", "")
    return int(text[:12]) if text.isascii() and text.isdigit() else None


async def read_body(request: Request, room: Callable[[int], None] = lambda _: None) -> bytes:
    """Read a body of at most `MAX_BODY` bytes within `BODY_WITHIN`, without ever holding more.

    `room` is told of each piece how long it is, and raises when there is no room for it.

    Raises:
        TooLarge: it is longer, by its own word or in fact.
        MalformedRequest: it was not there in time.

    """
    return await _read(request, MAX_BODY, BODY_WITHIN, room)


async def read_long_body(request: Request) -> bytes:
    """Read a body of at most `MAX_LONG_BODY` bytes within `LONG_BODY_WITHIN`, of an authenticated operator.

    Raises:
        TooLarge, MalformedRequest: as `read_body`.

    """
    setattr(request.state, LONG_BODY, True)
    return await _read(request, MAX_LONG_BODY, LONG_BODY_WITHIN, lambda _: None)


async def _read(request: Request, at_most: int, within: float, room: Callable[[int], None]) -> bytes:
    if (declared_length(request) or 0) > at_most:
        raise _too_large(at_most)
    body = bytearray()
    try:
        async with asyncio.timeout(within):
            async for chunk in request.stream():
                if len(body) + len(chunk) > at_most:
                    raise _too_large(at_most)
                room(len(chunk))
                body += chunk
    except TimeoutError:
        raise MalformedRequest("the body did not come in time", reason=BODY_TOO_SLOW) from None
    return bytes(body)


def _too_large(at_most: int) -> TooLarge:
    return TooLarge(f"the body is longer than {at_most} bytes", reason="body-too-large")

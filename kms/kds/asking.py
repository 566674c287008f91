"""One GET to a key distribution service: bounded in time and size, and read as one of a few answers.

Nothing here believes an answer: certificates and lists carry AMD's signatures, and are verified before they
are kept (`kms.kds.acceptance`). So plain http would do, and TLS only keeps private which chips we ask for.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, TypeAlias

import httpx2

from kms import __version__
from kms.kds.pace import hold_of
from kms.ports import Clock

DEADLINE: Final = 10.0  # seconds, for all of one answer
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_CONNECT_WITHIN: Final = 2.0


@dataclass(frozen=True, slots=True)
class Body:
    """200, whole and within its bounds."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Missing:
    """404: the service has no such thing."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """429: nothing more is to be asked for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """No usable answer. With `hold` the service also said for how many seconds to leave it alone.

    `healthy`: it says something of this one question, and nothing against the service.
    """

    kind: str
    hold: float | None = None
    healthy: bool = False


Answer: TypeAlias = Body | Missing | Throttled | Failed


class KdsHttp:
    """HTTP to the services. Proxies of the environment are used, as operators behind one expect."""

    def __init__(self, clock: Clock, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._clock = clock
        self._client = httpx2.AsyncClient(
            transport=transport,
            # The system's roots, and HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE where they are set. There is no
            # secret to protect; `.netrc` is not read, so no operator's password goes out either.
            verify=True,
            trust_env=True,
            # A proxy is not asked for a mirror on this machine.
            mounts=dict.fromkeys(_LOOPBACK),
            # A redirect would let a service name hosts that no operator configured.
            follow_redirects=False,
            timeout=httpx2.Timeout(DEADLINE, connect=_CONNECT_WITHIN),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={
                "Accept": "application/pkix-cert, application/pkix-crl, application/x-pem-file, */*",
                # A compressed answer would need a second bound; certificates do not shrink anyway.
                "Accept-Encoding": "identity",
                "User-Agent": f"attested-kms/{__version__}",
            },
        )

    async def get(self, url: str, *, most: int) -> Answer:
        """Ask once; give what came, with a body of at most `most` bytes. It does not raise."""
        try:
            # A timeout of the library is for each read: a body that drips would outlive any of them.
            async with asyncio.timeout(DEADLINE), self._client.stream("GET", url) as response:
                return await self._read(response, most)
        except (TimeoutError, httpx2.TimeoutException):
            return Failed("timeout")
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
            return Failed("tls-untrusted" if _is_of_tls(error) else "connection")

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _read(self, response: httpx2.Response, most: int) -> Answer:
        wait = response.headers.get("Retry-After")
        match response.status_code:
            case 200:
                return await _body(response, most)
            case 404:
                return Missing()
            case 429:
                return Throttled(hold_of(wait, self._clock()))
            case 400:
                # AMD's answer to levels or ids that it cannot read. Counted against the service, it would
                # let strangers open its breaker with invented reports.
                return Failed("status-400", healthy=True)
            case 503 if wait is not None:
                return Failed("status-503", hold=hold_of(wait, self._clock()))
            case status:
                return Failed("redirect" if 300 <= status < 400 else f"status-{status}")


async def _body(response: httpx2.Response, most: int) -> Answer:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Failed("compressed")
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most:
            return Failed("too-large")
    return Body(bytes(body)) if body else Failed("empty")


def _is_of_tls(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False

"""One GET to a provider: bounded in time and size, JSON or nothing."""

import asyncio
from typing import Final

import httpx2

from kms import __version__
from kms.strict_json import JsonError, JsonValue, parse_object

_DEADLINE: Final = 5.0  # seconds, for all of one answer
_CONNECT_WITHIN: Final = 2.0
_LARGEST: Final = 256 << 10  # bytes
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class NoAnswer(Exception):
    """The provider gave nothing usable; `kind` is a word for the log."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class ProviderHttp:
    """HTTP to a provider. Proxies of the environment are used, as operators behind one expect."""

    def __init__(self) -> None:
        self._client = httpx2.AsyncClient(
            # The system's roots, and HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE where they are set.
            verify=True,
            trust_env=True,
            mounts=dict.fromkeys(_LOOPBACK),  # never by a proxy
            # A redirect would let the provider name hosts that no operator configured.
            follow_redirects=False,
            timeout=httpx2.Timeout(_DEADLINE, connect=_CONNECT_WITHIN),
            headers={
                "Accept": "application/json",
                # A compressed answer would need a second bound.
                "Accept-Encoding": "identity",
                "User-Agent": f"attested-kms/{__version__}",
            },
        )

    async def get(self, url: str) -> dict[str, JsonValue]:
        """Ask once.

        Raises:
            NoAnswer: anything but a JSON object of at most 256 KiB with status 200, in time.

        """
        try:
            # A timeout of the library is for each read: a body that drips would outlive any of them.
            async with asyncio.timeout(_DEADLINE), self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise NoAnswer(f"status-{response.status_code}")
                return parse_object(await _body(response))
        except (TimeoutError, httpx2.TimeoutException):
            raise NoAnswer("timeout") from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError):
            raise NoAnswer("connection") from None
        except JsonError:
            raise NoAnswer("not-json") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


async def _body(response: httpx2.Response) -> bytes:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NoAnswer("compressed")
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _LARGEST:
            raise NoAnswer("too-large")
    return bytes(body)

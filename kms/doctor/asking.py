"""One question over HTTP, only to hear that somebody is there, and what time it is for them."""

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Final

import httpx2

from kms.https_client import certificate_fault, seconds_ahead

_WITHIN: Final = 5.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The status of an answer, and how many seconds their clock is before ours (None: they say no time)."""

    status: int
    ahead: float | None


async def ask(url: str, *, trust: ssl.SSLContext | None, proxies: bool) -> Heard | str:
    """Ask for a URL, and give what was heard, or why nothing was.

    Args:
        url: what to ask for; the body of the answer is not read.
        trust: the CAs to trust; None: the system's.
        proxies: whether the environment's proxies are used.

    """
    try:
        async with (
            asyncio.timeout(_WITHIN),
            httpx2.AsyncClient(
                verify=True if trust is None else trust, trust_env=proxies, follow_redirects=False
            ) as client,
            client.stream("GET", url) as response,
        ):
            ahead = seconds_ahead(response.headers.get("Date"), time.time())
            return Heard(status=response.status_code, ahead=ahead)
    except (TimeoutError, httpx2.TimeoutException):
        return f"no answer within {_WITHIN:g} seconds"
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        fault = certificate_fault(error)
        return type(error).__name__ if fault is None else f"its certificate: {fault}"

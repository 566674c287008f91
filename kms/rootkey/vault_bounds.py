"""HTTP in which no answer is endless: whoever sends it, it is over in time, and after so many bytes.

`requests`, urllib3 and `http.client` bound each read alone. A byte now and then, or one ``100 Continue``
after the other, would hold the thread that waits for as long as the sender likes; and a mebibyte can unpack
to a gibibyte. So the bounds are here, below them all, where the bytes come in.
"""

import http.client
import io
import socket
import time
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from typing_extensions import override
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

_MOST: Final = 1 << 20  # bytes of a body; `MAX_EPOCHS` secrets need less than half of it
_MOST_RECEIVED: Final = _MOST + (1 << 18)  # with the head of the answer, and the lengths of its chunks


class UnboundedAnswer(Exception):
    """The answer is longer than any of Vault's, or compressed, so that nobody knows how long it is."""


class _BoundedReader(io.RawIOBase):
    """What comes in from a socket, up to the end of the time that the socket has for its next read."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._socket = sock
        self._until = time.monotonic() + (sock.gettimeout() or 0.0)
        self._left = _MOST_RECEIVED

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int | None:
        remaining = self._until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise UnboundedAnswer
        return count

    @override
    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Read from its first byte, and not only from its body on, through a `_BoundedReader`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response


class _TlsConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    @override
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


class BoundedSession(requests.Session):
    """Keeps up to `connections` connections to the server at `address`, and speaks to no other."""

    def __init__(self, address: str, *, connections: int) -> None:
        super().__init__()
        # Neither a proxy nor a CA nor a password of the environment's (or of a .netrc): our secrets go where
        # the settings say.
        self.trust_env = False
        self.headers["Accept-Encoding"] = "identity"
        # A server could give so many that it refuses our next request for its length.
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.adapters.clear()
        self.mount(address, _Adapter(pool_connections=1, pool_maxsize=connections, max_retries=0))

    @override
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none: a redirect that is not followed would be read and unpacked all the same."""


def read_body(response: requests.Response) -> bytes:
    """Read the body of an answer that is streamed.

    Raises:
        UnboundedAnswer: it is compressed, or longer than a mebibyte.

    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnboundedAnswer
    body: bytes = response.raw.read(_MOST + 1, decode_content=False)
    if len(body) > _MOST:
        raise UnboundedAnswer
    return body

"""Every answer that a server gave, noted on its way to a client: nothing of it is changed."""

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import httpx2
from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer whole, and after how many seconds it came."""

    path: str
    status: int
    headers: bytes
    body: bytes
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def problem(self) -> tuple[str, tuple[str, ...]]:
        return self.json["code"], tuple(self.json.get("reasons", ()))

    @property
    def retry_after(self) -> int | None:
        for line in self.headers.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name.lower() == b"retry-after":
                return int(value)
        return None


class Notebook(httpx2.BaseTransport):
    """A transport for many clients at once; it stays open when one of them closes it, until its `end`."""

    def __init__(self, ca: Path) -> None:
        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
        self._transport = httpx2.HTTPTransport(
            verify=ssl.create_default_context(cafile=str(ca)), trust_env=False, limits=limits
        )
        self._lock = Lock()
        self.answers: list[Answered] = []

    @override
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        began = time.monotonic()
        response = self._transport.handle_request(request)
        body = response.read()
        headers = b"".join(name + b": " + value + b"\r\n" for name, value in response.headers.raw)
        answered = Answered(request.url.path, response.status_code, headers, body, time.monotonic() - began)
        with self._lock:
            self.answers.append(answered)
        response.close()
        return httpx2.Response(
            response.status_code, headers=response.headers.raw, stream=httpx2.ByteStream(body)
        )

    def end(self) -> None:
        self._transport.close()


@contextmanager
def noted(ca: Path) -> Iterator[Notebook]:
    """Open a notebook for clients of a server of this CA."""
    notebook = Notebook(ca)
    try:
        yield notebook
    finally:
        notebook.end()

"""The metrics over HTTP, on a listener of their own: `/metrics`, and nothing else.

What stands there is not secret, but strangers have no business in it: so it is never served where guests ask,
and by default only to this machine. Plain HTTP, one request a connection, as scrapers ask it.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from kms.errors import ConfigurationError

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_MOST_HEADER: Final = 8 << 10  # bytes
_WITHIN: Final = 5.0  # seconds, for all of a request and its answer
_MOST_AT_ONCE: Final = 16
# What counts upwards only: it stays when its process is gone.
_COUNTING: Final = ("counter", "histogram")
_PREFIX: Final = "kms-metrics-"  # and the pid of whoever made the folder
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- a folder of our own is made in it


@contextlib.asynccontextmanager
async def serve_metrics(
    address: tuple[str, int], source: CollectorRegistry | Path
) -> AsyncIterator[tuple[str, int]]:
    """Serve the page in the running event loop while the context lasts; give the address.

    `source` is the registry of this process, or the folder that workers write to.

    Raises:
        ConfigurationError: the address cannot be had.

    """
    host, port = address
    listener = _Listener(_page_of(source))
    try:
        server = await asyncio.start_server(listener.answer, host, port, limit=_MOST_HEADER)
    except OSError as error:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigurationError(
            f"cannot serve metrics on {shown}: {os.strerror(error.errno or 0)}",
            remedy="stop what uses it, or set KMS_METRICS_LISTEN to another address, or to off",
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[:2]


@contextlib.contextmanager
def folder_for_workers() -> Iterator[Path]:
    """Make the folder that workers write their metrics to, and name it to those started meanwhile.

    In memory where that can be had: the files are mapped, and a mapped page for which a disk has no room
    kills the process that writes it. What a supervisor left behind that was killed is removed.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    remove_left_behind(place)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[FOLDER_VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind(place: Path = _MEMORY) -> None:
    """Remove this user's folders of processes that are no more, which nobody else would until a restart."""
    for folder in place.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        # Everybody may make a folder of such a name there.
        with contextlib.suppress(OSError):
            if owner.isdecimal() and folder.lstat().st_uid == os.getuid() and not _runs(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)


def worker_ended(folder: Path, pid: int) -> None:
    """Forget the gauges of a worker that ended, and add what it counted to what all before it did.

    So a worker that is started anew again and again leaves no files behind that every scrape reads.
    """
    mark_process_dead(pid, str(folder))
    for kind in _COUNTING:
        file = folder / f"{kind}_{pid}.db"
        if file.exists():
            ended = MmapedDict(str(folder / f"{kind}_ended.db"))
            try:
                for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
                    ended.write_value(key, ended.read_value(key)[0] + value, 0.0)
            finally:
                ended.close()
            file.unlink()


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _page_of(source: CollectorRegistry | Path) -> Callable[[], bytes]:
    registry = source
    if isinstance(registry, Path):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(source))
    return partial(generate_latest, registry)


class _Listener:
    """Answers connections; those beyond some at once are closed unheard."""

    def __init__(self, page: Callable[[], bytes]) -> None:
        self._page = page
        self._now = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._now += 1
        try:
            if self._now <= _MOST_AT_ONCE:
                # Whoever says too much, too slowly, or hangs up is not waited for.
                with contextlib.suppress(
                    TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError
                ):
                    async with asyncio.timeout(_WITHIN):
                        head = await reader.readuntil(b"\r\n\r\n")
                        writer.write(self._response(head.split(b"\r\n", 1)[0]))
                        await writer.drain()
        finally:
            self._now -= 1
            writer.close()

    def _response(self, request_line: bytes) -> bytes:
        method, _, rest = request_line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != b"/metrics":
            return _response(b"404 Not Found", b"only /metrics is here\n")
        if method not in {b"GET", b"HEAD"}:
            return _response(b"405 Method Not Allowed", b"only GET\n", allow=True)
        page = self._page()
        return _response(b"200 OK", page, CONTENT_TYPE_PLAIN_0_0_4, send=method == b"GET")


def _response(
    status: bytes, body: bytes, media_type: str = "text/plain", *, allow: bool = False, send: bool = True
) -> bytes:
    lines = [
        b"HTTP/1.1 " + status,
        b"Content-Type: " + media_type.encode("ascii"),
        b"Content-Length: %d" % len(body),
        b"Cache-Control: no-store",
        b"Connection: close",
    ]
    if allow:
        lines.append(b"Allow: GET, HEAD")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body if send else b"")

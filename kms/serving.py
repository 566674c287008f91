"""Runs a built server: the listening socket, uvicorn, and the end of it all."""

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Iterator
from typing import Final

import structlog
from starlette.responses import Response
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.http.app import response_marks
from kms.http.connections import Door
from kms.http.guarded import GuardedServer
from kms.http.problems import problem
from kms.settings import Address, Settings
from kms.wiring import Kms, ToldToStop, new_id, open_kms

_log = structlog.get_logger("kms.start")

_KEEP_ALIVE: Final = 75  # seconds
_GRACE: Final = 20  # seconds for requests in flight when the server is told to stop
_MOST_CONNECTIONS: Final = 16_384
# A rack of guests behind one address may all come at once; half of the places stay for everybody else.
_MOST_OF_ONE_NETWORK: Final = 2048
_FILES_BESIDES: Final = 128  # descriptors for the database, the logs, the policy folder


async def serve(settings: Settings) -> None:
    """Run the server until it is told to stop (SIGTERM, SIGINT), and let what it has begun end well.

    Raises:
        ConfigurationError: it cannot start; it says why and what to do.

    """
    with contextlib.ExitStack() as stack, contextlib.suppress(ToldToStop):
        listener = stack.enter_context(_bind(settings))
        told = stack.enter_context(_told_to_stop())
        async with open_kms(settings, told) as kms:
            if settings.development:
                _log.warning(
                    "DEVELOPMENT MODE: roots that are not AMD's are trusted; never use this for real keys",
                    development_roots=str(settings.development_roots),
                )
            await _Server(kms, listener, told, settings.listen).serve()
            _log.info("stopping")
    _log.info("stopped")


class _Server(GuardedServer):
    """The server of a built KMS; it ends when it is told to."""

    def __init__(self, kms: Kms, listener: socket.socket, told: asyncio.Event, address: Address) -> None:
        most = min(_MOST_CONNECTIONS, _open_files() - _FILES_BESIDES)
        super().__init__(
            kms.app,
            listener,
            kms.tls,
            door=Door(most=most, most_of_one=min(_MOST_OF_ONE_NETWORK, max(most // 2, 1))),
            malformed=self._malformed_request,
            keep_alive=_KEEP_ALIVE,
            grace=_GRACE,
        )
        self._told = told
        self._address = address
        self._development = kms.desk.development

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _log.info("listening", address=str(self._address), development=self._development)

    @override
    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._told.is_set()

    def _malformed_request(self) -> Response:
        request_id = new_id()
        response = problem("malformed-request", request_id)
        response.raw_headers.extend(response_marks(request_id, development=self._development))
        return response


def _open_files() -> int:
    """Allow as many open files as the system does, and give their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _FILES_BESIDES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < 2 * _FILES_BESIDES:
        raise ConfigurationError(
            f"only {allowed} open files are allowed", remedy="raise the limit (ulimit -n, LimitNOFILE=)"
        )
    return allowed


@contextlib.contextmanager
def _told_to_stop() -> Iterator[asyncio.Event]:
    """Give the event of SIGTERM or SIGINT. Until the context ends, neither ends the process."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, told.set)
    try:
        yield told
    finally:
        for each in signals:
            loop.remove_signal_handler(each)


def _bind(settings: Settings) -> socket.socket:
    """Take the address, before anything is made; nobody is heard before `listen`."""
    host, port = settings.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {settings.listen}: {error.strerror}",
            remedy="stop what uses it, or set KMS_LISTEN to another address",
        ) from error
    return listener

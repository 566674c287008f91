"""Runs a built server in this process: the listening socket, uvicorn, and the end of it all."""

import asyncio
import contextlib
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog
from starlette.responses import Response
from typing_extensions import override

from kms.buckets import Buckets
from kms.errors import ConfigurationError
from kms.http.app import response_marks
from kms.http.connections import Door
from kms.http.guarded import GuardedServer
from kms.http.problems import problem
from kms.listening import READY, STOP_NOW, Inherited, bind, say_listening
from kms.settings import Settings
from kms.telemetry.exposition import serve_metrics
from kms.telemetry.metrics import Metrics
from kms.wiring import Kms, ToldToStop, new_id, open_kms

_log = structlog.get_logger("kms.start")

_KEEP_ALIVE: Final = 75  # seconds
_GRACE: Final = 20  # seconds for requests in flight when the server is told to stop
MOST_CONNECTIONS: Final = 16_384
# A rack of guests behind one address may all come at once; half of the places stay for everybody else.
_MOST_OF_ONE_NETWORK: Final = 2048
FILES_BESIDES: Final = 128  # descriptors for the database, the logs, the policy folder


async def serve(settings: Settings, inherited: Inherited | None = None) -> None:
    """Run the server until it is told to stop, and let what it has begun end well.

    It is told by SIGTERM or SIGINT; a worker by its supervisor too, or by the end of it. `inherited` is what
    a worker has of its supervisor, who says in the log what holds for all.

    Raises:
        ConfigurationError: it cannot start; it says why and what to do.
        CancelledError: it was told twice, and has cut off what was in flight.

    """
    with contextlib.ExitStack() as stack, contextlib.suppress(ToldToStop):
        if inherited is None:
            listener = stack.enter_context(bind(settings))
            told = stack.enter_context(_told_by_signals())
        else:
            listener = stack.enter_context(socket.socket(fileno=inherited.listener))
            lifeline = stack.enter_context(socket.socket(fileno=inherited.lifeline))
            told = stack.enter_context(_told_by_supervisor(lifeline))
        metrics = Metrics()
        # Those of workers are served by their supervisor.
        served: contextlib.AbstractAsyncContextManager[object] = contextlib.nullcontext()
        if inherited is None and settings.metrics_listen is not None:
            served = serve_metrics(settings.metrics_listen, metrics.registry)
        first = inherited is None or inherited.first
        async with served, open_kms(settings, told, first=first, metrics=metrics) as kms:

            def listening() -> None:
                if inherited is None:
                    say_listening(settings)
                else:
                    with contextlib.suppress(OSError):  # the supervisor is gone: that is heard elsewhere
                        lifeline.send(READY)

            server = _Server(kms, listener, told, settings, listening)
            kms.figures.connections = lambda: len(server.server_state.connections)
            await server.serve()
    if inherited is None:
        _log.info("stopped")


class _Server(GuardedServer):
    """The server of a built KMS; it ends when it is told to. `listening` is called once it listens."""

    def __init__(
        self,
        kms: Kms,
        listener: socket.socket,
        told: asyncio.Event,
        settings: Settings,
        listening: Callable[[], None],
    ) -> None:
        most = min(MOST_CONNECTIONS, _open_files() - FILES_BESIDES)
        super().__init__(
            kms.app,
            listener,
            kms.tls,
            door=Door(most=most, most_of_one=min(_MOST_OF_ONE_NETWORK, max(most // 2, 1))),
            malformed=self._malformed_request,
            keep_alive=_KEEP_ALIVE,
            grace=_GRACE,
            fruitless=Buckets(*settings.rate_limit, time.monotonic),
        )
        self._told = told
        self._drain = settings.drain.total_seconds()
        self._stops_at: float | None = None
        self._listening = listening
        self._development = settings.development

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    @override
    async def on_tick(self, counter: int) -> bool:
        """Say whether to stop: when told, and a load balancer had the time to see that it was."""
        if self._told.is_set() and self._stops_at is None:
            self.stopping = True
            self._stops_at = time.monotonic() + self._drain
        drained = self._stops_at is not None and time.monotonic() >= self._stops_at
        return await super().on_tick(counter) or drained

    def _malformed_request(self) -> Response:
        request_id = new_id()
        response = problem("malformed-request", request_id)
        response.raw_headers.extend(response_marks(request_id, development=self._development))
        return response


def _open_files() -> int:
    """Allow as many open files as the system does, and give their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + FILES_BESIDES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < 2 * FILES_BESIDES:
        raise ConfigurationError(
            f"only {allowed} open files are allowed", remedy="raise the limit (ulimit -n, LimitNOFILE=)"
        )
    return allowed


@contextlib.contextmanager
def _told_by_signals() -> Iterator[asyncio.Event]:
    """Give the event of SIGTERM or SIGINT. A second cuts off what is in flight, a third ends the process."""
    told, cut_off = asyncio.Event(), _cancellation()

    def tell() -> None:
        if told.is_set():
            cut_off()
            stack.close()  # what comes next does what signals do
        else:
            _log.info("stopping")
            told.set()

    with contextlib.ExitStack() as stack:
        _on_signals(tell, stack)
        yield told


@contextlib.contextmanager
def _told_by_supervisor(lifeline: socket.socket) -> Iterator[asyncio.Event]:
    """Give the event of being told through the lifeline, or of its end.

    Signals count once: a terminal and systemd send them to all processes, so they reach a worker twice.
    """
    told, cut_off, loop = asyncio.Event(), _cancellation(), asyncio.get_running_loop()
    lifeline.setblocking(False)

    def hear() -> None:
        try:
            said = lifeline.recv(16)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            loop.remove_reader(lifeline)
        if STOP_NOW in said:
            cut_off()
        told.set()

    loop.add_reader(lifeline, hear)
    with contextlib.ExitStack() as stack:
        _on_signals(told.set, stack)
        stack.callback(loop.remove_reader, lifeline)
        yield told


def _cancellation() -> Callable[[], object]:
    """Give what cancels the task that asks."""
    task = asyncio.current_task()
    return (lambda: None) if task is None else task.cancel


def _on_signals(call: Callable[[], None], stack: contextlib.ExitStack) -> None:
    """Call on SIGTERM and SIGINT, until the stack closes."""
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, call)
        stack.callback(loop.remove_signal_handler, each)

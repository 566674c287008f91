"""Several worker processes that share one listening socket (`KMS_WORKERS`), and who looks after them.

The supervisor opens neither the database nor the root key. It takes the address, starts the workers, starts
another where one died, and passes on what it is told. Each worker is a program started anew, not a fork: it
shares no memory, and so no random numbers and no addresses of code, with any other.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from kms.listening import READY, STOP, STOP_NOW, Inherited, bind, say_listening
from kms.settings import Settings
from kms.telemetry.exposition import folder_for_workers, serve_metrics, worker_ended

_log = structlog.get_logger("kms.start")

_FAILED: Final = 1  # exit status: something of what was in flight was cut off
# Seconds before a worker that died is started again, twice as long after each time that it was not ready.
_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0


async def supervise(settings: Settings, config: Path | None) -> int:
    """Run the workers until told to stop by SIGTERM or SIGINT; give the exit status.

    A second signal cuts off what is in flight, a third ends the workers as they are. `config` is the file
    that the settings were read from, which the workers read too.

    Raises:
        ConfigurationError: it cannot have an address.

    """
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(bind(settings))
        folder = stack.enter_context(folder_for_workers())
        if settings.metrics_listen is not None:
            await stack.enter_async_context(serve_metrics(settings.metrics_listen, folder))
        supervisor = _Supervisor(settings, listener, config, lambda pid: worker_ended(folder, pid))
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, supervisor.told)
            stack.callback(loop.remove_signal_handler, each)
        status = await supervisor.run()
    _log.info("stopped")
    return status


class _Supervisor:
    """Looks after `KMS_WORKERS` workers."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        config: Path | None,
        ended: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._command = [sys.executable, "-m", "kms", "serve"]
        if config is not None:
            self._command += ["--config", str(config)]
        self._ended = ended
        self._workers: set[_Worker] = set()
        self._times_told = 0
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._status = 0

    def told(self) -> None:
        """Stop, this time in the way that goes with how often it was said."""
        self._times_told += 1
        if self._times_told == 1:
            _log.info("stopping")
            # Workers have it too. Without this, the system would go on connecting guests that nobody accepts.
            self._listener.close()
        self._stopping.set()
        for worker in self._workers:
            worker.tell(self._times_told)

    async def run(self) -> int:
        """Run the first worker until it is ready, then all; return when the last has ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(first=True))
            if await self._either(self._ready):
                say_listening(self._settings)
                for _ in range(self._settings.workers - 1):
                    group.create_task(self._keep(first=False))
        return self._status

    async def _keep(self, *, first: bool) -> None:
        """Run a worker, and another when it dies."""
        pause = _PAUSE
        while not self._stopping.is_set():
            try:
                worker = await _Worker.start(self._command, self._listener, first=first)
            except OSError as error:
                _log.error("worker-not-started", cause=error.strerror, again_in=_LONGEST_PAUSE)
                await self._pause(_LONGEST_PAUSE)
                continue
            self._workers.add(worker)
            if self._times_told:  # meanwhile
                worker.tell(self._times_told)
            if await worker.ready():
                _log.info("worker-ready", worker=worker.pid)
                self._ready.set()
                first, pause = False, _PAUSE
            status = await worker.end()
            self._workers.discard(worker)
            self._ended(worker.pid)
            if self._stopping.is_set():
                self._status = self._status or (_FAILED if status else 0)
            elif not self._ready.is_set() and status > 0:
                # It could not start, and has said why. Once a server has run, what its settings name may be
                # broken for a while (a policy that is being edited): the workers that there are serve on.
                self._status = status
                self._stopping.set()
            else:
                _log.error("worker-died", worker=worker.pid, status=status, again_in=pause)
                await self._pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _either(self, event: asyncio.Event) -> bool:
        """Wait for an event, or for the end; say whether it was the event."""
        waits = [asyncio.create_task(each.wait()) for each in (event, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return event.is_set() and not self._stopping.is_set()


class _Worker:
    """A worker process and our end of its lifeline (`kms.listening.Inherited`)."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: socket.socket) -> None:
        self._process = process
        self._lifeline = lifeline
        self.pid = process.pid

    @classmethod
    async def start(cls, command: list[str], listener: socket.socket, *, first: bool) -> "_Worker":
        """Start the program. Raises `OSError` where the system has no room for it."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(ours.close)
            ours.setblocking(False)
            inherited = Inherited(listener=listener.fileno(), lifeline=theirs.fileno(), first=first)
            process = await asyncio.create_subprocess_exec(
                *command,
                "--worker",
                str(inherited),
                pass_fds=(inherited.listener, inherited.lifeline),
                # What a terminal says to all (Ctrl-C), it says to us.
                start_new_session=True,
            )
            unless_started.pop_all()
        return cls(process, ours)

    async def ready(self) -> bool:
        """Wait until it serves, or has ended before; say which."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._lifeline, 1) == READY
        except OSError:  # it ended without having heard what we said
            return False

    async def end(self) -> int:
        """Wait for its end; give its exit status, or minus the signal that ended it."""
        status = await self._process.wait()
        self._lifeline.close()
        return status

    def tell(self, times: int) -> None:
        """Tell it to stop: the first time to end well, the second to cut off, the third it is ended."""
        if times > 2:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        else:
            with contextlib.suppress(OSError):
                self._lifeline.send(STOP if times == 1 else STOP_NOW)

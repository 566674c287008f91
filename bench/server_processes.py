"""Servers as processes of their own, and what the kernel says of them: processor time and memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from bench.server_guests import Guests
from tests.conformance.own_server import Server, environment
from tests.servers.ports import free_port
from tests.servers.vault import wait_until

_PROC: Final = Path("/proc")
_TICK: Final = os.sysconf("SC_CLK_TCK")
_READY_WITHIN: Final = 60.0


class Measured:
    """A process with all that it started. `port` is its HTTPS port, `ca` its authority's certificate."""

    def __init__(self, process: int, port: int, ca: Path) -> None:
        self.process = process
        self.port = port
        self.ca = ca

    def family(self) -> list[int]:
        """Give the process and all below it."""
        parents = {}
        for each in _PROC.iterdir():
            if each.name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    parents[int(each.name)] = int(_stat(int(each.name))[1])
        found = [self.process]
        for member in found:
            found += [child for child, parent in parents.items() if parent == member]
        return found

    def cpu(self) -> float:
        """Give the processor seconds, user's and system's, that they have used."""
        fields = [_stat(each) for each in self.family()]
        return sum(int(each[11]) + int(each[12]) for each in fields) / _TICK

    def memory(self) -> float:
        """Give the megabytes of the largest of them: its own, and its share of what it shares (PSS)."""
        return max(_proportional(each) for each in self.family()) / 1e6

    def guests(self, number: int) -> Guests:
        """Open so many connections, each of them used once: one that asks for nothing is soon cut off."""
        guests = Guests(self.port, self.ca, number)
        guests.challenges(number)
        return guests


class Kms(Measured):
    """A real server over a folder."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.process.pid, server.port, server.ca)
        self.server = server

    @classmethod
    @contextmanager
    def running(cls, folder: Path, settings: dict[str, str]) -> Iterator[Self]:
        """Run `kms serve` with these settings beside its own, with metrics on."""
        metrics = f"127.0.0.1:{free_port()}"
        with Server(folder, {"KMS_METRICS_LISTEN": metrics, **settings}) as server:
            yield cls(server)


@contextmanager
def floor_running(folder: Path, url: str | None) -> Iterator[Measured]:
    """Run the floor (`bench.server_floor`), which commits to the PostgreSQL at `url`, or to SQLite."""
    folder.mkdir()
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "bench.server_floor", str(folder), str(port)]
    if url is not None:
        command.append(url.replace("+asyncpg", ""))
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment({}), stdout=output, stderr=output)  # noqa: S603
    measured = Measured(process.pid, port, folder / "tls" / "ca.pem")
    try:
        wait_until(lambda: _answers(measured, process, log), within=_READY_WITHIN)
        yield measured
    finally:
        process.terminate()
        process.wait(10)


def _answers(measured: Measured, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the floor did not start:\n{log.read_text()}")
    try:
        with closing(measured.guests(1)) as guests:
            return bool(guests.challenges(1))
    except OSError:
        return False


def _stat(process: int) -> list[str]:
    # proc(5): what follows the command's name, which may hold anything, begins with the third field.
    return (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()


def _proportional(process: int) -> int:
    for line in (_PROC / str(process) / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say how much memory a process has")

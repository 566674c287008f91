"""Several servers on one PostgreSQL, and what is done to them while guests ask for keys."""

import asyncio
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.own_server import Server
from tests.servers.ports import free_port
from tests.servers.postgresql import PostgresServer


@dataclass(slots=True)
class Cluster:
    """`count` servers, each with a data folder and an anchor of its own, and root and CA of the first."""

    folder: Path
    settings: Mapping[str, str]
    count: int
    servers: list[Server] = field(default_factory=list)

    def start(self) -> None:
        """Start the first, then the others with what it has made."""
        for number in range(self.count):
            port = free_port()
            data = self.folder / f"server-{number}"
            if number:
                data.mkdir(mode=0o700)
                (data / "tls").mkdir(mode=0o700)
                for name in ("ca.pem", "ca-key.pem"):
                    if (self._first / "tls" / name).exists():
                        shutil.copy2(self._first / "tls" / name, data / "tls" / name)
            self.servers.append(self._launch(data, number, port))
            if not number:
                self.servers[0].wait_until_ready()
        for each in self.servers:
            each.wait_until_ready()

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.servers]

    @property
    def ca(self) -> Path:
        return self.servers[0].ca

    @property
    def _first(self) -> Path:
        return self.folder / "server-0"

    def _launch(self, data: Path, number: int, port: int) -> Server:
        server = Server(
            data,
            {
                **self.settings,
                "KMS_ROOT_KEY": f"file:{self._first / 'root-key.json'}",
                "KMS_LISTEN": f"127.0.0.1:{port}",
                "KMS_SERVER_NAME": f"server-{number}",
            },
        )
        server.port = port
        return server

    def kill_one(self) -> int:
        """End a server as a power cut would, and start it again; give its number."""
        number = secrets.randbelow(self.count)
        server = self.servers[number]
        server.kill()
        self.servers[number] = self._launch(server.data_dir, number, server.port)
        return number

    async def pause_one(self, seconds: float) -> None:
        """Let a server stand still, as a virtual machine does that is moved."""
        server = self.servers[secrets.randbelow(self.count)]
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        server.process.send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        return "".join(each.log_text() for each in self.servers)

    def stop(self) -> None:
        for each in self.servers:
            if each.alive():
                each.process.send_signal(signal.SIGCONT)
                each.process.terminate()
        for each in self.servers:
            each.stop()


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens: a kill every so many seconds, when PostgreSQL restarts, when and how long a pause is."""

    kill_every: float
    restart_at: float
    pause_at: float
    pause_for: float


async def rage(cluster: Cluster, database: PostgresServer, weather: Weather, over: asyncio.Event) -> str:
    """Do all of it until it is `over`, each thing once at least; give what was done."""
    began = time.monotonic()
    kills, restarted, paused = 0, False, False
    next_kill = began + weather.kill_every
    while not over.is_set() or not (kills and restarted and paused):
        await asyncio.sleep(0.05)
        now = time.monotonic()
        if not restarted and now - began >= weather.restart_at:
            await asyncio.to_thread(database.restart)
            restarted = True
        if not paused and now - began >= weather.pause_at:
            await cluster.pause_one(weather.pause_for)
            paused = True
        if now >= next_kill:
            await asyncio.to_thread(cluster.kill_one)
            kills += 1
            next_kill = now + weather.kill_every
    return f"{kills} kills, 1 restart of PostgreSQL, 1 pause of {weather.pause_for} s"

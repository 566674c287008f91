"""A real PostgreSQL on 127.0.0.1: a cluster of its own in a temporary folder, gone when the test is."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.servers.ports import free_port
from tests.servers.vault import wait_until

_DEBIAN: Final = Path("/usr/lib/postgresql")
_UNPRIVILEGED: Final = ("postgres", "nobody")
# Nothing but time differs from what a server of this version does by itself.
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum_naptime": "5s",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %d %a ",
}
_DATABASE: Final = "kms"
_ADMIN: Final = "kms"
GUARDED: Final = "guarded"  # a user who is asked for a password, which is GUARDED_PASSWORD
GUARDED_PASSWORD: Final = "password-canary"
_ASK: Final = f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"


def find_postgresql() -> Path | None:
    """Give the folder with ``initdb`` and ``postgres``: Debian's newest, or one on the PATH."""
    versions = [each for each in _DEBIAN.glob("*/bin") if (each / "initdb").is_file()]
    if versions:
        return max(versions, key=lambda each: float(each.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found and shutil.which("postgres") else None


def require_postgresql() -> Path:
    """Give the folder of the binaries, or skip the test."""
    binaries = find_postgresql()
    if binaries is None:
        pytest.skip("there is no PostgreSQL, so it is not tested: apt-get install postgresql")
    return binaries


class PostgresServer:
    """A server process with an empty database `kms`; `settings` are those of ``postgresql.conf``.

    It runs on the same port, with the same data, after each `start`. Without `fsync` it is faster, and its
    data does not survive a power cut, which no test has.
    """

    def __init__(self, *, fsync: bool = True, settings: Mapping[str, str] | None = None) -> None:
        self._binaries = require_postgresql()
        self._settings = {**_SETTINGS, "fsync": "on" if fsync else "off", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        # Not in a folder of pytest's: those are closed to the user that the server runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.log = self.folder / "log"
        # PostgreSQL does not run as root.
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            account = _unprivileged()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            self._make_cluster()
            self.start()
            self.sql(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{GUARDED_PASSWORD}'", database="postgres")
            self.create_database(_DATABASE)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of the database `kms`."""
        return self.url_of(_DATABASE)

    def url_of(self, database: str, user: str = _ADMIN) -> str:
        return f"postgresql+asyncpg://{user}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """Make a database, empty or a copy of another to which nobody is connected; give its URL."""
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"', database="postgres")
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, also one to which somebody is connected."""
        self.sql(f'DROP DATABASE "{name}" WITH (FORCE)', database="postgres")

    @contextmanager
    def fresh_database(self, template: str = "template0") -> Iterator[str]:
        """Give the URL of a new database for the block; see `create_database`."""
        name = f"fresh_{secrets.token_hex(6)}"
        url = self.create_database(name, template=template)
        try:
            yield url
        finally:
            self.drop_database(name)

    def sql(self, statement: str, *, database: str = _DATABASE) -> str:
        """Do as the owner of the server, in a process and connection of its own; give the rows as text."""
        done = subprocess.run(
            [
                *(self._binaries / "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet"),
                *("--set=ON_ERROR_STOP=1", "--host=127.0.0.1", f"--port={self.port}", f"--username={_ADMIN}"),
                *(f"--dbname={database}", f"--command={statement}"),
            ],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "PGCONNECT_TIMEOUT": "10"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{statement}: {done.stderr}")
        return done.stdout.strip()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                **self._user,
            )
        wait_until(self._serves, within=60)

    def stop(self) -> None:
        """End the server as its owner does: transactions are rolled back, connections closed."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """End every process of the server at once, as a power cut does."""
        family = self._family()
        for process in family:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._end(signal.SIGKILL)
        # The next server does not start while one of them has the shared memory.
        wait_until(lambda: not any(_runs(process) for process in family))

    def pause(self) -> None:
        """Let every process of the server hang: what is sent to it stays unanswered, until `resume`."""
        # The first process is first: stopped, it starts no others.
        for process in self._family():
            os.kill(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._family():
            os.kill(process, signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the server for the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have no server for the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def configure(self, **settings: str) -> None:
        """Change settings of the running server for connections that are there and those that come."""
        for name, value in settings.items():
            self.sql(f"ALTER SYSTEM SET {name} = '{value}'", database="postgres")
        self.sql("SELECT pg_reload_conf()", database="postgres")

    def close(self) -> None:
        """End the server, and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self.resume()  # what hangs does not end
            self.kill()
        shutil.rmtree(self.folder)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _make_cluster(self) -> None:
        subprocess.run(
            [
                *(self._binaries / "initdb", "--no-sync", "--auth=trust", f"--username={_ADMIN}"),
                # In the order of a language, as many are: a test notices where it should be that of bytes.
                *("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"),
                f"--pgdata={self._data}",
            ],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            **self._user,
        )
        (self._data / "pg_hba.conf").write_text(_ASK)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("it was not started")
        self._process.send_signal(how)
        self._process.wait(timeout=60)

    def _family(self) -> list[int]:
        """Give the first process, and its children: it has no grandchildren."""
        if self._process is None:
            raise RuntimeError("it was not started")
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text()
        return [first, *map(int, children.split())]

    def _serves(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {self.log.read_text()[-2000:]}")
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


def _unprivileged() -> pwd.struct_passwd:
    for name in _UNPRIVILEGED:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user")


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended; whoever took it over has not asked yet

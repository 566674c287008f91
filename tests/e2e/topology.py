"""The servers of docker-compose.yml as plain processes on 127.0.0.1, from the very files that compose uses.

What names a host or a folder of a container is mapped; everything else is as it is committed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.conformance.own_server import environment
from tests.environment_file import read_environment
from tests.servers.ports import free_port
from tests.servers.postgresql import GUARDED, PostgresServer
from tests.servers.vault import find_vault

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
_LISTENERS: Final = ("kms-1", "kms-2", "kms-1:9443", "kms-2:9443", "vault", "vault:8201")


def find_haproxy() -> str:
    """Give the program, or skip the test."""
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip("there is no HAProxy, so the topology is not tested: apt-get install haproxy")
    return found


class Process:
    """A process that can be ended, and started again as it was."""

    def __init__(self, folder: Path, name: str, command: Sequence[str | Path], **variables: str) -> None:
        self.log = folder / f"{name}.log"
        self._folder, self._command, self._variables = folder, command, variables
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment(self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; give its status."""
        return self._end(signal.SIGTERM)

    def end(self) -> None:
        """See to it that it does not outlive the test."""
        if self.running:
            self.kill()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        try:
            return self._process.wait(40)
        finally:
            self._process.kill()
            self._process.wait()


class Topology:
    """PostgreSQL, Vault, two servers and the balancer. `more` are settings beside those of compose."""

    def __init__(self, folder: Path, stack: ExitStack, more: Mapping[str, str]) -> None:
        self.folder, self._stack = folder, stack
        self.secrets = folder / "secrets"
        self.port = free_port()
        self._ports = {name: free_port() for name in _LISTENERS}
        self._run(sys.executable, OPS / "compose" / "prepare.py", self.secrets)
        self.postgres = stack.enter_context(PostgresServer())
        self._prepare_postgres()
        self.vault = self._start_vault()
        self.open_vault()
        self.settings = {name: self.settings_of(name, more) for name in ("kms-1", "kms-2")}
        self.servers = {
            name: self._process(name, [sys.executable, "-m", "kms", "serve"], **settings)
            for name, settings in self.settings.items()
        }
        self.balancer = self._process(
            "balancer",
            [find_haproxy(), "-W", "-f", OPS / "haproxy" / "haproxy.cfg"],
            BALANCER_LISTEN=f"127.0.0.1:{self.port}",
            SERVER_1=f"127.0.0.1:{self._ports['kms-1']}",
            SERVER_2=f"127.0.0.1:{self._ports['kms-2']}",
            SERVERS_CA=str(self.ca),
        )

    @property
    def url(self) -> str:
        """Where guests come: the balancer."""
        return f"https://127.0.0.1:{self.port}"

    def url_of(self, server: str) -> str:
        return f"https://127.0.0.1:{self._ports[server]}"

    @property
    def ca(self) -> Path:
        return self.secrets / "kms" / "ca.pem"

    def settings_of(self, server: str, more: Mapping[str, str]) -> dict[str, str]:
        """Map kms.env to this machine, as seen by one server."""
        own = self.folder / server
        (own / "attested-kms-anchor").mkdir(mode=0o700, parents=True)
        mapped = {
            name: self._mapped(
                value,
                {
                    "0.0.0.0:8443": f"127.0.0.1:{self._ports[server]}",
                    "0.0.0.0:9443": f"127.0.0.1:{self._ports[f'{server}:9443']}",
                    "/var/lib/": f"{own}/",
                    "kms@postgres:5432": f"{GUARDED}@127.0.0.1:{self.postgres.port}",
                },
            )
            for name, value in read_environment(OPS / "compose" / "kms.env").items()
        }
        # What a container's host name is.
        return {**mapped, "KMS_SERVER_NAME": server, **more}

    def kms(self, *command: str, server: str = "kms-1", status: int = 0) -> str:
        """Run a command as on a server's machine; give what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "kms", *command],
            cwd=self.folder,
            env=environment(self.settings[server]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (command, done.stdout, done.stderr)
        return done.stdout

    def open_vault(self) -> None:
        """Initialise and unseal Vault as the service `vault-opener` does."""
        self._run(
            *(sys.executable, OPS / "compose" / "vault_opener.py", "--once"),
            f"--address=https://127.0.0.1:{self._ports['vault']}",
            f"--ca={self.secrets / 'vault' / 'ca.pem'}",
            f"--opened-by={self.folder / 'vault.json'}",
            "--role-id=attested-kms",
            f"--secret-id-file={self.secrets / 'kms' / 'vault-secret-id'}",
        )

    def _prepare_postgres(self) -> None:
        """Give PostgreSQL the certificate that compose gives it, and the servers' user its password."""
        account = self.postgres.folder.stat()
        for name in ("server.pem", "server-key.pem"):
            file = self.postgres.folder / name
            shutil.copy(self.secrets / "postgres" / name, file)
            os.chown(file, account.st_uid, account.st_gid)
            file.chmod(0o600)
        folder = self.postgres.folder
        self.postgres.configure(
            ssl_cert_file=str(folder / "server.pem"), ssl_key_file=str(folder / "server-key.pem"), ssl="on"
        )
        password = (self.secrets / "postgres" / "kms-password").read_text()
        self.postgres.sql(f"ALTER ROLE {GUARDED} PASSWORD '{password}'", database="postgres")
        self.postgres.sql(f"ALTER DATABASE kms OWNER TO {GUARDED}", database="postgres")
        login = self.secrets / "kms" / "database-login"
        ours = f"127.0.0.1:{self.postgres.port}:kms:{GUARDED}"
        login.write_text(login.read_text().replace("postgres:5432:kms:kms", ours))

    def _start_vault(self) -> Process:
        (self.folder / "vault").mkdir()
        cluster = f"127.0.0.1:{self._ports['vault:8201']}"
        text = self._mapped(
            (OPS / "compose" / "vault.hcl").read_text(),
            {
                "/vault/file": str(self.folder / "vault"),
                "0.0.0.0:8200": f"127.0.0.1:{self._ports['vault']}",
                "vault:8201": cluster,
                # Otherwise it listens for other Vaults on the port after its own.
                "tls_cert_file": f'cluster_address = "{cluster}"\n  tls_cert_file',
            },
        )
        config = self.folder / "vault.hcl"
        config.write_text(text)
        return self._process("vault", [find_vault(), "server", f"-config={config}"])

    def _mapped(self, text: str, places: Mapping[str, str]) -> str:
        """Map places of containers, and every /run/secrets/NAME to the file that compose mounts there."""
        for inside, here in {**places, "vault:8200": f"127.0.0.1:{self._ports['vault']}"}.items():
            text = text.replace(inside, here)
        declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["secrets"]
        made = "ops/compose/secrets"
        return re.sub(
            r"/run/secrets/([a-z-]+)",
            lambda found: declared[found[1]]["file"].replace(made, str(self.secrets)),
            text,
        )

    def _process(self, name: str, command: Sequence[str | Path], **variables: str) -> Process:
        process = Process(self.folder, name, command, **variables)
        self._stack.callback(process.end)
        return process

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, cwd=ROOT, env=environment({}), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)


@contextmanager
def topology(folder: Path, more: Mapping[str, str]) -> Iterator[Topology]:
    """Start all of it, and end all of it."""
    find_haproxy()
    with ExitStack() as stack:
        yield Topology(folder, stack, more)

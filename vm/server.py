"""Real `kms serve` processes on this computer, which the machine reaches through QEMU's user network."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2

from kms.encoding import from_base64
from kms.errors import ConfigurationError
from kms.strict_json import Fields, parse

HOST_OF_GUEST: Final = "10.0.2.2"  # the host, as QEMU's user network shows it to the guest
_WITHIN: Final = 60.0
_POLL: Final = 0.1
_LAST_LINES: Final = 12


def free_port() -> int:
    """Give a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs. `identity` is its 32-byte KMS identity."""

    folder: Path
    port: int
    settings: Mapping[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        """Where this computer reaches it."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The CA of its certificate."""
        return self.folder / "data" / "tls" / "ca.pem"

    @property
    def log(self) -> Path:
        """Everything that it logs."""
        return self.folder / "server.log"

    @property
    def identity(self) -> bytes:
        """Who the KMS is. Only a demo may ask the server itself: a guest has it in its measured image."""
        fields = Fields(parse(self._get("/v1/identity").content), "identity")
        return from_base64(fields.text("identity"))

    def apply(self, policy: Path) -> None:
        """Put a policy in force, as an operator does, and wait until the server is ready.

        Raises:
            ConfigurationError: it is refused, or the server does not become ready.

        """
        run_kms("policy", "apply", str(policy), "--message", "vm-demo", settings=self.settings)
        self.wait(lambda: self._get("/readyz").is_success)

    def wait(self, what: Callable[[], bool]) -> None:
        """Wait until it is so. Raises `ConfigurationError` with the end of the log if it never is."""
        end = time.monotonic() + _WITHIN
        while time.monotonic() < end:
            try:
                if what():
                    return
            except (httpx2.TransportError, OSError):
                pass  # not listening yet, or the CA's file is being written
            time.sleep(_POLL)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        remedy = "the end of its log:\n" + "\n".join(lines[-_LAST_LINES:])
        raise ConfigurationError("the demo's server did not become ready", remedy=remedy)

    def _get(self, path: str) -> httpx2.Response:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with httpx2.Client(verify=context, trust_env=False, timeout=5.0) as client:
            return client.get(self.url + path)


def run_kms(*command: str, settings: Mapping[str, str]) -> str:
    """Run a `kms` command as an operator would, and give what it printed.

    Raises:
        ConfigurationError: it failed; what it said is there.

    """
    done = subprocess.run(  # noqa: S603 -- the demo's own words
        [sys.executable, "-m", "kms", *command],
        env=_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(f"kms {' '.join(command)}: status {done.returncode}", remedy=done.stderr)
    return done.stdout


@contextmanager
def serving(folder: Path, *, port: int, roots: Path, tls: Path | None = None) -> Iterator[Server]:
    """Run a server whose everything is in `folder`, and stop it whatever happens.

    `roots` are the development roots; `tls` the TLS folder of another server, to have its certificate.
    """
    data = folder / "data"
    if tls is not None:
        shutil.copytree(tls, data / "tls")
        data.chmod(0o700)
    settings = {
        "KMS_DATA_DIR": str(data),
        "KMS_LISTEN": f"127.0.0.1:{port}",
        "KMS_METRICS_LISTEN": "off",
        "KMS_TLS_NAMES": f"127.0.0.1,{HOST_OF_GUEST}",
        "KMS_DEVELOPMENT_ROOTS": str(roots),
        "KMS_KDS_URLS": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder=folder, port=port, settings=settings)
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kms", "serve"],
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            server.wait(lambda: len(server.identity) > 0)
            yield server
        finally:
            process.terminate()
            process.wait()


def _environment(settings: Mapping[str, str]) -> Mapping[str, str]:
    # Settings of a real installation must not reach the demo, nor the other way round.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KMS_")}
    return inherited | dict(settings)

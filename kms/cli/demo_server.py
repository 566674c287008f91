"""A real `kms serve`, as a process of its own, for as long as the demo lasts."""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import httpx2

from kms.encoding import from_base64
from kms.errors import ConfigurationError
from kms.strict_json import Fields, parse

_READY_WITHIN: Final = 45.0  # seconds; a loaded machine takes some for imports and migrations
_POLL: Final = 0.1
_STOP_WITHIN: Final = 10.0
_COMMAND_WITHIN: Final = 120.0
_ATTEMPTS: Final = 3
_LAST_LINES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that is ready. `identity` is its 32-byte KMS identity, `settings` its `KMS_…` variables."""

    url: str
    ca_file: Path
    identity: bytes
    process_id: int
    settings: Mapping[str, str] = field(repr=False)

    def run(self, *command: str) -> str:
        """Run a `kms` command beside the server, as its operator would, and give what it printed.

        Raises:
            ConfigurationError: it failed; what it said is there.

        """
        done = subprocess.run(  # noqa: S603 -- the demo's own words
            [sys.executable, "-m", "kms", *command],
            env=_environment(self.settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_WITHIN,
            check=False,
        )
        if done.returncode:
            raise ConfigurationError(f"kms {' '.join(command)}: status {done.returncode}", remedy=done.stderr)
        return done.stdout


@contextmanager
def run_server(
    folder: Path, *, policies: Path, development_roots: Path, challenge_seconds: int, kds_url: str | None
) -> Iterator[RunningServer]:
    """Run a server with the embedded database in `folder`, which it may write, and stop it whatever happens.

    `kds_url` is the key distribution service that it asks; None: nobody. A demo never asks AMD's.

    Raises:
        ConfigurationError: it did not become ready; the end of its log says why.

    """
    data, log = folder / "data", folder / "server.log"
    for attempt in range(1, _ATTEMPTS + 1):
        port = _free_port()
        settings = {
            "KMS_DATA_DIR": str(data),
            "KMS_LISTEN": f"127.0.0.1:{port}",
            "KMS_METRICS_LISTEN": "off",
            "KMS_POLICY_DIR": str(policies),
            "KMS_DEVELOPMENT_ROOTS": str(development_roots),
            "KMS_CHALLENGE_TTL": str(challenge_seconds),
            "KMS_KDS_URLS": kds_url or "none",
        }
        with log.open("ab") as output, _process(settings, output) as process:
            url, ca_file = f"https://127.0.0.1:{port}", data / "tls" / "ca.pem"
            if _wait_until_ready(process, url, ca_file):
                yield RunningServer(
                    url=url,
                    ca_file=ca_file,
                    identity=_identity(url, ca_file),
                    process_id=process.pid,
                    settings=settings,
                )
                return
        # Between the choice of the port and its use somebody else can take it.
        if attempt == _ATTEMPTS or b"cannot listen on" not in log.read_bytes():
            break
    raise ConfigurationError(
        "the demo's server did not become ready", remedy="the end of its log:\n" + _end_of(log)
    )


@contextmanager
def _process(settings: Mapping[str, str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kms", "serve"],
        env=_environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_WITHIN)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def _environment(settings: Mapping[str, str]) -> Mapping[str, str]:
    # Settings of a real installation must not reach the demo, nor the other way round. The simulated key
    # distribution service is on this machine, where no proxy finds it.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("KMS_") and not name.lower().endswith("_proxy")
    }
    return inherited | dict(settings)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, ca_file: Path) -> bool:
    end = time.monotonic() + _READY_WITHIN
    while process.poll() is None and time.monotonic() < end:
        if ca_file.exists():
            try:
                if _get(f"{url}/readyz", ca_file).status_code == httpx2.codes.OK:
                    return True
            except (httpx2.TransportError, OSError):
                pass  # not listening yet, or the CA's file is being written
        time.sleep(_POLL)
    return False


def _identity(url: str, ca_file: Path) -> bytes:
    """Ask who the KMS is. Only a demo may: a guest has it in its measured image."""
    fields = Fields(parse(_get(f"{url}/v1/identity", ca_file).content), "identity")
    return from_base64(fields.text("identity"))


def _get(url: str, ca_file: Path) -> httpx2.Response:
    context = ssl.create_default_context(cafile=str(ca_file))
    with httpx2.Client(verify=context, trust_env=False, timeout=5.0) as client:
        return client.get(url)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or "(empty)"

"""`kms guest fetch` whole: a real server, a SIMULATED configfs-tsm on FUSE, and an image's guest.toml.

The command runs in a process of its own, as in a guest; nothing in it is replaced.
"""

import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest

from kms.cli.demo_scene import COMPOSE
from kms.encoding import b64url, from_base64
from kms.guest import KeyClient
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.tsm_fuse import Faults
from kms.snp.product import Product
from tests.conformance.own_server import Server, environment
from tests.e2e.rack import Rack
from tests.simulated_tsm import needs_fuse, simulated_tsm

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_fuse]


@dataclass(frozen=True)
class Image:
    """What is baked into the guest's image, and what its host hands over."""

    folder: Path
    server: Server
    rack: Rack

    @property
    def tsm(self) -> Path:
        return self.folder / "tsm"

    @property
    def workload(self) -> Path:
        return self.folder / "compose.yaml"

    @property
    def document(self) -> Path:
        return self.folder / "app.json"

    def bake(self, identity: bytes, more: str = "") -> Path:
        path = self.folder / "guest.toml"
        path.write_text(f"""
            server = "{self.server.url}"
            ca = "{self.server.ca}"
            identity = "{b64url(identity)}"
            app_document = "{self.document}"
            workload = "{self.workload}"
            deadline = 50
            {more}
            [evidence]
            tsm = "{self.tsm}"
        """)
        path.chmod(0o644)
        return path

    def fetch(self, *arguments: str, faults: Faults | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run the command in the guest; nothing of it stays in configfs-tsm."""
        with simulated_tsm(self.tsm, self.rack.guest(1).machine, faults or Faults()) as tsm:
            ran = subprocess.run(
                [sys.executable, "-m", "kms", "guest", "fetch", *arguments],
                check=False,
                capture_output=True,
                env=environment({}),
                timeout=60,
            )
            assert tsm.entries == ()
        return ran


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("guest")
    made = datetime.now(UTC) - timedelta(days=30)
    rack = Rack(folder, AmdHierarchy.generate(Product.MILAN, now=made, rsa_bits=2048), chips=1)
    with Server(folder / "kms" / "data", rack.settings) as server:
        image = Image(folder, server, rack)
        image.document.write_bytes(rack.guest(1).document)
        image.workload.write_bytes(COMPOSE)
        yield image
    assert "Traceback" not in server.log_text()


@pytest.fixture(scope="module")
def identity(image: Image) -> bytes:
    trust = ssl.create_default_context(cafile=str(image.server.ca))
    answer = httpx2.get(f"{image.server.url}/v1/identity", verify=trust, trust_env=False, timeout=30)
    return from_base64(answer.json()["identity"])


@pytest.fixture(scope="module")
def right_key(image: Image, identity: bytes) -> bytes:
    """The disk key as the library fetches it, from the SIMULATED machine itself."""
    guest = image.rack.guest(1)
    client = KeyClient(image.server.url, ca_file=image.server.ca, identity=identity, source=guest)
    [key] = client.fetch([KeyRequest.parse("disk", "app")], app_document=guest.document).keys
    return key.secret


def error_of(ran: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(ran.stdout)["error"]
    return error


def test_what_the_image_says_is_enough(image: Image, identity: bytes, right_key: bytes) -> None:
    config = str(image.bake(identity))
    ran = image.fetch("--config", config, "--key", "disk")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, right_key, b"")


def test_the_kernel_is_busy_for_a_moment(image: Image, identity: bytes, right_key: bytes) -> None:
    config = str(image.bake(identity))
    ran = image.fetch("--config", config, "--key", "disk", faults=Faults(busy_for=1.0))
    assert (ran.returncode, ran.stdout) == (0, right_key)


@pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="systemd-creds is not installed")
def test_a_credential_that_systemd_creds_reads(image: Image, identity: bytes, right_key: bytes) -> None:
    with TemporaryDirectory(dir="/dev/shm") as memory:
        store = Path(memory) / "credstore"
        place = ("--credential", "disk", "--credential-dir", str(store))
        ran = image.fetch("--config", str(image.bake(identity)), "--key", "disk", *place)
        assert (ran.returncode, ran.stdout) == (0, b"")
        shown = subprocess.run(
            ["systemd-creds", "cat", "disk"],
            env={"CREDENTIALS_DIRECTORY": str(store), "PATH": os.environ["PATH"]},
            capture_output=True,
            check=True,
        )
        assert shown.stdout == right_key


@pytest.mark.skipif(shutil.which("keyctl") is None, reason="keyctl is not installed")
def test_a_keyring_that_keyctl_reads(image: Image, identity: bytes, right_key: bytes) -> None:
    description = f"attested-kms-test-{secrets.token_hex(8)}"
    place = ("--keyring", description, "--keyring-timeout", "60", "--json")
    ran = image.fetch("--config", str(image.bake(identity)), "--key", "disk", *place)
    assert ran.returncode == 0, ran.stderr
    assert b64url(right_key).encode() not in ran.stdout
    serial = str(json.loads(ran.stdout)["keyring_key"])
    try:
        shown = subprocess.run(["keyctl", "pipe", serial], capture_output=True, check=True)
        assert shown.stdout == right_key
    finally:
        subprocess.run(["keyctl", "unlink", serial, "@u"], check=True, capture_output=True)


def test_an_impostor_behind_the_same_ca(image: Image) -> None:
    """The server has another identity than the image pins: its keys are not taken."""
    other = Identity.from_prf(b"\x22" * 64).public_key
    ran = image.fetch("--config", str(image.bake(other)), "--key", "disk", "--json")
    assert ran.returncode == 1
    # Its document names no KMS; so the server releases, and the guest refuses the answer.
    assert error_of(ran)["reason"] == "identity-mismatch"


def test_another_workload_than_the_document_names(image: Image, identity: bytes) -> None:
    config = str(image.bake(identity))
    other = image.folder / "other.yaml"
    other.write_bytes(COMPOSE + b"# and a miner\n")
    ran = image.fetch("--config", config, "--key", "disk", "--json", "--workload", str(other))
    assert ran.returncode == 1
    assert error_of(ran)["reason"] == "compose-hash-differs"


def test_another_document_than_the_launch_committed_to(image: Image, identity: bytes) -> None:
    config = str(image.bake(identity))
    other = image.folder / "other.json"
    other.write_bytes(image.rack.guest(2).document)
    ran = image.fetch("--config", config, "--key", "disk", "--json", "--app-document", str(other))
    assert ran.returncode == 1
    assert error_of(ran)["reason"] == "host-data-mismatch"


def test_the_servers_no(image: Image, identity: bytes) -> None:
    ran = image.fetch("--config", str(image.bake(identity)), "--key", "custom:not/allowed", "--json")
    assert ran.returncode == 1
    assert error_of(ran)["code"] == "policy-denied"


def test_a_machine_of_another_kind(image: Image, identity: bytes) -> None:
    ran = image.fetch(
        "--config", str(image.bake(identity)), "--key", "disk", "--json", faults=Faults(provider="tdx_guest")
    )
    assert ran.returncode == 2
    assert error_of(ran)["reason"] == "tsm-provider"

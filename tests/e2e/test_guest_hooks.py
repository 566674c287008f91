"""The guest side as it is in an initrd: a tree that holds nothing else, in which its commands run.

`kms guest hooks copy` is what the hooks of initramfs-tools and dracut call. chroot(2) takes what is not in
the tree away: a module that a command imports late, or a library that the loader wants, would be missed.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kms.guest.initrd import kms_command
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.snp.product import Product
from tests.conformance.own_server import Server, environment
from tests.e2e.rack import Guest, Rack
from tests.simulated_tsm import needs_fuse, simulated_tsm

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_fuse]

WITHIN = 60.0  # seconds, for a command
_MOST = 120 << 20  # bytes before compression: Debian's Python makes it half of that


@dataclass(frozen=True, slots=True)
class Initrd:
    """A tree made by `kms guest hooks copy`, and what that printed."""

    root: Path
    printed: str

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run `kms` in it, with the environment that an initrd has."""
        done = subprocess.run(
            [
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin",
                "chroot",
                str(self.root),
                str(kms_command()),
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Initrd:
    root = tmp_path_factory.mktemp("initrd")
    command = [sys.executable, "-m", "kms", "guest", "hooks", "copy", str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment({}))
    (root / "run").mkdir()
    return Initrd(root, done.stdout)


@dataclass(frozen=True, slots=True)
class Kms:
    """A running server, and a guest that its policy allows."""

    server: Server
    guest: Guest
    identity: str


@pytest.fixture(scope="module")
def kms(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[Kms]:
    folder, hierarchy = tmp_path_factory.mktemp("hooks"), simulated_hierarchies[Product.MILAN]
    rack = Rack(folder, hierarchy, chips=1)
    guest = rack.guest(0)
    with (
        SimulatedKds([hierarchy], [guest.machine.guest.chip]) as kds,
        Server(folder / "data", {**rack.settings, "KMS_KDS_URLS": kds.url}) as server,
    ):
        with server.client().http as http:
            identity = http.get("/v1/identity").json()["identity"]
        yield Kms(server, guest, identity)


@pytest.fixture
def configured(initrd: Initrd, kms: Kms) -> Initrd:
    """The tree with the files that an image's builder puts into /etc/attested-kms."""
    folder = initrd.root / "etc" / "attested-kms"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.pem").write_bytes(kms.server.ca.read_bytes())
    (folder / "app.json").write_bytes(kms.guest.document)
    (folder / "guest.toml").write_text(
        f'server = "{kms.server.url}"\n'
        'ca = "/etc/attested-kms/ca.pem"\n'
        f'identity = "{kms.identity}"\n'
        'app_document = "/etc/attested-kms/app.json"\n'
        '[evidence]\ninterface = "tsm"\ntsm = "/run/tsm"\n'
    )
    return initrd


def test_it_says_how_much_it_is_and_is_no_more_than_it_should_be(initrd: Initrd) -> None:
    size = sum(path.lstat().st_size for path in initrd.root.rglob("*") if path.is_file())
    assert "MiB before compression" in initrd.printed
    assert size < _MOST


@pytest.mark.parametrize("command", ["fetch", "unlock", "agent", "doctor", "serve", "env"])
def test_every_command_starts(initrd: Initrd, command: str) -> None:
    status, output, errors = initrd.run("guest", command, "--help")
    assert (status, errors) == (0, "")
    assert f"kms guest {command}" in output


def test_a_key_is_fetched(configured: Initrd, kms: Kms) -> None:
    with simulated_tsm(configured.root / "run" / "tsm", kms.guest.machine) as tsm:
        status, output, errors = configured.run("guest", "fetch", "--key", "disk", "--json")
        assert tsm.entries == ()
    assert (status, errors) == (0, "")
    [key] = json.loads(output)["keys"]
    assert key["name"] == "disk"


def test_a_refusal_is_explained(configured: Initrd, kms: Kms) -> None:
    with simulated_tsm(configured.root / "run" / "tsm", kms.guest.machine):
        status, _, errors = configured.run("guest", "fetch", "--key", "custom:not/its", "--json")
    assert status == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("guest", "fetch", "--key", "disk", "--server", "https://kms.example:1", "--deadline", "2"),
        ("guest", "fetch", "--key", "disk", "--server", "https://kms.münchen.example:1", "--deadline", "2"),
        ("guest", "fetch", "--key", "disk", "--ca", "/etc/attested-kms/app.json"),
        ("guest", "fetch", "--key", "disk", "--evidence", "device"),
        ("guest", "unlock", "--all"),
    ],
)
def test_what_goes_wrong_is_said_and_not_thrown(
    configured: Initrd, kms: Kms, arguments: tuple[str, ...]
) -> None:
    with simulated_tsm(configured.root / "run" / "tsm", kms.guest.machine):
        status, output, errors = configured.run(*arguments)
    assert status in (1, 2)
    assert output + errors
    assert "Traceback" not in errors


def test_the_doctor_examines_it(configured: Initrd, kms: Kms) -> None:
    with simulated_tsm(configured.root / "run" / "tsm", kms.guest.machine):
        status, output, errors = configured.run("guest", "doctor", "--json")
    assert (status in (0, 1), errors) == (True, "")
    assert json.loads(output)

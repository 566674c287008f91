"""A disk's life, with the real `kms guest unlock` and `rekey`, real servers, and the real `cryptsetup`.

But for one thing: where tests run there may be no device mapper, so what stands before `cryptsetup` on PATH
hands everything to the real program and turns opening into `open --test-passphrase`, with the same header and
key; it writes down that it "opened", and its `dmsetup` says so. The mapping itself, and a file system on it,
are tried in a virtual machine (tests/e2e/test_vm.py).
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kms.encoding import b64url
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server, environment
from tests.e2e.guest_client_world import GuestClientWorld, guest_client_world
from tests.servers.vault import wait_until
from tests.simulated_tsm import needs_fuse
from tests.unit.guest.luks.samples import edited

SHIM = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path

opened, real = Path(__file__).parent / "opened", {shutil.which("cryptsetup")!r}
program, (command, *options) = Path(sys.argv[0]).name, sys.argv[1:]
with (Path(__file__).parent / "command-lines").open("a") as log:
    print(program, command, *options, file=log)
if program == "dmsetup":
    tables = [f"{{each.name}}: {{each.read_text()}}" for each in opened.iterdir()]
    sys.exit(print("\\n".join(tables) or "No devices found"))
if command == "close":
    sys.exit((opened / options[0]).unlink())
if command != "open" or "--test-passphrase" in options:
    os.execv(real, [real, command, *options])
*rest, header, device, name = options
words = [real, command, "--test-passphrase", *rest, header, device]
status = subprocess.run(words, close_fds=False).returncode
if status == 0:
    words = [real, "luksDump", "--dump-json-metadata", header]
    dump = subprocess.run(words, capture_output=True, close_fds=False)
    segment = json.loads(dump.stdout)["segments"]["0"]
    number = os.stat(device).st_rdev
    place = f"{{os.major(number)}}:{{os.minor(number)}} {{int(segment['offset']) // 512}}"
    (opened / name).write_text(f"0 100 crypt {{segment['encryption']}} :64:logon:cryptsetup 0 {{place}}")
sys.exit(status)
"""
SIZE = 24 << 20  # bytes of a disk


pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    needs_fuse,
    pytest.mark.skipif(shutil.which("cryptsetup") is None, reason="takes cryptsetup"),
]


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest's machine with one blank disk: a loop device, and the file behind it."""

    folder: Path
    device: str
    file: Path
    world: GuestClientWorld

    @property
    def opened(self) -> list[str]:
        return [each.name for each in (self.folder / "opened").iterdir()]

    def restart(self) -> None:
        """Boot again: nothing is open."""
        for each in (self.folder / "opened").iterdir():
            each.unlink()

    def kms(self, *words: str, server: str | None = None, status: int = 0) -> dict[str, Any]:
        """Run `kms guest`; it must end with this status. Give its answer, or its error."""
        world, config = self.world, self.folder / "guest.toml"
        config.write_text(
            f'server = "{server or world.genuine.url}"\nca = "{world.ca}"\nidentity = "{b64url(world.pin)}"\n'
            f'app_document = "{world.document}"\ndeadline = 60\n[evidence]\ntsm = "{world.tsm}"\n'
            f'[volumes.data]\ndevice = "{self.device}"\nformat = "blank"\n'
        )
        done = subprocess.run(
            [sys.executable, "-m", "kms", "guest", *words, "--config", str(config), "--json"],
            env={**environment({}), "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            timeout=120,
            check=False,
        )
        with (self.folder / "printed").open("ab") as log:
            log.write(done.stdout + done.stderr)
        assert done.returncode == status, (words, done)
        assert b"Traceback" not in done.stderr
        assert world.left_behind() == []
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def boot(self) -> dict[str, Any]:
        """Boot, and open what the configuration names."""
        self.restart()
        [volume] = self.kms("unlock", "--all")["volumes"]
        assert self.opened == ["data"]
        assert volume["warning"] is None
        assert isinstance(volume, dict)
        return volume

    def refuses(self, reason: str, *, server: str | None = None) -> None:
        """Boot, and keep the disk shut and as it is."""
        self.restart()
        before = self.file.read_bytes()
        error = self.kms("unlock", "--all", server=server, status=1)["error"]
        assert error["reason"] == reason
        assert self.opened == []
        assert self.file.read_bytes() == before

    def opens_with(self, key: bytes) -> bool:
        """Say whether a key opens what is on the disk, as cryptsetup sees it."""
        command = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", str(self.file)]
        return subprocess.run(command, input=key, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[GuestClientWorld]:
    with guest_client_world(tmp_path_factory.mktemp("world"), simulated_hierarchies) as world:
        yield world
    assert "Traceback" not in world.genuine.log_text()


@pytest.fixture
def machine(tmp_path: Path, world: GuestClientWorld) -> Iterator[Machine]:
    (tmp_path / "opened").mkdir()
    for program in ("cryptsetup", "dmsetup"):
        (tmp_path / program).write_text(SHIM)
        (tmp_path / program).chmod(0o755)
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, SIZE)
    attached = subprocess.run(
        ["losetup", "--find", "--show", str(disk)], capture_output=True, text=True, check=False
    )
    if attached.returncode != 0:
        pytest.skip(f"takes a loop device: {attached.stderr}")
    device = attached.stdout.strip()
    try:
        yield Machine(tmp_path, device, disk, world)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_life(machine: Machine) -> None:
    """First boot, second boot, rotation, the end of the first epoch; and no key anywhere but in memory."""
    world = machine.world
    first = machine.boot()
    assert (first["epoch"], first["formatted"], first["rekeyed_from"]) == (1, True, None)
    old = world.key()
    assert machine.opens_with(old)

    assert machine.kms("unlock", "--all")["volumes"][0]["already_open"] is True
    second = machine.boot()
    assert (second["epoch"], second["formatted"], second["rekeyed_from"]) == (1, False, None)

    rotate(world)
    third = machine.boot()
    assert (third["epoch"], third["rekeyed_from"]) == (2, 1)
    new = world.key()
    assert new != old
    assert (machine.opens_with(old), machine.opens_with(new)) == (False, True)

    command(world.genuine, "keys", "retire", "1", "--force")
    fourth = machine.boot()
    assert (fourth["epoch"], fourth["rekeyed_from"]) == (2, None)
    answer = machine.kms("rekey", machine.device)
    assert answer == {"device": machine.device, "epoch": 2, "rekeyed_from": None}

    searched = dict(written(machine.folder, world.folder))
    assert {"disk", "printed", "command-lines", "genuine/data.log"} <= set(searched)
    for key in (old, new):
        for form in forms(key):
            assert [name for name, content in searched.items() if form in content] == []


def test_rekeying_by_hand(machine: Machine) -> None:
    """Without rotation at boot, and with a device and a name instead of a configuration's."""
    before = machine.boot()["epoch"]
    rotate(machine.world)
    machine.restart()
    [volume] = machine.kms("unlock", machine.device, "other", "--no-rotate")["volumes"]
    assert (volume["name"], volume["epoch"], machine.opened) == ("other", before, ["other"])
    answer = machine.kms("rekey", machine.device)
    assert (answer["rekeyed_from"], answer["epoch"]) == (before, before + 1)
    assert machine.opens_with(machine.world.key())


def test_an_administrator_at_the_same_moment(machine: Machine) -> None:
    """A token is added to the disk while its key slots are moved to a newer key in memory."""
    before = machine.boot()["epoch"]
    old = machine.world.key()
    rotate(machine.world)
    words = [shutil.which("cryptsetup"), "token", "add", "--key-description", "recovery", machine.device]
    adds = (
        f"import subprocess, sys\nif sys.argv[1] == 'luksAddKey':\n    subprocess.run({words}, check=True)\n"
    )
    program = machine.folder / "cryptsetup"
    program.write_text(SHIM.replace("\n", f"\n{adds}", 1))
    machine.restart()
    [volume] = machine.kms("unlock", "--all")["volumes"]
    assert (volume["epoch"], machine.opened) == (before, ["data"])
    assert "somebody changed the header" in volume["warning"]
    error = machine.kms("rekey", machine.device, status=2)["error"]
    assert (error["code"], error["reason"]) == ("disk-failed", "disk-changed")
    assert machine.opens_with(old)

    program.write_text(SHIM)
    assert machine.boot()["rekeyed_from"] == before
    assert (machine.opens_with(old), machine.opens_with(machine.world.key())) == (False, True)
    dump = subprocess.run(["cryptsetup", "luksDump", str(machine.file)], capture_output=True, check=True)
    assert dump.stdout.count(b"luks2-keyring") == 2


def test_a_blank_disk_is_not_formatted_unless_that_was_said(machine: Machine) -> None:
    error = machine.kms("unlock", machine.device, "data", status=1)["error"]
    assert (error["code"], error["reason"]) == ("disk-refused", "not-luks")
    assert not any(machine.file.read_bytes())


def test_an_impostor_of_the_same_ca(machine: Machine) -> None:
    machine.boot()
    machine.refuses("identity-mismatch", server=machine.world.impostor.url)


def test_an_impostor_on_a_blank_disk(machine: Machine) -> None:
    """A key that an impostor knows must not become the key of a new disk."""
    machine.refuses("identity-mismatch", server=machine.world.impostor.url)


def test_another_guests_keys(machine: Machine) -> None:
    machine.boot()
    with replaying(machine.world):
        machine.world.replay_another_guests_answer(Suite.HPKE_MLKEM768X25519)
        machine.refuses("cannot-open", server=machine.world.relay_url)


def test_yesterdays_answer(machine: Machine) -> None:
    """What the KMS once answered to this very machine, for this very disk."""
    world = machine.world
    machine.boot()
    machine.restart()
    machine.kms("unlock", "--all", server=world.relay_url)
    assert machine.opened == ["data"]
    with replaying(world):
        world.relay.replayed = world.relay.released[-1]
        machine.refuses("cannot-open", server=world.relay_url)


def test_a_null_cipher(machine: Machine) -> None:
    """The host writes a header that opens with any key: nobody is even asked."""
    machine.boot()
    asked = len(machine.world.relay.released)
    area = machine.file.read_bytes()[: 16 << 20]
    null = edited(area, lambda d: d["segments"]["0"].update(encryption="cipher_null-ecb"))
    with Path(machine.device).open("r+b") as device:
        device.write(null)
        os.fsync(device.fileno())
    machine.refuses("cipher-not-allowed", server=machine.world.relay_url)
    assert len(machine.world.relay.released) == asked


@contextmanager
def replaying(world: GuestClientWorld) -> Iterator[None]:
    try:
        yield
    finally:
        world.relay.replayed = None


def rotate(world: GuestClientWorld) -> None:
    """Make a new epoch, and wait until the server says so. The impostor keeps up."""
    for server in (world.genuine, world.impostor):
        with server.client().http as http:
            rotated = partial(_others_than, http, http.get("/v1/identity").json()["epochs"])
            command(server, "keys", "rotate")
            wait_until(rotated, within=60)


def _others_than(http: httpx2.Client, epochs: object) -> bool:
    return bool(http.get("/v1/identity").json()["epochs"] != epochs)


def command(server: Server, *words: str) -> None:
    """Run a command beside a server."""
    done = subprocess.run(
        [sys.executable, "-m", "kms", *words],
        cwd=server.data_dir.parent,
        env=environment(server.settings),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done


def written(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Give all that was written, on both sides."""
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_relative_to(folder / "tsm"):
                yield str(file.relative_to(folder)), file.read_bytes()


def forms(key: bytes) -> list[bytes]:
    """Give a key as it is, and as programs write it."""
    texts = (key.hex(), key.hex().upper(), b64url(key), base64.b64encode(key).decode(), repr(key)[2:-1])
    return [key, *(text.encode() for text in texts)]

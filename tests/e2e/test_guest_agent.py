"""`kms guest agent` as systemd uses it: a real server, a SIMULATED kernel's evidence, systemd's own programs.

There is no device mapper here: systemd-cryptsetup connects, reads the key, and ends before it uses it. That
the key opens the volume, cryptsetup says.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import environment
from tests.e2e.local_guest import WITHIN, LocalGuest, command, local_guest
from tests.local_peers import SOMEBODY, connect, in_child, open_folder, read_all
from tests.simulated_tsm import needs_fuse

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_fuse]

SYSTEMD: Final = ("/lib/systemd/systemd-cryptsetup", "/usr/bin/systemd-cryptsetup")
SYSTEMD_CRYPTSETUP: Final = next(filter(os.path.exists, SYSTEMD), None)
needs_cryptsetup: Final = pytest.mark.skipif(
    shutil.which("cryptsetup", path="/usr/sbin:/sbin:/usr/bin") is None or SYSTEMD_CRYPTSETUP is None,
    reason="cryptsetup or systemd-cryptsetup is not installed",
)
TOKEN: Final = '{"type":"attested-kms","keyslots":["0"],"epoch":1,"key":"disk@app"}'
TABLES: Final = """
[volumes.data]
device = "{folder}/disk"
[volumes.blank]
device = "{folder}/blank"
[volumes.lost]
device = "{folder}/none"
[[serve.allow]]
key = "custom:db/main"
credential = "db"
"""


@pytest.fixture(scope="module")
def guest(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[LocalGuest]:
    hierarchy = simulated_hierarchies[Product.MILAN]
    with open_folder() as folder, local_guest(tmp_path_factory.mktemp("agent"), folder, hierarchy) as made:
        made.configure(TABLES.format(folder=folder))
        (folder / "blank").write_bytes(bytes(1 << 20))
        yield made


@pytest.fixture(scope="module")
def disk(guest: LocalGuest) -> bytes:
    """Make the volume `data`, with a token of ours, and give its key."""
    key, disk = guest.fetch("disk"), guest.folder / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    cryptsetup("luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", disk, "-", given=key)
    cryptsetup("token", "import", "--json-file", "-", disk, given=TOKEN.encode())
    return key


def cryptsetup(*words: str | Path, given: bytes) -> None:
    subprocess.run(
        ["/usr/sbin/cryptsetup", *words], input=given, check=True, timeout=WITHIN, capture_output=True
    )


def asked(path: Path, name: str) -> bytes:
    """Read what the agent gives to an end of this name, as systemd does."""
    with connect(path, f"{os.getpid():x}{name}".encode()) as connection:
        return read_all(connection)


def attach(volume: str, device: Path, key_file: Path) -> None:
    """Let systemd's own program try to open a volume."""
    assert SYSTEMD_CRYPTSETUP
    done = subprocess.run(
        [SYSTEMD_CRYPTSETUP, "attach", volume, device, key_file, "luks,headless=true"],
        env=environment({"SYSTEMD_LOG_TARGET": "console"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    if done.returncode == 0:  # there is a device mapper after all
        subprocess.run([SYSTEMD_CRYPTSETUP, "detach", volume], check=True, timeout=WITHIN)


@needs_cryptsetup
class TestVolumes:
    def test_it_reads_the_key_of_the_epoch_in_the_header(self, guest: LocalGuest, disk: bytes) -> None:
        with guest.service("agent") as agent:
            path = guest.folder / "agent.sock"
            assert asked(path, "/cryptsetup/data") == disk
            cryptsetup("open", "--test-passphrase", "--key-file", "-", guest.folder / "disk", given=disk)
            assert asked(path, "/cryptsetup/other") == b""
            assert disk.hex() not in agent.log.read_text()
        given, refused = agent.lines(2)
        assert "key given" in given
        assert "volume-not-configured" in refused

    def test_systemd_cryptsetup_reads_it(self, guest: LocalGuest, disk: bytes) -> None:
        """Its options are those of the guide: nobody is asked for a passphrase, which a host could type."""
        with guest.service("agent") as agent:
            attach("data", guest.folder / "disk", guest.folder / "agent.sock")
            attach("other", guest.folder / "disk", guest.folder / "agent.sock")
        given, refused = agent.lines(2)
        assert "key given" in given
        assert "/cryptsetup/data" in given
        assert "volume-not-configured" in refused
        assert "/cryptsetup/other" in refused

    def test_a_disk_that_must_not_be_opened_gets_no_key(self, guest: LocalGuest) -> None:
        with guest.service("agent") as agent:
            assert asked(guest.folder / "agent.sock", "/cryptsetup/blank") == b""
            assert asked(guest.folder / "agent.sock", "/cryptsetup/lost") == b""
        assert len(agent.lines(2)) == 2
        assert all("no key" in line for line in agent.lines(2))


class TestSocket:
    def test_systemd_starts_it_when_somebody_comes_and_it_ends_when_nobody_does(
        self, guest: LocalGuest
    ) -> None:
        path = guest.folder / "activated.sock"
        with guest.activated("agent", path, 0o600, "--idle", "0.5") as agent:
            first = asked(path, "/unit/db.service/db")
            assert first == guest.fetch("custom:db/main")
            assert "key given" in agent.line_with("/unit/db.service/db")
            assert agent.process.wait(WITHIN) == 0

    def test_the_name_of_a_volume_is_no_proof(self, guest: LocalGuest) -> None:
        """Whoever could connect, because a unit gave the socket another mode, is asked for by the kernel."""
        path = guest.folder / "open.sock"

        def ask() -> None:
            os._exit(0 if asked(path, "/unit/db.service/db") == b"" else 3)

        with guest.activated("agent", path, 0o666) as agent:
            assert in_child(ask, uid=SOMEBODY) == 0
            assert agent.line_with("peer-not-root")
            assert len(asked(path, "/unit/db.service/db")) == 32

    def test_nobody_else_comes_near_the_socket_that_it_makes(self, guest: LocalGuest) -> None:
        with guest.service("agent"):
            path = guest.folder / "agent.sock"
            assert path.stat().st_mode & 0o777 == 0o600
            assert in_child(lambda: connect(path).close(), uid=SOMEBODY) == 1

    def test_a_server_that_is_gone_gives_nothing_and_says_so(self, guest: LocalGuest) -> None:
        with guest.service("agent", "--server", "https://127.0.0.1:9", "--deadline", "1") as agent:
            assert asked(guest.folder / "agent.sock", "/unit/db.service/db") == b""
        [line] = agent.lines(1)
        assert "server-unreachable" in line

    def test_it_leaves_no_core(self, guest: LocalGuest) -> None:
        with guest.service("agent") as agent:
            limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
        [line] = [each for each in limits.splitlines() if each.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]


class TestWrongUse:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ((), "--listen PATH"),
            (("--listen", "/nowhere/at/all"), "/nowhere/at"),
            (("--listen", "{folder}/x", "--idle", "5"), "--idle"),
        ],
    )
    def test_it_says_what_is_missing(self, guest: LocalGuest, options: tuple[str, ...], told: str) -> None:
        words = [each.format(folder=guest.folder) for each in options]
        done = run_agent(guest, *words)
        assert done.returncode == 2
        assert told in done.stderr

    def test_a_configuration_that_gives_nothing_is_one_too_few(self, guest: LocalGuest) -> None:
        empty = guest.folder / "empty.toml"
        lines = guest.config.read_text().split("[volumes.data]")[0]
        empty.write_text(lines)
        done = run_agent(guest, "--config", str(empty), "--listen", f"{guest.folder}/x")
        assert done.returncode == 2
        assert "nothing to give" in done.stderr


def run_agent(guest: LocalGuest, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("agent", "--config", guest.config, *options),
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )

"""`kms guest serve`, and docs/guides/containers.md: what the page shows is what is printed.

A real server, evidence from a SIMULATED kernel, and real processes of several users with curl. There is no
container engine: `docker` is a stand-in here that gives the command what counts, which is a user of its own,
no network, and the socket where the page says (in namespaces of its own). In place of `systemctl`, systemd's
own program listens and passes the socket on.
"""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from kms.encoding import from_base64
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.local_guest import WITHIN, LocalGuest, Service, local_guest
from tests.e2e.terminal import Terminal
from tests.e2e.test_walkthrough import Step, matches, steps
from tests.local_peers import SOMEBODY, open_folder
from tests.simulated_tsm import needs_fuse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    needs_fuse,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

PAGE: Final = Path(__file__).parents[2] / "docs" / "guides" / "containers.md"
LINES_TO_COPY: Final = 20
APP_DOCUMENT: Final = "/sys/firmware/qemu_fw_cfg/by_name/opt/attested-kms/app-document/raw"
# Of `docker run` as the page has it. There is no image: the command is this machine's.
STAND_IN: Final = """#!/bin/sh
set -e
[ "$1 $2 $3 $5 $6 $7 $9" = "run --rm --user --network none --volume app" ]
user=$4 socket=${8%:*}
[ "${8#*:}" = /run/keys.sock ]
shift 9
exec unshare --mount --net sh -c '
mount -t tmpfs -o mode=755 none /run
: > /run/keys.sock
mount --bind "$1" /run/keys.sock
user=$2; shift 2
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"' sh "$socket" "$user" "$@"
"""
ALLOWED: Final = """
[[serve.allow]]
key = "custom:db/main"
uids = [{uid}]
gids = [70001]
[[serve.allow]]
key = "tls"
uids = [{uid}]
"""


@pytest.fixture(scope="module")
def guest(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Iterator[LocalGuest]:
    hierarchy = simulated_hierarchies[Product.MILAN]
    with open_folder() as folder, local_guest(tmp_path_factory.mktemp("serve"), folder, hierarchy) as made:
        made.configure(ALLOWED.format(uid=SOMEBODY))
        yield made


@pytest.fixture
def sidecar(guest: LocalGuest) -> Iterator[Service]:
    with guest.service("serve", "--keep", "3600") as running:
        yield running


@contextmanager
def silent_server() -> Iterator[tuple[socket.socket, str]]:
    """Take connections and never say a word; give the listener, and the server's address."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(WITHIN)
        yield listener, f"https://127.0.0.1:{listener.getsockname()[1]}"


def connections_to(listener: socket.socket) -> int:
    """Count those that nobody has taken yet, and close them."""
    listener.setblocking(False)
    number = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return number
        number += 1


def curl(
    guest: LocalGuest, target: str, *options: str, uid: int, groups: tuple[int, ...] = ()
) -> tuple[int, bytes]:
    """Ask as another user; give the status and the body."""
    socket = str(guest.folder / "serve.sock")
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "-w",
            "%{stderr}%{http_code}",
            "--unix-socket",
            socket,
            *options,
            f"http://kms{target}",
        ],
        user=uid,
        group=uid,
        extra_groups=groups,
        capture_output=True,
        timeout=WITHIN,
        check=True,
        cwd="/",
    )
    return int(done.stderr), done.stdout


class TestPeers:
    def test_the_user_and_the_group_of_the_list_get_the_key_and_nobody_else(
        self, guest: LocalGuest, sidecar: Service
    ) -> None:
        key = guest.fetch("custom:db/main")
        assert curl(guest, "/keys/custom:db/main", uid=SOMEBODY) == (200, key)
        assert curl(guest, "/keys/custom:db/main", uid=SOMEBODY + 1, groups=(5, 70001)) == (200, key)
        for uid in (SOMEBODY + 1, 65534, 0):
            status, body = curl(guest, "/keys/custom:db/main", uid=uid)
            assert (status, json.loads(body)["code"]) == (403, "key-not-served")
        assert curl(guest, "/healthz", uid=SOMEBODY + 1)[0] == 200
        lines = sidecar.lines(5)  # none for /healthz
        assert [f"uid {SOMEBODY + 1}" in line for line in lines] == [False, True, True, False, False]
        assert key.hex() not in "".join(lines)

    def test_a_certificate_is_pem(self, guest: LocalGuest, sidecar: Service) -> None:
        status, body = curl(guest, "/keys/tls", uid=SOMEBODY)
        assert status == 200
        kinds = re.findall(rb"-----BEGIN ([A-Z ]+)-----", body)
        assert kinds == [b"PRIVATE KEY", *[b"CERTIFICATE"] * 3]
        status, body = curl(guest, "/keys/tls", "-H", "Accept: application/json", uid=SOMEBODY)
        assert len(json.loads(body)["certificate_chain"]) == 3
        assert len(sidecar.lines(2)) == 2

    def test_a_refusal_of_the_kms_comes_with_its_request(self, guest: LocalGuest) -> None:
        """The sidecar's list is not the policy: signing keys of other epochs, keys that no rule names."""
        with guest.service("serve", "--allow", f"custom:other=uid:{SOMEBODY}") as sidecar:
            status, body = curl(guest, "/keys/custom:other", uid=SOMEBODY)
            problem = json.loads(body)
            assert (status, problem["code"]) == (403, "policy-denied")
            assert problem["request_id"] in sidecar.lines(1)[0]
            assert problem["request_id"] in guest.server.log_text()
            status, body = curl(guest, "/keys/custom:db/main?epoch=9", uid=SOMEBODY)
            assert (status, json.loads(body)["code"]) == (403, "epoch-unavailable")

    def test_a_kms_that_is_gone_is_said_once_to_all_who_wait(self, guest: LocalGuest) -> None:
        with (
            silent_server() as (listener, url),
            guest.service("serve", "--server", url, "--deadline", "3", "--keep", "3600") as sidecar,
            ThreadPoolExecutor(4) as pool,
        ):
            asking = [pool.submit(curl, guest, "/keys/tls", uid=SOMEBODY) for _ in range(4)]
            answers = [each.result() for each in asking]
            assert {status for status, _ in answers} == {503}
            assert all("server-unreachable" in line for line in sidecar.lines(4))
            assert connections_to(listener) == 1

    def test_many_at_once_ask_the_hardware_once(self, guest: LocalGuest, sidecar: Service) -> None:
        before = releases(guest)
        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(curl, guest, "/keys/custom:db/main", uid=SOMEBODY) for _ in range(6)]
            assert {each.result()[0] for each in asking} == {200}
        assert releases(guest) == before + 1
        assert len(sidecar.lines(6)) == 6

    def test_a_terminated_service_finishes_what_it_has(self, guest: LocalGuest) -> None:
        with (
            ThreadPoolExecutor(1) as pool,
            silent_server() as (listener, url),
            guest.service("serve", "--server", url, "--deadline", "5") as sidecar,
        ):
            waiting = pool.submit(curl, guest, "/keys/tls", uid=SOMEBODY)
            connection, _ = listener.accept()
            with connection:
                sidecar.process.terminate()
                assert waiting.result()[0] == 503
            assert sidecar.process.wait(WITHIN) == 0


class TestWrongUse:
    @pytest.mark.parametrize(
        "allowed",
        [
            "disk",
            "disk=",
            "disk=1000",
            "disk=uid:-1",
            "disk=uid:4294967295",
            "disk#1=uid:1",
            "x=uid:1",
            "disk=user:1",
        ],
    )
    def test_a_list_that_is_none_is_refused(self, guest: LocalGuest, allowed: str) -> None:
        from kms.cli import run

        words = ["guest", "serve", "--config", str(guest.config), "--listen", f"{guest.folder}/x"]
        assert run([*words, "--allow", allowed]) == 2


def releases(guest: LocalGuest) -> int:
    return guest.server.log_text().count('"released"')


class TestPage:
    def test_the_page_is_what_happens(self, guest: LocalGuest) -> None:
        text = PAGE.read_text("utf-8")
        page = list(steps(text))
        [file] = [each for each in page if each.path is not None]
        typed = [each for each in page if each.command is not None]
        commands = re.findall(r"^(?:\$ |      ).+$", text, re.MULTILINE)
        assert len(file.shown) + len(commands) < LINES_TO_COPY

        folder = guest.folder / "page"
        folder.mkdir()
        folder.chmod(0o755)
        system = folder / "system"
        means = {
            "https://kms:8443": guest.server.url,
            "/etc/attested-kms/ca.pem": str(guest.server.ca),
            "/etc/attested-kms": str(guest.server.data_dir.parent),
            APP_DOCUMENT: str(guest.folder / "app.json"),
            "/run/attested-kms": str(folder),
            "docker run": f"{folder / 'docker'} run",
            "hooks install --systemd": f"hooks install --systemd --root {system}",
        }
        config = folder / "guest.toml"
        lines = "\n".join(file.shown)
        for written, meant in means.items():
            lines = lines.replace(written, meant)
        config.write_text(f'{lines}\n[evidence]\ntsm = "{guest.folder / "tsm"}"\n')
        (folder / "docker").write_text(STAND_IN)
        (folder / "docker").chmod(0o755)

        terminal = Terminal(folder=folder, settings={}, means=means)
        with ExitStack() as stack:
            for step in typed:
                assert step.command is not None
                if step.command.startswith("systemctl"):
                    assert step.command.endswith("attested-kms-keys.socket")
                    keys = LocalGuest(folder, guest.server, guest.tsm)
                    stack.enter_context(keys.activated("serve", folder / "keys.sock", 0o666))
                    continue
                printed = [line.replace(str(system), "") for line in terminal.type(step.command).printed]
                assert matches(step.shown, printed), f"{step.command}\n{printed}"
            assert shown_key(typed, terminal) == guest.fetch("custom:db/main")
            secret = shown_key(typed, terminal)
        assert secret.hex() not in (folder / "serve.log").read_text()


def shown_key(typed: list[Step], terminal: Terminal) -> bytes:
    [shown] = [json.loads(each.output) for each in terminal.transcript if '"value"' in each.output]
    assert len(terminal.transcript) == len(typed) - 1 == 4
    return from_base64(shown["value"])

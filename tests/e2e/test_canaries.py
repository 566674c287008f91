"""Secrets stay where they belong: not in logs, answers, the database, files, commands' output; a root in
Vault not even in the server's memory.

Every secret of a server is known here, for its root is: it lives through everything that happens to a server
(`tests.e2e.busy_life`), and then all that it wrote is searched for each of them, in every form of writing.
"""

import asyncio
import base64
import hashlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms.encoding import b64url
from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess, restore_provider
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.e2e.busy_life import STATUSES, Life
from tests.e2e.canaries import Canaries, forms
from tests.e2e.memory import memory_of
from tests.e2e.rack import KnownRoot, Rack
from tests.servers.vault import write_private

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=1)


@pytest.fixture(scope="module", params=["file", "vault-transit"])
def life(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rack: Rack
) -> Iterator[Life]:
    """A server that has seen everything, and still runs."""
    folder = tmp_path_factory.mktemp(request.param)
    begin = with_file if request.param == "file" else with_vault
    life = begin(folder, rack, request)
    try:
        life.live(commands=request.param == "file")
        yield life
    finally:
        life.end()


def with_file(folder: Path, rack: Rack, _: pytest.FixtureRequest) -> Life:
    """A root file of two epochs, under a passphrase."""
    passphrase = secrets.token_urlsafe(32).encode()
    write_private(folder / "passphrase", passphrase.decode())
    root = KnownRoot({epoch: secrets.token_bytes(32) for epoch in (1, 2)}, marked=True)
    uri = f"file:{folder / 'data' / 'root-key.json'}"
    access = RootAccess(mode=Mode.DEVELOPMENT, passphrase=lambda: passphrase)

    async def make() -> None:
        made = await restore_provider(uri, access, root.secrets, now=datetime.now(UTC))
        await made.close()

    asyncio.run(make())
    settings = {"KMS_ROOT_KEY": uri, "KMS_ROOT_KEY_PASSPHRASE_FILE": str(folder / "passphrase")}
    life = Life(folder, rack, settings, root)
    life.secrets["passphrase"] = passphrase
    return life


def with_vault(folder: Path, rack: Rack, request: pytest.FixtureRequest) -> Life:
    """A known key in Vault's transit engine."""
    vault = request.getfixturevalue("vault")
    root = KnownRoot({1: secrets.token_bytes(32)}, marked=False)
    uri = vault.fresh_uri("vault-transit")
    vault.import_hmac_key(uri.rpartition("/")[2], root.secrets[1])
    login = vault.token_login()
    settings = {
        "KMS_ROOT_KEY": uri,
        "KMS_VAULT_ADDR": vault.address,
        "KMS_VAULT_CA": str(vault.ca),
        "KMS_VAULT_TOKEN_FILE": str(login.path),
    }
    life = Life(folder, rack, settings, root)
    life.secrets["Vault's token"] = login.path.read_bytes().removeprefix(b"hvs.")
    return life


def test_nothing_that_was_written_holds_a_secret(life: Life) -> None:
    places = list(life.places())
    found = Canaries(life.secrets).find(places)
    size = sum(len(content) for _, content in places)
    print(f"{len(life.secrets)} secrets, {len(places)} places, {size / 1e6:.1f} MB: {len(found)} found")
    assert found == []


def test_it_was_a_whole_life(life: Life) -> None:
    """Else nothing would have been found in what did not happen."""
    assert {answer.status for answer in life.notebook.answers} == STATUSES
    log = life.server.log_text()
    assert '"exc_value":"a defect"' in log
    assert '"name":"derive"' in log
    kinds = {name.split()[1].partition("@")[0] for name in life.secrets if name.startswith("released ")}
    plain = {"disk", "env", "signing", "tls", "custom:db/main"}
    assert kinds == plain | {"dstack:disk", "dstack:env", "dstack:k256"}


def test_the_search_sees_the_log_answers_commands_and_the_database(life: Life) -> None:
    """A canary that was written everywhere on purpose, as what an operator says and as a setting's name."""
    found = Canaries({"planted": life.planted}).find(life.places())
    kinds = {each.place.split()[0] for each in found}
    assert kinds == {"log", "answer", "command", "file"}
    assert {"file kms.sqlite3", "file kms.sqlite3-wal"} & {each.place for each in found}


def test_of_a_token_its_hash_is_kept(life: Life) -> None:
    token = (life.folder / "alice.token").read_bytes()
    kept = hashlib.sha256(token).hexdigest().encode()
    assert any(kept in content for name, content in life.places() if name.startswith("file kms.sqlite3"))


def test_every_form_of_every_secret_would_be_found(tmp_path: Path) -> None:
    secret, file = secrets.token_bytes(64), tmp_path / "file"
    canaries = Canaries({"secret": secret})
    for begin in (0, 16, 48):
        for form, written in forms(secret[begin : begin + 16]):
            file.write_bytes(b"\x00before " + written + b" after\n")
            assert form in {found.form for found in canaries.find([("file", file.read_bytes())])}
    wholes = (
        *(base64.b64encode(secret), base64.urlsafe_b64encode(b"x" + secret), secret.hex().encode()),
        *(json.dumps({"key": repr(secret)}).encode(), str([secret]).encode(), secret[9:40]),
        # An envelope: JSON with a payload in base64url, which is JSON with keys in base64url.
        base64.urlsafe_b64encode(json.dumps({"value": b64url(secret)}).encode()),
    )
    for whole in wholes:
        assert canaries.find([("whole", whole)])
    assert canaries.find([("file", secrets.token_bytes(1 << 20))]) == []


def test_a_root_in_vault_is_never_in_the_servers_memory(life: Life) -> None:
    """The root of a file is: so the search finds what is there."""
    memory = list(memory_of(life.server.process.pid))
    found = Canaries({"root": life.root.secrets[1]}).find(memory)
    size = sum(len(content) for _, content in memory)
    print(f"the root in {size / 1e6:.0f} MB of memory: {Counter(each.form for each in found)}")
    assert bool(found) is life.root.marked
    # This one the server keeps for as long as it runs, wherever the root is.
    assert Canaries({"key of rows": life.secrets["key of rows"][:32]}).find(memory)


# Python may be where only root can read it, so each process becomes nobody when it runs already. That alone
# makes it undumpable (prctl(2), PR_SET_DUMPABLE), until it says otherwise.
NOBODY = """
import ctypes, os, sys
from kms.hardening import keep_memory_private
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""
WAIT = "print(flush=True); sys.stdin.read()\n"
LOOK = "open(f'/proc/{sys.argv[1]}/mem', 'rb').close()\n"


def test_nobody_but_root_reads_a_process_that_keeps_its_memory_private() -> None:
    """Not even another process of its own user."""
    if os.geteuid() != 0:
        pytest.skip("only root can run processes as somebody else")

    def seen(code: str) -> bool:
        started = [sys.executable, "-c", NOBODY + code + WAIT]
        with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            looking = [sys.executable, "-c", NOBODY + LOOK, str(process.pid)]
            looked = subprocess.run(looking, check=False, capture_output=True)
            process.communicate(b"")
        assert looked.returncode == 0 or b"PermissionError" in looked.stderr
        return looked.returncode == 0

    if not seen(""):
        pytest.skip("this system lets no process look into another of the same user")
    assert not seen("keep_memory_private()\n")


def test_a_server_that_crashes_leaves_no_core(tmp_path: Path, rack: Rack) -> None:
    """Though it was started with a limit that allows one."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this system lets no process leave a core file")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        crash = "import os; os.abort()"
        other = subprocess.Popen([sys.executable, "-c", crash], cwd=tmp_path)
        server = Server(tmp_path / "data", rack.settings)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    if not dumped(other):
        pytest.skip("this system keeps no core files")
    server.wait_until_ready()
    server.process.send_signal(signal.SIGABRT)
    assert not dumped(server.process)


def dumped(process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the end of a process that was aborted, and say whether the system wrote a core file."""
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGABRT
    return os.WCOREDUMP(status)

"""Two hundred guests boot while a real Vault is sealed, restarted or slow, ends our token, or loses the key.

The root is known (imported into Vault's transit engine), so for each answer it is known whether it is right.
A guest gets its own keys, or a 503 that says when to come again; after the outage the same server process
serves on. Guests wait a tenth of what they are told, to be done in a test's time.
"""

import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kms.rootkey.vault_access import AppRole, TokenFile
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.conformance.own_server import Server
from tests.e2e.canaries import Canaries
from tests.e2e.fleet import AT_ONCE, Fleet, booting
from tests.e2e.rack import Guest, KnownRoot, Rack
from tests.servers.vault import SlowProxy, VaultServer, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

GUESTS = 200
STRUCK_AFTER = 40  # releases: then the outage begins
LATE = 80  # guests that boot when the server knows of it


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=10)


@pytest.fixture(scope="module")
def guests(rack: Rack) -> list[Guest]:
    return [rack.guest(number) for number in range(GUESTS)]


@dataclass
class Imported:
    """A root in Vault, and its name there."""

    vault: VaultServer
    name: str = field(default_factory=lambda: f"root-{secrets.token_hex(4)}")
    root: KnownRoot = field(default_factory=lambda: KnownRoot({1: secrets.token_bytes(32)}, marked=False))

    def put(self, secret: bytes | None = None) -> None:
        self.vault.import_hmac_key(self.name, secret or self.root.secrets[1])

    def settings(self, rack: Rack, login: TokenFile | AppRole, address: str | None = None) -> dict[str, str]:
        named = {
            **rack.settings,
            "KMS_ROOT_KEY": f"vault-transit:transit/{self.name}",
            "KMS_VAULT_ADDR": address or self.vault.address,
            "KMS_VAULT_CA": str(self.vault.ca),
        }
        if isinstance(login, TokenFile):
            return {**named, "KMS_VAULT_TOKEN_FILE": str(login.path)}
        return {
            **named,
            "KMS_VAULT_ROLE_ID": login.role_id,
            "KMS_VAULT_SECRET_ID_FILE": str(login.secret_id_file),
        }


@pytest.fixture
def imported(vault: VaultServer) -> Imported:
    new = Imported(vault)
    new.put()
    return new


@contextmanager
def outage(
    what: str, server: Server, root: KnownRoot, guests: Sequence[Guest], *reasons: str
) -> Iterator[Fleet]:
    """Boot guests; what is done in this context is done to Vault once some of them have their keys.

    It leaves a Vault that is well, and then every guest gets its keys, of the server as it runs. `reasons`
    are what guests may be told meanwhile.
    """
    began = time.monotonic()
    with booting(server, root, guests, late=LATE) as fleet:
        wait_until(lambda: fleet.count(200) >= STRUCK_AFTER, within=60)
        yield fleet
        healed = time.monotonic()
        wait_until(lambda: fleet.readiness() == (200, ()))
        ready, released = time.monotonic() - healed, fleet.finish(*reasons)
        print(
            f"{what}: {fleet.figures()}; /readyz 200 {ready:.1f} s after the end,"
            f" {time.monotonic() - began:.1f} s in all"
        )
    assert released == len(guests)
    assert server.alive()
    assert "Traceback" not in server.log_text()


def test_guests_get_their_keys_or_a_503_whatever_happens_to_vault(
    vault: VaultServer, imported: Imported, rack: Rack, guests: list[Guest], tmp_path: Path
) -> None:
    login, root = vault.token_login(), imported.root
    with Server(tmp_path / "data", imported.settings(rack, login)) as server:
        with outage("sealed", server, root, guests, "root-key-sealed") as fleet:
            vault.seal()
            fleet.feel("root-key-sealed")
            vault.unseal()

        # A Vault that starts is not one thing: it does not listen, does not know itself, and is sealed.
        gone = ("root-key-unreachable", "root-key-failing", "root-key-sealed", "root-key-slow")
        with outage("stopped and started", server, root, guests, *gone) as fleet:
            vault.stop()
            fleet.feel("root-key-unreachable")
            vault.start()
            vault.unseal()

        expired = ("root-key-token-expired", "root-key-forbidden")
        with outage("token expired", server, root, guests, *expired) as fleet:
            # It takes the short one when it is refused with the long one.
            long = login.path.read_text()
            login.path.write_text(vault.token(ttl="2s", renewable=False))
            vault.root.auth.token.revoke(long)
            fleet.feel("root-key-token-expired")
            login.path.write_text(vault.token())

        lose_the_key(server, imported, guests)


def lose_the_key(server: Server, imported: Imported, guests: Sequence[Guest]) -> None:
    """Delete the key in the middle, and make another of its name: nobody gets a key of that one."""
    vault, root, began = imported.vault, imported.root, time.monotonic()
    with booting(server, root, guests, late=LATE, tries=2) as fleet:
        wait_until(lambda: fleet.count(200) >= STRUCK_AFTER, within=60)
        vault.delete_key(imported.name)
        imported.put(secrets.token_bytes(32))
        fleet.feel("root-key-changed")
        # Failing: it was gone when Vault was asked, and there when the server looked for it.
        meanwhile = ("root-key-missing", "root-key-failing", "root-key-changed")
        assert STRUCK_AFTER <= fleet.finish(*meanwhile) <= len(guests) - LATE
        print(f"deleted and made again: {fleet.figures()}; {time.monotonic() - began:.1f} s in all")

    vault.delete_key(imported.name)
    with booting(server, root, guests[:AT_ONCE], late=AT_ONCE, tries=1) as fleet:
        wait_until(lambda: fleet.readiness() == (503, ("root-key-missing",)))
        assert fleet.finish("root-key-missing") == 0
        print(f"gone: {fleet.figures()}")

    imported.put()
    with booting(server, root, guests[:AT_ONCE], late=AT_ONCE) as fleet:
        wait_until(lambda: fleet.readiness() == (200, ()))
        assert fleet.finish() == AT_ONCE
        print(f"the first key is back: {fleet.figures()}")


def test_a_server_that_starts_before_vault_is_unsealed_waits_and_heals_by_itself(
    vault: VaultServer, imported: Imported, rack: Rack, guests: list[Guest], tmp_path: Path
) -> None:
    """Logged in by AppRole, it also gets over a Vault that is slow, and one that ends all of its tokens."""
    login, root = vault.approle_login(ttl="1m"), imported.root
    with SlowProxy(vault.port) as proxy:
        settings = imported.settings(rack, login, proxy.address)
        server, stopped = start_while_sealed(vault, settings, tmp_path / "one", tmp_path / "other")
        assert stopped.process.wait(5) == 0
        with server:
            with outage("slow by 5 s", server, root, guests, "root-key-slow") as fleet:
                proxy.delay = 5.0
                fleet.feel("root-key-slow")
                proxy.delay = 0.0
            refused, logins = ("root-key-token-expired", "root-key-forbidden"), logged_in(server)
            with outage("all tokens of AppRole ended", server, root, guests, *refused):
                vault.root.sys.revoke_prefix("auth/approle/login")
            assert logged_in(server) > logins
        assert server.process.returncode == 0
        canaries = Canaries({"root": root.secrets[1], "secret id": login.secret_id_file.read_bytes()})
        files = [server.log, *(file for file in server.data_dir.rglob("*") if file.is_file())]
        assert canaries.find((str(file), file.read_bytes()) for file in files) == []


def logged_in(server: Server) -> int:
    return server.log_text().count('"vault-logged-in"')


def start_while_sealed(
    vault: VaultServer, settings: Mapping[str, str], *folders: Path
) -> tuple[Server, Server]:
    """Start two servers that wait for the root; unseal for the first, and tell the second to stop."""

    def waits(server: Server) -> bool:
        assert server.alive(), server.log_text()
        return '"root-key-awaited"' in server.log_text()

    vault.seal()
    try:
        server, stopped = (Server(folder / "data", settings) for folder in folders)
        for each in (server, stopped):
            wait_until(lambda each=each: waits(each), within=60)  # type: ignore[misc]
            assert '"reason":"root-key-sealed"' in each.log_text()
            assert not each.ca.exists()
        stopped.process.send_signal(signal.SIGTERM)
    finally:
        vault.unseal()
    return server, stopped

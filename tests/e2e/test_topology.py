"""The stack of docker-compose.yml as plain processes: guests are served whatever happens to one server."""

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from kms.encoding import from_base64
from kms.guest.client import KeyClient
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.rack import KEYS, Guest, Rack
from tests.e2e.topology import Topology, topology
from tests.servers.postgresql import GUARDED
from tests.servers.vault import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

GUESTS, AT_ONCE = 24, 8


@pytest.fixture(scope="module")
def rack(
    tmp_path_factory: pytest.TempPathFactory, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> Rack:
    return Rack(tmp_path_factory.mktemp("rack"), simulated_hierarchies[Product.MILAN], chips=4)


@pytest.fixture(scope="module")
def stack(rack: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """The stack, with a policy in force that an operator applied on one of the servers."""
    more = {name: value for name, value in rack.settings.items() if name != "KMS_POLICY_DIR"}
    with topology(tmp_path_factory.mktemp("topology"), more) as running:
        for name in running.servers:
            wait_until(lambda name=name: get(running, f"{running.url_of(name)}/healthz") == 200, within=60)  # type: ignore[misc]
        # Alive, and not ready: the balancer gives guests to neither.
        assert get(running, f"{running.url_of('kms-1')}/readyz") == 503
        running.kms("policy", "apply", str(rack.policies), "--message", "first")
        wait_until(lambda: get(running, f"{running.url}/readyz") == 200, within=60)
        yield running
        for process in running.servers.values():
            if process.running:
                assert process.stop() == 0
            assert "Traceback" not in process.log_text(), process.log_text()[-4000:]


def get(stack: Topology, url: str) -> int | None:
    """Give the status of an answer, None where there is none."""
    try:
        return httpx2.get(url, verify=trust(stack), trust_env=False, timeout=10).status_code
    except (OSError, httpx2.TransportError):
        return None


def trust(stack: Topology) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(stack.ca))


def identity(stack: Topology) -> bytes:
    answer = httpx2.get(f"{stack.url}/v1/identity", verify=trust(stack), trust_env=False, timeout=10)
    return from_base64(answer.json()["identity"])


def boot(stack: Topology, pinned: bytes, guest: Guest) -> tuple[ReleasedKey, ...]:
    """Fetch keys through the balancer as a guest does: it comes again when it is not served."""
    client = KeyClient(
        stack.url,
        ca_file=stack.ca,
        identity=pinned,
        source=guest,
        suite=Suite.X25519_SEALEDBOX,
        deadline=60.0,
    )
    return client.fetch(KEYS, app_document=guest.document).keys


def boot_all(stack: Topology, pinned: bytes, guests: Sequence[Guest]) -> list[tuple[ReleasedKey, ...]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda guest: boot(stack, pinned, guest), guests))


def releases(stack: Topology) -> dict[str, int]:
    """Count the decisions of each server, as the ledger has them."""
    rows = stack.postgres.sql("SELECT server, count(*) FROM entries WHERE kind = 'decision' GROUP BY server")
    return {name: int(count) for name, count in (row.split("|") for row in rows.splitlines())}


def test_guests_get_their_keys_while_one_server_is_killed_and_comes_back(stack: Topology, rack: Rack) -> None:
    guests, pinned = [rack.guest(number) for number in range(GUESTS)], identity(stack)
    keys = boot_all(stack, pinned, guests)
    assert len({key.secret for each in keys for key in each}) > GUESTS
    both = {"kms-1", "kms-2"}
    # As soon as the balancer has seen that both are ready.
    wait_until(lambda: set(releases(stack)) == both or boot_all(stack, pinned, guests) != keys, within=60)
    assert set(releases(stack)) == both

    for name, other in (("kms-1", "kms-2"), ("kms-2", "kms-1")):
        before = releases(stack)
        with ThreadPoolExecutor(1) as pool:
            meanwhile = pool.submit(boot_all, stack, pinned, guests)
            stack.servers[name].kill()
            assert meanwhile.result(120) == keys
        after = releases(stack)
        assert after[other] - before[other] >= GUESTS - AT_ONCE
        stack.servers[name].start()
        wait_until(lambda name=name: get(stack, f"{stack.url_of(name)}/readyz") == 200, within=60)  # type: ignore[misc]
        # The balancer sees it too.
        wait_until(lambda name=name: f"Server servers/{name} is UP" in stack.balancer.log_text())  # type: ignore[misc]


def test_a_server_that_is_told_to_stop_turns_nobody_away(stack: Topology, rack: Rack) -> None:
    guests, pinned = [rack.guest(number) for number in range(GUESTS)], identity(stack)
    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(boot_all, stack, pinned, guests)
        assert stack.servers["kms-1"].stop() == 0
        meanwhile.result(120)
    stack.servers["kms-1"].start()
    wait_until(lambda: get(stack, f"{stack.url_of('kms-1')}/readyz") == 200, within=60)


class TestDoctor:
    """`kms doctor` beside servers that run, and while what they stand on is gone."""

    def examined(self, stack: Topology, status: int) -> dict[str, tuple[str, str]]:
        document = json.loads(stack.kms("doctor", "--json", status=status))
        assert document["healthy"] is (status == 0)
        return {each["name"]: (each["status"], each["detail"]) for each in document["checks"]}

    def test_nothing_failed(self, stack: Topology) -> None:
        found = self.examined(stack, 0)
        for name in (
            "database",
            "database-schema",
            "database-writable",
            "root-key",
            "policy",
            "ledger",
        ):
            assert found[name][0] == "ok", found[name]
        assert "PostgreSQL" in found["database"][1]
        assert found["anchor-apart"][0] == "unknown"
        assert found["development-mode"][0] == "warning"
        assert found["clock"][0] == "ok"
        assert "the database" in found["clock"][1]
        assert "Vault" in found["clock"][1]

    def test_a_read_only_database_is_said(self, stack: Topology) -> None:
        role = f"ALTER ROLE {GUARDED}"
        stack.postgres.sql(f"{role} SET default_transaction_read_only = on")
        try:
            status, detail = self.examined(stack, 1)["database-writable"]
        finally:
            stack.postgres.sql(f"{role} RESET default_transaction_read_only")
        assert status == "failed"
        assert "read-only transaction" in detail

    def test_a_database_that_is_gone_is_said(self, stack: Topology) -> None:
        with stack.postgres.stopped():
            found = self.examined(stack, 1)
        assert found["database"][0] == "failed"
        assert found["root-key"] == (
            "unknown",
            "it answers, with epochs 1; no database was there to compare it with",
        )
        assert found["policy"][0] == "unknown"
        wait_until(lambda: get(stack, f"{stack.url}/readyz") == 200, within=60)

    def test_a_sealed_vault_and_one_that_is_gone_are_told_apart(self, stack: Topology) -> None:
        stack.vault.kill()
        assert "root-key-unreachable" in self.examined(stack, 1)["root-key"][1]
        stack.vault.start()
        wait_until(lambda: "root-key-sealed" in self.examined(stack, 1)["root-key"][1], within=60)
        stack.open_vault()
        wait_until(lambda: get(stack, f"{stack.url}/readyz") == 200, within=60)
        self.examined(stack, 0)

    def test_no_secret_is_said(self, stack: Topology) -> None:
        said = stack.kms("doctor") + stack.kms("doctor", "--json")
        for file in stack.secrets.rglob("*"):
            if file.is_file() and "pem" not in file.suffix:
                for word in file.read_text().strip().split(":"):
                    assert len(word) < 64 or word not in said, file

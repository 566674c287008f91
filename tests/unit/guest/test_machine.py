"""This machine as its configuration says: what is checked before anything is asked, and in which order."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from kms.encoding import from_base64
from kms.errors import ConfigurationError
from kms.guest.config import GuestConfig
from kms.guest.errors import AnswerRejected, AppDocumentRefused
from kms.guest.evidence import EvidenceSource
from kms.guest.hardware import EvidenceOptions
from kms.guest.machine import GuestMachine
from kms.guest.workload import WorkloadRefused
from kms.identifiers import AppId, ComposeHash
from kms.keys.identity import Identity
from kms.keys.names import KeyRequest
from kms.keys.sealing import Suite
from kms.policy.question import AppClaim
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import JsonValue
from tests.unit.guest.conftest import APP_ID, DISK, FakeKms, app_document, problem, value_of, with_host_data

WORKLOAD = b"services: {}\n"
COMPOSE_HASH = ComposeHash(sha256(WORKLOAD).digest())
DOCUMENT = app_document(compose_hash=COMPOSE_HASH.hex())
CLAIM = AppClaim(app_id=APP_ID, compose_hash=COMPOSE_HASH)


class Hardware:
    """`kms.guest.hardware.evidence_source` in a SIMULATED machine."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine = with_host_data(machine, sha256(DOCUMENT).digest())
        self.options: list[tuple[EvidenceOptions, object]] = []
        self.patience = self.reports = 0.0

    def source(
        self, options: EvidenceOptions, *, launch: object = None, patience: float = 0
    ) -> EvidenceSource:
        self.options.append((options, launch))
        self.patience = patience
        return self

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        self.reports += 1
        return self.machine.evidence(report_data)


@pytest.fixture
def hardware(machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    hardware = Hardware(machine)
    monkeypatch.setattr("kms.guest.hardware.evidence_source", hardware.source)
    return hardware


@pytest.fixture
def config(kms: FakeKms, tmp_path: Path) -> GuestConfig:
    document, workload = tmp_path / "app.json", tmp_path / "compose.yaml"
    document.write_bytes(DOCUMENT)
    workload.write_bytes(WORKLOAD)
    return GuestConfig(
        server="https://kms.test:8443",
        identity=kms.identity.public_key,
        app_document=document,
        workload=workload,
    )


def machine_of(config: GuestConfig, kms: FakeKms) -> GuestMachine:
    return GuestMachine(config, transport=httpx2.MockTransport(kms))


def path_of(path: Path | None) -> Path:
    assert path is not None
    return path


class TestFetch:
    def test_all_that_the_configuration_says_is_used(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        options = EvidenceOptions(tsm=Path("/run/tsm"), privlevel=1)
        config = replace(
            config, evidence=options, launch={"image": "os-1"}, suite=Suite.HPKE_X25519, app=CLAIM
        )
        payload = machine_of(config, kms).fetch([DISK])
        assert payload.keys[0].value == value_of(DISK)
        assert hardware.options == [(options, {"image": "os-1"})]
        [request], [evidence] = kms.requests, kms.evidence
        assert from_base64(str(evidence["app_document"])) == DOCUMENT
        assert request.recipient.suite is Suite.HPKE_X25519
        assert request.ask.app == CLAIM

    def test_the_pin_of_the_configuration_counts(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        kms.signer = Identity.from_prf(b"\x22" * 64)
        with pytest.raises(AnswerRejected):
            machine_of(config, kms).fetch([DISK])
        assert machine_of(replace(config, identity=None), kms).fetch([DISK]).keys

    def test_both_files_are_read_each_time(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        machine = machine_of(config, kms)
        machine.fetch([DISK])
        path_of(config.workload).write_bytes(b"another")
        with pytest.raises(WorkloadRefused):
            machine.fetch([DISK])

    def test_another_workload_asks_nothing_of_server_and_hardware(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        path_of(config.workload).write_bytes(WORKLOAD + b"#")
        with pytest.raises(WorkloadRefused):
            machine_of(config, kms).fetch([DISK])
        assert (kms.challenges, hardware.reports, kms.requests) == (0, 0, [])

    def test_a_host_that_changes_document_and_workload_alike(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        """Both fit each other, and not what the machine was launched for: its own report says so."""
        other = WORKLOAD + b"#"
        path_of(config.workload).write_bytes(other)
        path_of(config.app_document).write_bytes(app_document(compose_hash=sha256(other).hexdigest()))
        with pytest.raises(AppDocumentRefused) as refused:
            machine_of(config, kms).fetch([DISK])
        assert refused.value.reason == "host-data-mismatch"
        assert (hardware.reports, kms.requests) == (1, [])

    @pytest.mark.parametrize("document", [b"", b"{}", b" " * (64 << 10) + DOCUMENT], ids=len)
    def test_a_document_that_is_none(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware, document: bytes
    ) -> None:
        path_of(config.app_document).write_bytes(document)
        with pytest.raises(AppDocumentRefused) as refused:
            machine_of(config, kms).fetch([DISK])
        assert refused.value.reason == "app-document-unreadable"
        assert kms.challenges == 0

    def test_files_that_are_not_there(self, config: GuestConfig, kms: FakeKms, hardware: Hardware) -> None:
        missing = Path("/nonexistent")
        for changed in (replace(config, app_document=missing), replace(config, workload=missing)):
            with pytest.raises(ConfigurationError, match="/nonexistent"):
                machine_of(changed, kms).fetch([DISK])
        assert kms.challenges == 0


class TestMeasuredCommandLine:
    """An image whose command line names the app has no document."""

    def test_the_workload_has_the_hash_that_it_names(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        config = replace(config, app_document=None, app=CLAIM)
        assert machine_of(config, kms).fetch([DISK]).keys
        path_of(config.workload).write_bytes(b"another")
        with pytest.raises(WorkloadRefused):
            machine_of(config, kms).fetch([DISK])

    @pytest.mark.parametrize("claim", [None, AppClaim(app_id=AppId(b"\xa1" * 20))], ids=["none", "app"])
    def test_a_workload_that_nothing_names_is_not_waved_through(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware, claim: AppClaim | None
    ) -> None:
        with pytest.raises(ConfigurationError, match="nothing that says which"):
            machine_of(replace(config, app_document=None, app=claim), kms).fetch([DISK])
        assert kms.challenges == 0


class TestNewestEpoch:
    @staticmethod
    def told(kms: FakeKms, epochs: object) -> None:
        kms.script = [lambda _: httpx2.Response(200, json={"identity": "x", "epochs": epochs})]

    def test_the_last_one_is_current(self, config: GuestConfig, kms: FakeKms) -> None:
        self.told(kms, [1, 2, 5])
        assert machine_of(config, kms).newest_epoch() == 5

    @pytest.mark.parametrize(
        "epochs", [None, [], 3, ["3"], [0], [-1], [True], [1.5], {}, [1] * 5000], ids=str
    )
    def test_what_is_no_answer_is_none(self, config: GuestConfig, kms: FakeKms, epochs: object) -> None:
        self.told(kms, epochs)
        assert machine_of(config, kms).newest_epoch() is None

    def test_a_server_that_has_no_such_route(self, config: GuestConfig, kms: FakeKms) -> None:
        kms.script = [problem(404, "not-found")]
        assert machine_of(config, kms).newest_epoch() is None

    def test_a_server_that_cannot_be_reached_costs_no_boot(self, config: GuestConfig) -> None:
        def lost(_: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("no route to host")

        config = replace(config, deadline=0.1)
        assert GuestMachine(config, transport=httpx2.MockTransport(lost)).newest_epoch() is None


class TestMade:
    """A service with a wrong configuration must not come up, and the hardware is not blamed for it."""

    @pytest.mark.parametrize(
        "server", ["http://kms", "kms:8443", "https://a..b", f"https://{'x' * 64}:8443", "https://xn--a..b"]
    )
    def test_an_address_that_is_none(self, config: GuestConfig, server: str) -> None:
        with pytest.raises(ConfigurationError, match="address"):
            GuestMachine(replace(config, server=server))

    def test_a_ca_that_cannot_be_used(self, config: GuestConfig) -> None:
        with pytest.raises(ConfigurationError, match="/nonexistent"):
            GuestMachine(replace(config, ca=Path("/nonexistent")))


class TestAsync:
    async def test_the_same_keys_and_the_same_checks(
        self, config: GuestConfig, kms: FakeKms, hardware: Hardware
    ) -> None:
        machine = machine_of(config, kms)
        payload = await machine.fetch_async([DISK])
        assert payload.keys[0].secret == value_of(DISK)
        path_of(config.workload).write_bytes(b"another")
        with pytest.raises(WorkloadRefused):
            await machine.fetch_async([DISK])
        assert kms.challenges == 1


@pytest.mark.parametrize(("deadline", "patience"), [(3.0, 3.0), (60.0, 10.0)])
def test_busy_hardware_has_no_longer_than_the_server(
    config: GuestConfig, kms: FakeKms, hardware: Hardware, deadline: float, patience: float
) -> None:
    machine_of(replace(config, deadline=deadline), kms).fetch([DISK])
    assert hardware.patience == patience


def test_epochs_are_asked_for_as_they_were_named(
    config: GuestConfig, kms: FakeKms, hardware: Hardware
) -> None:
    keys = [KeyRequest.parse("disk", "app", 1), KeyRequest.parse("disk", "app", 2)]
    payload = machine_of(config, kms).fetch(keys)
    assert [key.epoch for key in payload.keys] == [1, 2]

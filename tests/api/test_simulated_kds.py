"""The simulated key distribution service over real HTTP: a test that leans on a fault must be able to."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx2
import pytest
from cryptography import x509

from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import FAILURES, Faults, RetryAfter
from kms.simulator.kds_log import Kind
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf
from kms.snp.product import Product
from tests.world import NOW

pytestmark = pytest.mark.enable_socket

MILAN = Line(Signer.VCEK, Product.MILAN)
CHAIN = ChainOf(MILAN).path
LIST = RevocationListOf(MILAN).path


def make_chip(hierarchy: AmdHierarchy, seed: bytes) -> SimulatedChip:
    return SimulatedChip.typical(hierarchy, chip_id=simulated_chip_id(hierarchy.product, seed), now=NOW)


def path_of(chip: SimulatedChip) -> str:
    return VcekOf(chip.hierarchy.product, chip.chip_id, chip.reported_tcb).path


@pytest.fixture
def chip(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> SimulatedChip:
    return make_chip(simulated_hierarchies[Product.MILAN], b"a")


@pytest.fixture
def kds(simulated_hierarchies: Mapping[Product, AmdHierarchy], chip: SimulatedChip) -> Iterator[SimulatedKds]:
    with SimulatedKds(simulated_hierarchies.values(), [chip], clock=lambda: NOW) as kds:
        yield kds


@pytest.fixture
def client(kds: SimulatedKds) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=kds.url, trust_env=False, timeout=10.0) as client:
        yield client


def test_it_serves_what_amds_service_serves(
    kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip
) -> None:
    vcek, chain, revocation_list = (client.get(path) for path in (path_of(chip), CHAIN, LIST))
    assert {answer.status_code for answer in (vcek, chain, revocation_list)} == {200}
    assert vcek.content == chip.endorsement.certificate
    ask, ark = x509.load_pem_x509_certificates(chain.content)
    x509.load_der_x509_certificate(vcek.content).verify_directly_issued_by(ask)
    ask.verify_directly_issued_by(ark)
    assert x509.load_der_x509_crl(revocation_list.content).issuer == ark.subject
    assert [each.kind for each in kds.log] == [Kind.VCEK, Kind.CHAIN, Kind.REVOCATION_LIST]
    assert [each.path for each in kds.log] == [path_of(chip), CHAIN, LIST]
    assert [kds.served(path) for path in (path_of(chip), CHAIN, LIST)] == [1, 1, 1]
    assert 0 <= kds.log[0].at <= kds.log[1].at <= kds.log[2].at


@pytest.mark.parametrize("product", list(Product), ids=str)
def test_every_product_has_its_paths(
    kds: SimulatedKds,
    client: httpx2.Client,
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
    product: Product,
) -> None:
    chip = make_chip(simulated_hierarchies[product], b"b")
    assert client.get(path_of(chip)).status_code == 404
    kds.add(chip)
    assert client.get(path_of(chip)).content == chip.endorsement.certificate
    for signer in Signer:
        assert client.get(ChainOf(Line(signer, product)).path).status_code == 200
        assert client.get(RevocationListOf(Line(signer, product)).path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/vcek/v1/Venice/cert_chain",
        "/vcek/v1/Milan/cert_chain?x=1",
        "/vlek/v1/Milan/cert",
        "/vcek/v1/Milan/" + "00" * 64 + "?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219",
        "/vcek/v1/Milan/" + "11" * 64 + "?blSPL=04&blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219",
        "/vcek/v1/Milan/" + "11" * 64,
        "//[",
    ],
)
def test_what_it_has_not_is_404(kds: SimulatedKds, client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == 404
    assert [(each.status, each.genuine) for each in kds.log] == [(404, False)]


def test_a_parameter_given_twice_is_not_overlooked(client: httpx2.Client, chip: SimulatedChip) -> None:
    assert client.get(path_of(chip) + "&blSPL=04").status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_every_answer_says_that_it_is_simulated(client: httpx2.Client, method: str) -> None:
    assert client.request(method, CHAIN).headers["KDS-Simulation"] == "true"


class TestFaults:
    def test_latency(self, kds: SimulatedKds, client: httpx2.Client) -> None:
        kds.faults = Faults(latency=0.3)
        begun = time.monotonic()
        assert client.get(CHAIN).status_code == 200
        assert time.monotonic() - begun >= 0.3

    def test_down_resets_old_and_new_connections(self, kds: SimulatedKds, client: httpx2.Client) -> None:
        assert client.get(CHAIN).status_code == 200
        kds.faults = Faults(down=True)
        for _ in range(3):
            with pytest.raises(httpx2.TransportError):
                client.get(CHAIN)
        assert [each.status for each in kds.log[1:]] == [None] * 3
        kds.faults = Faults()
        assert client.get(CHAIN).status_code == 200
        assert kds.served(CHAIN) == 2

    def test_a_share_fails_and_the_same_in_every_run(self, chip: SimulatedChip) -> None:
        def statuses(seed: int) -> list[int]:
            faults = Faults(failing=0.3)
            with (
                SimulatedKds([chip.hierarchy], faults=faults, seed=seed) as kds,
                httpx2.Client(base_url=kds.url, trust_env=False) as client,
            ):
                return [client.get(CHAIN).status_code for _ in range(200)]

        first = statuses(1)
        assert set(first) == {200, *FAILURES}
        assert 35 <= sum(status != 200 for status in first) <= 85
        assert statuses(1) == first
        assert statuses(2) != first

    def test_all_fail(self, kds: SimulatedKds, client: httpx2.Client) -> None:
        kds.faults = Faults(failing=1.0)
        assert all(client.get(CHAIN).status_code >= 500 for _ in range(20))
        assert (kds.asked(), kds.served(CHAIN)) == (20, 0)

    def test_redirect(self, kds: SimulatedKds, client: httpx2.Client) -> None:
        kds.faults = Faults(redirect="http://127.0.0.1:1/elsewhere")
        answer = client.get(CHAIN)
        assert (answer.status_code, answer.headers["Location"]) == (302, "http://127.0.0.1:1/elsewhere")

    @pytest.mark.parametrize("form", list(RetryAfter))
    def test_the_throttle_lets_one_vcek_through(
        self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip, form: RetryAfter
    ) -> None:
        kds.faults = Faults(interval=30, retry_after=form)
        first, second = client.get(path_of(chip)), client.get(path_of(chip))
        assert (first.status_code, second.status_code) == (200, 429)
        header = second.headers.get("Retry-After", "")
        match form:
            case RetryAfter.NONE:
                assert header == ""
            case RetryAfter.SECONDS:
                assert 28 <= int(header) <= 30
            case RetryAfter.DATE:
                left = parsedate_to_datetime(header) - NOW
                assert timedelta(seconds=28) <= left <= timedelta(seconds=30)
        # Chains and lists are not throttled.
        assert client.get(CHAIN).status_code == client.get(LIST).status_code == 200

    def test_invented_chips_use_up_the_throttle_and_its_end_comes(
        self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip
    ) -> None:
        kds.faults = Faults(interval=0.4)
        invented = path_of(make_chip(chip.hierarchy, b"invented"))
        assert client.get(invented).status_code == 404
        assert client.get(path_of(chip)).status_code == 429
        time.sleep(0.45)
        assert client.get(path_of(chip)).status_code == 200

    def test_a_wrong_certificate_is_another_chips_genuine_one(
        self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip
    ) -> None:
        kds.faults = Faults(wrong_certificate=True)
        body = client.get(path_of(chip)).content
        assert body != chip.endorsement.certificate
        issuer = x509.load_der_x509_certificate(chip.hierarchy.ask.certificate)
        x509.load_der_x509_certificate(body).verify_directly_issued_by(issuer)
        assert client.get(CHAIN).content.startswith(b"-----BEGIN CERTIFICATE-----")
        assert (kds.served(path_of(chip)), kds.served(CHAIN)) == (0, 1)

    def test_garbage(self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip) -> None:
        kds.faults = Faults(garbage=True)
        for path in (path_of(chip), CHAIN, LIST):
            answer = client.get(path)
            assert answer.status_code == 200
            assert b"BEGIN" not in answer.content
            assert kds.served(path) == 0

    def test_an_oversized_body_never_ends(self, kds: SimulatedKds, client: httpx2.Client) -> None:
        kds.faults = Faults(oversized=True)
        received = 0
        with client.stream("GET", CHAIN) as answer:
            for piece in answer.iter_raw():
                received += len(piece)
                if received > 5 << 20:
                    break
        assert received > 5 << 20
        assert kds.served(CHAIN) == 0

    def test_a_cut_body(self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip) -> None:
        kds.faults = Faults(cut=True)
        with client.stream("GET", path_of(chip)) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                answer.read()
        assert kds.served(path_of(chip)) == 0

    def test_a_dripping_body_comes_slowly_and_whole(
        self, kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip
    ) -> None:
        length = len(chip.endorsement.certificate)
        kds.faults = Faults(drip=4 * length)
        begun = time.monotonic()
        body = client.get(path_of(chip)).content
        assert 0.2 <= time.monotonic() - begun < 5
        assert body == chip.endorsement.certificate
        assert kds.served(path_of(chip)) == 1

    def test_who_leaves_a_dripping_body_was_not_served(
        self, kds: SimulatedKds, client: httpx2.Client
    ) -> None:
        kds.faults = Faults(drip=500.0)
        with client.stream("GET", CHAIN) as answer:
            next(answer.iter_raw())
        end = time.monotonic() + 5
        while kds.served(CHAIN) and time.monotonic() < end:
            time.sleep(0.02)
        assert kds.served(CHAIN) == 0


def test_two_hundred_clients_at_once_are_all_answered(
    kds: SimulatedKds, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    kds.faults = Faults(latency=0.5)
    chips = [make_chip(simulated_hierarchies[Product.MILAN], bytes([number])) for number in range(50)]
    kds.add(*chips)

    def get(number: int) -> tuple[int, bytes]:
        with httpx2.Client(base_url=kds.url, trust_env=False, timeout=60.0) as client:
            answer = client.get(path_of(chips[number % 50]))
            return answer.status_code, answer.content

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(get, range(200)))
    assert [body for _, body in answers] == [
        chips[number % 50].endorsement.certificate for number in range(200)
    ]
    assert kds.asked(Kind.VCEK) == 200
    assert [kds.served(path_of(chip)) for chip in chips] == [4] * 50


def test_leaving_ends_silent_dripping_and_idle_connections(chip: SimulatedChip) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(3) as pool, SimulatedKds([chip.hierarchy], [chip]) as kds:
        # Kept open: its thread waits for another request.
        with httpx2.Client(base_url=kds.url, trust_env=False) as idle:
            assert idle.get(CHAIN).status_code == 200
            kds.faults = Faults(latency=3600)
            waiting = [pool.submit(httpx2.get, kds.url + CHAIN, timeout=60.0, trust_env=False)]
            _until(lambda: kds.asked() == 2)
            kds.faults = Faults(drip=1.0)
            waiting.append(pool.submit(httpx2.get, kds.url + CHAIN, timeout=60.0, trust_env=False))
            _until(lambda: kds.asked() == 3)
            kds.faults = Faults(oversized=True)
            # Not read: the sender is blocked.
            with idle.stream("GET", LIST):
                url = kds.url
                kds.__exit__(None, None, None)
        for each in waiting:
            with pytest.raises(httpx2.TransportError):
                each.result(timeout=10)
    assert time.monotonic() - begun < 20
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url, trust_env=False)


def test_a_defect_of_the_simulation_does_not_pass_for_a_fault(
    monkeypatch: pytest.MonkeyPatch, chip: SimulatedChip
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("kms.simulator.kds_shelf.Shelf.find", broken)
    kds = SimulatedKds([chip.hierarchy]).__enter__()
    with pytest.raises(httpx2.TransportError):
        httpx2.get(kds.url + CHAIN, trust_env=False)
    with pytest.raises(KeyError, match="a defect"):
        kds.__exit__(None, None, None)


def test_published_lists_are_served(kds: SimulatedKds, client: httpx2.Client, chip: SimulatedChip) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    revoking = chip.hierarchy.revocation_list([0x10001], number=2, this_update=NOW, next_update=end)
    kds.publish(MILAN, revoking)
    assert client.get(LIST).content == revoking
    assert client.get(RevocationListOf(replace(MILAN, signer=Signer.VLEK)).path).content != revoking


def _until(happened: object) -> None:
    assert callable(happened)
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)

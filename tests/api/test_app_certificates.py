"""Certificates of apps: what a release gives, what is recorded of it, and that guests can use it."""

import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from kms.encoding import b64url
from kms.errors import RootKeyUnavailable
from kms.identifiers import AppId
from kms.keys import p256
from kms.keys.certificates import OID_BOOT_INFO
from kms.keys.opening import RecipientKey
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from kms.request import report_data
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import SimulatedMachine
from kms.snp.product import Product
from tests.world import APP_ID, World, app_document, document, open_answer, open_world

HOST = "payments.internal"
POLICY: dict[str, object] = {"keys": ["tls", "disk"], "tls": {"names": [HOST, "payments"], "days": 7}}
TLS = {"name": "tls", "scope": "app"}
OTHER_APP = "ab" * 32


@pytest.fixture
async def world(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> AsyncIterator[World]:
    """Two apps that may have certificates. It is today here: TLS has no other clock."""
    today = datetime.now(UTC)
    async with open_world(
        tmp_path, simulated_hierarchies[Product.MILAN], make_chip=lambda chip: replace(chip, now=today)
    ) as world:
        world.now[0] = today
        other = {**app_document(world.chip, id=OTHER_APP, name="other"), **POLICY}
        await world.apply(*world.default_policy(app=POLICY), other)
        yield world


async def fetch(world: World, *keys: object, machine: SimulatedMachine | None = None) -> list[ReleasedKey]:
    recipient = RecipientKey.generate(Suite.X25519_SEALEDBOX)
    request = await world.request(recipient, keys=keys)
    answer = await world.post(request, (machine or world.machine).evidence(report_data(request)))
    assert answer.status == 200, answer.body
    return list(open_answer(answer, recipient, request, world.desk.identity.public_key).keys)


def csr(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Ask for a certificate for an own key, and for more than anybody should get."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root.example")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("root.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    request = builder.sign(key, hashes.SHA256())
    return {**TLS, "csr": b64url(request.public_bytes(Encoding.DER))}


def leaf_of(key: ReleasedKey) -> x509.Certificate:
    assert key.certificate_chain is not None
    return x509.load_pem_x509_certificate(key.certificate_chain[0].encode())


@dataclass(frozen=True)
class Guest:
    """What one guest has: its key and the certificates that came with it. It trusts its app's CA only."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    chain: tuple[str, ...]

    @classmethod
    def of(
        cls, folder: Path, released: ReleasedKey, own: ec.EllipticCurvePrivateKey | None = None
    ) -> "Guest":
        key = own
        if released.value is not None:
            loaded = load_der_private_key(released.value, None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            key = loaded
        assert key is not None
        assert released.certificate_chain is not None
        folder.mkdir()
        return cls(folder, key, released.certificate_chain)

    def context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.chain[1])
        # The app's CA is trusted although another stands above it, and RFC 5280 is kept to the letter.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        file = self.folder / "tls.pem"
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        file.write_text(private + "".join(self.chain))
        context.load_cert_chain(file)
        return context


def meet(server: Guest, client: Guest, host: str = HOST) -> tuple[object, object]:
    """Let two guests talk over loopback; give what each heard of the other, or the error it had.

    Both contexts are made before the threads start: a guest that meets itself writes one file twice.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    serving = server.context(ssl.PROTOCOL_TLS_SERVER)
    asking = client.context(ssl.PROTOCOL_TLS_CLIENT)

    def serve() -> object:
        connection, _ = listener.accept()
        connection.settimeout(10)
        try:
            with serving.wrap_socket(connection, server_side=True) as secured:
                heard = secured.recv(100)
                secured.sendall(b"from server")
                return heard
        except (ssl.SSLError, OSError) as error:
            return error

    def ask() -> object:
        connection = socket.create_connection(listener.getsockname(), timeout=10)
        try:
            with asking.wrap_socket(connection, server_hostname=host) as secured:
                secured.sendall(b"from client")
                return secured.recv(100)
        except (ssl.SSLError, OSError) as error:
            return error

    with listener, ThreadPoolExecutor(2) as threads:
        served, asked = threads.submit(serve), threads.submit(ask)
        return served.result(30), asked.result(30)


@pytest.mark.enable_socket
class TestMutualTls:
    async def test_two_guests_of_one_app_need_nothing_but_their_releases(
        self, tmp_path: Path, world: World
    ) -> None:
        one, *_ = await fetch(world, TLS)
        other, *_ = await fetch(world, TLS, machine=world.launch(vcpus=4))
        own = ec.generate_private_key(ec.SECP256R1())
        third, *_ = await fetch(world, csr(own))
        assert one.value == other.value
        assert third.value is None
        guests = [
            Guest.of(tmp_path / "one", one),
            Guest.of(tmp_path / "other", other),
            Guest.of(tmp_path / "third", third, own),
        ]
        for server, client in ((0, 1), (1, 2), (2, 0)):
            assert meet(guests[server], guests[client]) == (b"from client", b"from server")
        assert meet(guests[0], guests[1], "payments") == (b"from client", b"from server")

    async def test_a_guest_of_another_app_is_refused_by_both_sides(
        self, tmp_path: Path, world: World
    ) -> None:
        """Though the same CA stands above both apps, and the policy gave both the same names."""
        machine = world.launch(app_document=document(app_id=OTHER_APP))
        own = ec.generate_private_key(ec.SECP256R1())
        ours = Guest.of(tmp_path / "ours", (await fetch(world, TLS))[0])
        for name, asked in (("its key", TLS), ("a key of its own", csr(own))):
            [released] = await fetch(world, asked, machine=machine)
            theirs = Guest.of(tmp_path / name, released, own)
            _, asker = meet(theirs, ours)
            assert isinstance(asker, ssl.SSLCertVerificationError)
            # It would go as far as to believe us, were it not that we do not believe it.
            believing = replace(theirs, chain=(theirs.chain[0], ours.chain[1], theirs.chain[2]))
            server, _ = meet(ours, believing)
            assert isinstance(server, ssl.SSLCertVerificationError)

    async def test_a_name_that_the_policy_does_not_give_is_refused(
        self, tmp_path: Path, world: World
    ) -> None:
        """Field lesson 32: the request asked for it, and for being a CA."""
        own = ec.generate_private_key(ec.SECP256R1())
        [released] = await fetch(world, csr(own))
        guest = Guest.of(tmp_path / "guest", released, own)
        assert meet(guest, guest)[1] == b"from server"
        assert isinstance(meet(guest, guest, "root.example")[1], ssl.SSLCertVerificationError)


class TestReleases:
    async def test_names_and_life_are_the_policys(self, world: World) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        for released in await fetch(world, TLS, csr(own)):
            leaf = leaf_of(released)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == [HOST, "payments"]
            life = leaf.not_valid_after_utc - leaf.not_valid_before_utc + timedelta(seconds=1)
            assert life == timedelta(days=7)
            assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    async def test_the_certificate_carries_the_digest_of_the_boot_info_that_the_guest_is_told(
        self, world: World
    ) -> None:
        recipient = RecipientKey.generate(Suite.X25519_SEALEDBOX)
        request = await world.request(recipient, keys=[TLS])
        answer = await world.post(request, world.machine.evidence(report_data(request)))
        [released] = open_answer(answer, recipient, request, world.desk.identity.public_key).keys
        carried = leaf_of(released).extensions.get_extension_for_oid(OID_BOOT_INFO).value
        digest = sha256(rfc8785.dumps(answer.body["boot_info"])).digest()
        assert carried.public_bytes() == b"\x04\x20" + digest

    async def test_the_key_is_the_apps_and_the_certificate_is_new(self, world: World) -> None:
        one, other = (await fetch(world, TLS))[0], (await fetch(world, TLS))[0]
        assert one.value == other.value
        assert one.public_key == other.public_key
        assert leaf_of(one).serial_number != leaf_of(other).serial_number
        assert (one.certificate_chain or ())[1:] == (other.certificate_chain or ())[1:]

    async def test_with_a_key_of_its_own_a_guest_never_gets_the_apps(self, world: World) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        [released] = await fetch(world, csr(own))
        assert (released.value, released.public_key) == (None, p256.point_of(own.public_key()))

    async def test_the_record_says_which_certificates_were_issued(self, world: World) -> None:
        own = ec.generate_private_key(ec.SECP256R1())
        released = await fetch(world, TLS, {"name": "disk", "scope": "app"}, csr(own))
        entry = (await world.records())[-1].entry
        assert entry["certificates"] == [
            {
                "sha256": leaf_of(key).fingerprint(hashes.SHA256()).hex(),
                "serial": leaf_of(key).serial_number.to_bytes(20, "big").hex(),
            }
            for key in (released[0], released[2])
        ]
        point = b64url(p256.point_of(own.public_key()))
        assert entry["keys"] == [
            {**TLS, "epoch": None},
            {"name": "disk", "scope": "app", "epoch": None},
            {**TLS, "epoch": None, "certificate_for": point},
        ]
        await fetch(world, {"name": "disk", "scope": "app"})
        assert "certificates" not in (await world.records())[-1].entry

    async def test_a_policy_that_gives_no_tls_gives_no_certificate_either(self, world: World) -> None:
        await world.apply_changed(app={"keys": ["disk"]})
        own = ec.generate_private_key(ec.SECP256R1())
        for key in (TLS, csr(own)):
            answer = await world.ask(keys=[key])
            answer.check_refused(403, "policy-denied", "key-not-allowed", "tls-unnamed")

    async def test_an_empty_list_of_names_certifies_nothing(self, world: World) -> None:
        """Field lesson 22: it is a warning to who writes it, and a refusal to who asks."""
        await world.apply_changed(app={**POLICY, "tls": {"names": [], "days": 7}})
        own = ec.generate_private_key(ec.SECP256R1())
        for key in (TLS, csr(own)):
            (await world.ask(keys=[key])).check_refused(403, "policy-denied", "tls-unnamed")

    @pytest.mark.parametrize("change", [{"csr": "AA"}, {"csr": ""}, {"csr": 1}, {"csr": None}])
    async def test_what_is_no_certificate_request_is_malformed(
        self, world: World, change: dict[str, object]
    ) -> None:
        (await world.ask(keys=[{**TLS, **change}])).check_refused(400, "malformed-request")
        assert await world.spent() == 0


class TestCa:
    async def ca(self, world: World, query: str = "") -> tuple[int, dict[str, Any]]:
        response = await world.client.get(f"/v1/ca{query}")
        return response.status_code, response.json()

    async def test_the_ca_above_all_apps(self, world: World) -> None:
        chain = (await fetch(world, TLS))[0].certificate_chain
        assert chain is not None
        assert await self.ca(world) == (200, {"apps_ca": chain[2]})

    async def test_the_ca_of_an_app(self, world: World) -> None:
        chain = (await fetch(world, TLS))[0].certificate_chain
        assert chain is not None
        expected = {"apps_ca": chain[2], "app_id": APP_ID, "epoch": 1, "app_ca": chain[1]}
        for query in (f"?app_id={APP_ID}", f"?app_id={APP_ID}&epoch=1", f"?epoch=1&app_id={APP_ID}"):
            assert await self.ca(world, query) == (200, expected)
        other = (await self.ca(world, f"?app_id={OTHER_APP}"))[1]
        assert other["app_ca"] != chain[1]
        assert OTHER_APP in x509.load_pem_x509_certificate(other["app_ca"].encode()).subject.rfc4514_string()

    async def test_nobody_learns_of_apps_that_are_not_listed(self, world: World) -> None:
        unknown = AppId(b"\x77" * 20).hex()
        for query in (f"?app_id={unknown}", f"?app_id={APP_ID}&epoch=2"):
            assert (await self.ca(world, query))[0] == 404
        await world.apply_changed(app={"keys": ["disk"]})
        for app in (APP_ID, OTHER_APP):
            status, body = await self.ca(world, f"?app_id={app}")
            assert (status, body["code"], "reasons" in body) == (404, "not-found", False)

    @pytest.mark.parametrize(
        "query",
        [
            "?app_id=", "?app_id=zz", f"?app_id={'00' * 20}", f"?app_id={'11' * 21}", "?epoch=1", "?other=1",
            *(f"?app_id={APP_ID}&epoch={epoch}" for epoch in ("", "0", "-1", "1.0", "01", "x", "9" * 30)),
            f"?app_id={APP_ID}&app_id={APP_ID}", f"?app_id={APP_ID.upper()}",
        ],
    )  # fmt: skip
    async def test_other_parameters_are_malformed(self, world: World, query: str) -> None:
        status, body = await self.ca(world, query)
        assert (status, body["code"]) == (400, "malformed-request")

    async def test_without_the_root_the_guest_may_come_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def unavailable(*_: object) -> bytes:
            raise RootKeyUnavailable("sealed", reason="vault-sealed")

        monkeypatch.setattr(type(world.desk.root_key), "prf", unavailable)
        response = await world.client.get(f"/v1/ca?app_id={APP_ID}")
        assert (response.status_code, response.json()["code"]) == (503, "root-key-unavailable")
        assert response.headers["retry-after"]
        assert (await self.ca(world))[0] == 200

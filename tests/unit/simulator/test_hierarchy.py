import stat
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from kms.simulator import der
from kms.simulator.authorities import Role, authority_certificate
from kms.simulator.certificates import Extension
from kms.simulator.chip import simulated_chip_id
from kms.simulator.endorsement_extensions import (
    CSP_ID,
    FMC_SPL,
    HARDWARE_ID,
    SPL_4,
    STRUCT_VERSION,
    vcek_extensions,
    vlek_extensions,
)
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp import tcb
from kms.snp.certificate import ExtensionInvalid
from kms.snp.endorsement import load_der
from kms.snp.product import Product, product_named
from kms.snp.report import Report
from kms.snp.tcb import TcbVersion

YEAR = timedelta(days=365)
# Levels of 128 and above need a leading zero byte.
OLD_LAYOUT = TcbVersion(bootloader=4, tee=1, snp=24, microcode=219)
TURIN_LAYOUT = TcbVersion(fmc=2, bootloader=1, tee=3, snp=4, microcode=129)
PUBLIC_KEY = ec.derive_private_key(7, ec.SECP384R1()).public_key()
CSP = "CN=cc-us-east-2.amazonaws.com"


def levels(product: Product) -> TcbVersion:
    return TURIN_LAYOUT if product is Product.TURIN else OLD_LAYOUT


def common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def vcek(hierarchy: AmdHierarchy, now: datetime, extensions: list[Extension] | None = None) -> bytes:
    return hierarchy.issue_vcek(
        PUBLIC_KEY,
        levels(hierarchy.product),
        simulated_chip_id(hierarchy.product, b"x"),
        not_before=now,
        not_after=now + 7 * YEAR,
        extensions=extensions,
    )


def vlek(hierarchy: AmdHierarchy, now: datetime) -> bytes:
    return hierarchy.issue_vlek(
        PUBLIC_KEY, levels(hierarchy.product), CSP, not_before=now, not_after=now + YEAR
    )


def test_chains_verify_from_leaf_to_root(hierarchy: AmdHierarchy, now: datetime) -> None:
    ark = x509.load_der_x509_certificate(hierarchy.ark.certificate)
    for leaf, authority in ((vcek(hierarchy, now), hierarchy.ask), (vlek(hierarchy, now), hierarchy.asvk)):
        issuer = x509.load_der_x509_certificate(authority.certificate)
        x509.load_der_x509_certificate(leaf).verify_directly_issued_by(issuer)
        issuer.verify_directly_issued_by(ark)
    ark.verify_directly_issued_by(ark)


def test_every_certificate_is_signed_as_amd_signs(hierarchy: AmdHierarchy, now: datetime) -> None:
    for encoded in (vcek(hierarchy, now), hierarchy.ask.certificate, hierarchy.ark.certificate):
        parsed = x509.load_der_x509_certificate(encoded)
        scheme = parsed.signature_algorithm_parameters
        assert isinstance(scheme, padding.PSS)
        assert scheme._salt_length == 48
        assert isinstance(parsed.signature_hash_algorithm, SHA384)


def test_names_say_simulation_and_only_common_names_are_amds(hierarchy: AmdHierarchy, now: datetime) -> None:
    product = hierarchy.product.certificate_name
    expected = {
        f"ARK-{product}": hierarchy.ark.certificate,
        f"SEV-{product}": hierarchy.ask.certificate,
        f"SEV-VLEK-{product}": hierarchy.asvk.certificate,
        "SEV-VCEK": vcek(hierarchy, now),
        "SEV-VLEK": vlek(hierarchy, now),
    }
    for name, encoded in expected.items():
        subject = x509.load_der_x509_certificate(encoded).subject
        assert common_name(subject) == name
        text = subject.rfc4514_string()
        assert "simulator" in text
        assert "Development only" in text
        assert "Advanced Micro Devices" not in text


def test_leaves_have_amds_serial_number_dates_and_key(hierarchy: AmdHierarchy, now: datetime) -> None:
    for encoded, life in ((vcek(hierarchy, now), 7 * YEAR), (vlek(hierarchy, now), YEAR)):
        leaf = x509.load_der_x509_certificate(encoded)
        assert leaf.serial_number == 0
        assert leaf.not_valid_before_utc == now.replace(microsecond=0)
        assert leaf.not_valid_after_utc == (now + life).replace(microsecond=0)
        assert leaf.public_key() == PUBLIC_KEY


def test_authorities_are_valid_at_once_and_for_25_years(hierarchy: AmdHierarchy, now: datetime) -> None:
    for authority in (hierarchy.ark, hierarchy.ask, hierarchy.asvk):
        certificate = x509.load_der_x509_certificate(authority.certificate)
        assert certificate.not_valid_before_utc < now
        assert certificate.not_valid_after_utc > now + 24 * YEAR


def test_the_projects_own_parser_reads_what_was_issued(hierarchy: AmdHierarchy, now: datetime) -> None:
    product = hierarchy.product
    for encoded in (vcek(hierarchy, now), vlek(hierarchy, now)):
        leaf = load_der(encoded)
        assert leaf.reserved_levels_are_zero()
        for component, level in levels(product).components().items():
            assert leaf.level(component) == level
        assert product_named(leaf.product_name().split("-")[0]) is product
    assert len(load_der(vcek(hierarchy, now)).hwid()) == (8 if product is Product.TURIN else 64)
    assert load_der(vlek(hierarchy, now)).csp_id() == CSP


def test_layouts_differ_as_amds_do(hierarchies: Mapping[Product, AmdHierarchy], now: datetime) -> None:
    for product, hierarchy in hierarchies.items():
        parsed = load_der(vcek(hierarchy, now))
        turin = product is Product.TURIN
        assert parsed.has(FMC_SPL) is turin
        assert parsed.has(SPL_4) is not turin
        assert parsed.extensions[STRUCT_VERSION] == (b"\x02\x01\x01" if turin else b"\x02\x01\x00")


class TestForging:
    def test_an_extension_can_be_removed(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        extensions = [each for each in self.genuine(hierarchy) if each.oid != HARDWARE_ID]
        forged = load_der(vcek(hierarchy, now, extensions))
        assert forged.is_signed_by(load_der(hierarchy.ask.certificate))
        assert not forged.has(HARDWARE_ID)

    def test_an_extension_can_be_doubled(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        extensions = self.genuine(hierarchy)
        forged = load_der(vcek(hierarchy, now, [*extensions, extensions[-1]]))
        assert forged.is_signed_by(load_der(hierarchy.ask.certificate))
        assert forged.doubled == HARDWARE_ID

    def test_an_extension_can_hold_anything(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        extensions = [
            each._replace(value=b"") if each.oid.endswith(".3.1") else each
            for each in self.genuine(hierarchy)
        ]
        with pytest.raises(ExtensionInvalid):
            load_der(vcek(hierarchy, now, extensions)).level("bootloader")

    def test_pairs_serve_as_extensions(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        encoded = hierarchy.issue_vlek(
            PUBLIC_KEY,
            levels(hierarchy.product),
            CSP,
            not_before=now,
            not_after=now,
            extensions=[(CSP_ID, b"\x16\x01x")],
        )
        assert dict(load_der(encoded).extensions) == {CSP_ID: b"\x16\x01x"}

    def test_anything_else_of_a_leaf_can_be_changed(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        genuine = hierarchy.vlek_certificate(
            PUBLIC_KEY, levels(hierarchy.product), CSP, not_before=now, not_after=now + YEAR
        )
        forged = load_der(
            replace(genuine, serial_number=5, issuer=hierarchy.ask.name).signed(hierarchy.ask.key)
        )
        assert forged.serial == 5
        assert forged.issuer_name == f"SEV-{hierarchy.product.certificate_name}"
        assert not forged.is_signed_by(load_der(hierarchy.asvk.certificate))

    def test_an_authority_can_lose_its_ca_bit(self, hierarchy: AmdHierarchy, now: datetime) -> None:
        key = hierarchy.ask.key.public_key()
        genuine = authority_certificate(
            hierarchy.product, Role.ASK, key, hierarchy.ark.key.public_key(), now=now
        )
        extensions = tuple(
            each._replace(value=b"\x30\x00")
            if each.oid == ExtensionOID.BASIC_CONSTRAINTS.dotted_string
            else each
            for each in genuine.extensions
        )
        assert load_der(genuine.signed(hierarchy.ark.key)).is_ca
        assert load_der(replace(genuine, extensions=extensions).signed(hierarchy.ark.key)).is_ca is False

    def test_another_hierarchy_of_the_same_names_is_not_this_one(
        self, hierarchy: AmdHierarchy, now: datetime
    ) -> None:
        impostor = AmdHierarchy.generate(hierarchy.product, now=now, rsa_bits=2048)
        ask = x509.load_der_x509_certificate(impostor.ask.certificate)
        with pytest.raises(InvalidSignature):
            ask.verify_directly_issued_by(x509.load_der_x509_certificate(hierarchy.ark.certificate))

    @staticmethod
    def genuine(hierarchy: AmdHierarchy) -> list[Extension]:
        product = hierarchy.product
        return vcek_extensions(product, levels(product), simulated_chip_id(product, b"x"))


class TestFolder:
    def test_a_hierarchy_is_saved_and_loaded(self, hierarchy: AmdHierarchy, tmp_path: Path) -> None:
        asvk = hierarchy.asvk
        hierarchy.save(tmp_path / "new" / "hierarchy")
        loaded = AmdHierarchy.load(tmp_path / "new" / "hierarchy")
        assert loaded.product is hierarchy.product
        for before, after in (
            (hierarchy.ark, loaded.ark),
            (hierarchy.ask, loaded.ask),
            (asvk, loaded.asvk),
        ):
            assert after.certificate == before.certificate
            assert after.key.private_numbers() == before.key.private_numbers()

    def test_keys_are_for_their_owner_alone(self, hierarchy: AmdHierarchy, tmp_path: Path) -> None:
        folder = tmp_path / "hierarchy"
        hierarchy.save(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        keys = list(folder.glob("*.key.pem"))
        assert keys
        assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}

    def test_an_existing_folder_is_not_overwritten(self, hierarchy: AmdHierarchy, tmp_path: Path) -> None:
        folder = tmp_path / "hierarchy"
        hierarchy.save(folder)
        before = (folder / "ark.pem").read_bytes()
        with pytest.raises(OSError, match="hierarchy"):
            hierarchy.save(folder)
        assert (folder / "ark.pem").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["hierarchy"]

    def test_a_key_of_another_certificate_is_refused(
        self, hierarchies: Mapping[Product, AmdHierarchy], tmp_path: Path
    ) -> None:
        hierarchies[Product.MILAN].save(tmp_path / "a")
        (tmp_path / "a" / "ask.key.pem").write_bytes((tmp_path / "a" / "ark.key.pem").read_bytes())
        with pytest.raises(ValueError, match="ask key"):
            AmdHierarchy.load(tmp_path / "a")


def test_the_asvk_is_made_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    known = hierarchies[Product.MILAN]
    fresh = AmdHierarchy(Product.MILAN, ark=known.ark, ask=known.ask, asvk=None)
    made: list[int] = []

    def key(bits: int) -> object:
        made.append(bits)
        return known.ask.key

    monkeypatch.setattr("kms.simulator.hierarchy._new_key", key)
    assert made == []
    assert fresh.asvk is fresh.asvk
    assert made == [2048]


def test_no_private_key_shows_in_a_repr(hierarchy: AmdHierarchy) -> None:
    assert "key" not in repr(hierarchy.ark)
    assert "Authority" not in repr(hierarchy)


@pytest.mark.real_evidence
class TestAgainstGenuineCertificates:
    @pytest.mark.parametrize(
        ("folder", "product"),
        [
            ("milan-v3-vcek-launch", Product.MILAN),
            ("genoa-v3-vcek", Product.GENOA),
            ("turin-v5-vcek", Product.TURIN),
        ],
    )
    def test_vcek_extensions_are_byte_for_byte_those_of_hardware(
        self, real_evidence: Path, folder: str, product: Product
    ) -> None:
        report = Report.parse((real_evidence / folder / "report.bin").read_bytes())
        genuine = x509.load_der_x509_certificate((real_evidence / folder / "vcek.der").read_bytes())
        assert report.chip_id is not None
        ours = vcek_extensions(product, tcb.decode(report.tcbs.reported, product), report.chip_id)
        assert ours == self.extensions(genuine)

    def test_vlek_extensions_are_byte_for_byte_those_of_hardware(self, real_evidence: Path) -> None:
        folder = real_evidence / "milan-v3-vlek"
        report = Report.parse((folder / "report.bin").read_bytes())
        genuine = x509.load_der_x509_certificate((folder / "vlek.der").read_bytes())
        ours = vlek_extensions(Product.MILAN, tcb.decode(report.tcbs.reported, Product.MILAN), CSP)
        assert ours == self.extensions(genuine)

    @pytest.mark.parametrize("product", list(Product), ids=str)
    @pytest.mark.parametrize("service", ["vcek", "vlek"])
    def test_authorities_have_the_form_of_amds(
        self,
        real_evidence: Path,
        hierarchies: Mapping[Product, AmdHierarchy],
        product: Product,
        service: str,
    ) -> None:
        chain_file = real_evidence / "kds" / service / "v1" / product.certificate_name / "cert_chain"
        hierarchy = hierarchies[product]
        authority = hierarchy.ask if service == "vcek" else hierarchy.asvk
        genuine = x509.load_pem_x509_certificates(chain_file.read_bytes())
        for real, ours in zip(genuine, (authority, hierarchy.ark), strict=True):
            parsed = x509.load_der_x509_certificate(ours.certificate)
            assert self.shape(parsed) == self.shape(real)
            assert self.ca_and_key_usage(parsed) == self.ca_and_key_usage(real)
            assert common_name(parsed.subject) == common_name(real.subject)
            assert common_name(parsed.issuer) == common_name(real.issuer)
            assert parsed.serial_number == real.serial_number

    def test_names_have_amds_attributes_in_amds_order_and_encodings(
        self, real_evidence: Path, hierarchies: Mapping[Product, AmdHierarchy], now: datetime
    ) -> None:
        genuine = x509.load_der_x509_certificate((real_evidence / "turin-v5-vcek/vcek.der").read_bytes())
        ours = x509.load_der_x509_certificate(vcek(hierarchies[Product.TURIN], now))
        for real_name, our_name in ((genuine.subject, ours.subject), (genuine.issuer, ours.issuer)):
            assert [(each.oid, each._type) for each in our_name] == [
                (each.oid, each._type) for each in real_name
            ]
        assert genuine.signature_algorithm_oid == ours.signature_algorithm_oid
        assert genuine.serial_number == ours.serial_number

    @staticmethod
    def extensions(certificate: x509.Certificate) -> list[Extension]:
        return [
            Extension(each.oid.dotted_string, each.value.public_bytes(), each.critical)
            for each in certificate.extensions
        ]

    @staticmethod
    def shape(certificate: x509.Certificate) -> list[tuple[str, bool]]:
        return [(each.oid.dotted_string, each.critical) for each in certificate.extensions]

    @staticmethod
    def ca_and_key_usage(certificate: x509.Certificate) -> list[bytes]:
        # As encoded, which the library does not tell: AMD's key usage of an ASK is not DER.
        encoded = certificate.public_bytes(Encoding.DER)
        places = [encoded.index(der.object_identifier(oid)) for oid in ("2.5.29.19", "2.5.29.15")]
        return [encoded[at : at + 10 + encoded[at + 9]] for at in places]

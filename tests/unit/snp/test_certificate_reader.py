"""Our reader of AMD's profile: it takes what AMD writes, and none of the forms that X.509 allows besides."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from kms.simulator import der
from kms.simulator.certificates import Certificate, Extension, simulation_name
from kms.simulator.chip import SimulatedChip
from kms.snp import endorsement
from kms.snp.certificate_reader import read_certificate
from kms.snp.der import DerError
from kms.snp.endorsement import load_der, load_pem, read_with_library
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify
from tests.world import NOW

DAY = timedelta(days=1)
BASIC_CONSTRAINTS = ExtensionOID.BASIC_CONSTRAINTS.dotted_string
KEY_USAGE = ExtensionOID.KEY_USAGE.dotted_string
OF_AMD = "1.3.6.1.4.1.3704.1.77"


def draft(chip: SimulatedChip) -> Certificate:
    """The chip's VCEK certificate, to be changed and signed."""
    return chip.hierarchy.vcek_certificate(
        chip.endorsement.key.public_key(),
        chip.reported_tcb,
        chip.chip_id,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
    )


def signed(chip: SimulatedChip, **changes: object) -> bytes:
    return replace(draft(chip), **changes).signed(chip.hierarchy.ask.key)  # type: ignore[arg-type]


def with_extensions(chip: SimulatedChip, *extensions: Extension) -> bytes:
    return signed(chip, extensions=(*draft(chip).extensions, *extensions))


def name(*attributes: tuple[x509.ObjectIdentifier, str]) -> bytes:
    return x509.Name(
        [x509.NameAttribute(oid, value, _validate=False) for oid, value in attributes]
    ).public_bytes()


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_leaves_and_authorities_are_read_as_the_library_reads_them(chip: SimulatedChip) -> None:
    for data in (*chip.certificates(), *replace(chip, csp_id="Example Cloud").certificates()):
        assert read_certificate(data) == read_with_library(data)


@pytest.mark.parametrize("serial", [0, 1, 0x7F, 0x80, 1 << 158])
def test_any_serial_number_that_is_not_negative(milan: SimulatedChip, serial: int) -> None:
    data = signed(milan, serial_number=serial)
    assert read_certificate(data) == read_with_library(data)
    assert read_certificate(data).serial == serial


@pytest.mark.parametrize("year", [2030, 2049, 2050, 9999])
def test_times_in_both_forms(milan: SimulatedChip, year: int) -> None:
    data = signed(milan, not_after=datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert read_certificate(data) == read_with_library(data)
    assert read_certificate(data).not_after.year == year


@pytest.mark.parametrize(
    "value",
    [b"\x30\x03\x01\x01\xff", b"\x30\x06\x01\x01\xff\x02\x01\x00", b"\x30\x00", b"\x30\x03\x02\x01\x05"],
)
def test_basic_constraints(milan: SimulatedChip, value: bytes) -> None:
    data = with_extensions(milan, Extension(BASIC_CONSTRAINTS, value, critical=True))
    try:
        expected = read_with_library(data)
    except ValueError:  # a path length of what is no CA
        return
    assert read_certificate(data) == expected


@pytest.mark.parametrize("value", ["03020104", "03020204", "03020106", "03020780", "03020100", "030205a0"])
def test_key_usages(milan: SimulatedChip, value: str) -> None:
    data = with_extensions(milan, Extension(KEY_USAGE, bytes.fromhex(value), critical=True))
    assert read_certificate(data) == read_with_library(data)


def test_a_doubled_extension_is_told(milan: SimulatedChip) -> None:
    data = with_extensions(milan, draft(milan).extensions[3], Extension(OF_AMD, b""), Extension(OF_AMD, b"x"))
    assert read_certificate(data) == read_with_library(data)
    assert read_certificate(data).doubled == draft(milan).extensions[3].oid


def test_an_unknown_extension_of_amds_is_kept(milan: SimulatedChip) -> None:
    data = with_extensions(milan, Extension(OF_AMD, b"anything", critical=True))
    assert read_certificate(data) == read_with_library(data)
    assert read_certificate(data).extensions[OF_AMD] == b"anything"


@pytest.mark.parametrize(
    "attributes",
    [
        [(NameOID.COMMON_NAME, "SEV-VCEK"), (NameOID.COMMON_NAME, "SEV-VCEK")],
        [(NameOID.COMMON_NAME, "SEV\nVCEK")],
        [(NameOID.ORGANIZATION_NAME, "nobody")],
        [],
    ],
)
def test_names_that_cannot_be_shown(
    milan: SimulatedChip, attributes: list[tuple[x509.ObjectIdentifier, str]]
) -> None:
    data = signed(milan, subject=name(*attributes))
    assert read_certificate(data) == read_with_library(data)
    assert read_certificate(data).subject_name == ""


def refused_forms(chip: SimulatedChip) -> Iterator[tuple[str, bytes]]:
    genuine = draft(chip)
    whole = genuine.signed(chip.hierarchy.ask.key)
    yield "negative serial", whole.replace(b"\x02\x01\x00", b"\x02\x01\xff", 1)
    yield "long serial", signed(chip, serial_number=1 << 160)
    yield "no extensions", signed(chip, extensions=())
    for oid in ("2.5.29.17", "2.5.29.37", "1.3.6.1.4.1.3704.2.1", "1.3.6.1.4.1.37041.1"):
        yield f"extension {oid}", with_extensions(chip, Extension(oid, b"\x30\x00"))
    for value in ("", "3000ff", "30030101fe", "3003010100", "04020101", "30090101ff020100020100"):
        yield "constraints", with_extensions(chip, Extension(BASIC_CONSTRAINTS, bytes.fromhex(value)))
    for value in ("", "0300", "030100", "03020804", "03020207", "0303070080", "03020001", "04020104"):
        yield "usage", with_extensions(chip, Extension(KEY_USAGE, bytes.fromhex(value)))
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        yield "another key", signed(chip, public_key=spki(key))
    # The library takes this form of an RSA key where it asks for a key, and not in a certificate.
    numbers = chip.hierarchy.ask.key.public_key()
    yield "bare key", signed(chip, public_key=numbers.public_bytes(Encoding.DER, PublicFormat.PKCS1))
    yield "another attribute", signed(chip, subject=name((NameOID.EMAIL_ADDRESS, "x@y.invalid")))
    yield "long attribute", signed(chip, subject=name((NameOID.COMMON_NAME, "x" * 65)))
    yield "country", signed(chip, subject=name((NameOID.COUNTRY_NAME, "USA")))
    two = x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "SEV-VCEK"),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x"),
                ]
            )
        ]
    )
    yield "two in one", signed(chip, subject=two.public_bytes())
    yield "trailing", whole + b"\x00"
    yield "cut", whole[:-1]
    yield "version", whole.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1)
    sha256 = genuine.scheme.algorithm.replace(b"\x04\x02\x02", b"\x04\x02\x01")
    yield "algorithm", signed(chip, scheme=replace(genuine.scheme, algorithm=sha256))
    salt = genuine.scheme.algorithm.replace(der.integer(48), der.integer(20))
    yield "salt", signed(chip, scheme=replace(genuine.scheme, algorithm=salt))
    at = whole.rindex(genuine.scheme.algorithm)
    yield "another algorithm outside", whole[:at] + whole[at:].replace(der.integer(48), der.integer(32))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the library's, about lengths of names
def test_every_other_form_is_refused(milan: SimulatedChip) -> None:
    accepted = []
    for what, data in refused_forms(milan):
        try:
            read_certificate(data)
        except DerError:
            continue
        accepted.append(what)
    assert accepted == []


def test_a_simulated_chip_verifies_without_the_library(
    chip: SimulatedChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates, root = chip.certificates(), chip.hierarchy.ark.pem

    def refuse(_: bytes) -> None:
        raise ValueError("refused")

    endorsement._parse_once.cache_clear()
    monkeypatch.setattr(x509, "load_der_x509_certificate", refuse)
    roots = TrustedRoots.with_development(load_pem(root))
    report = Report.parse(chip.launch(b"m" * 48).report(b"d" * 64))
    revocation = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=7 * DAY)
    outcome = verify(report, [load_der(each) for each in certificates], roots, NOW, revocation)
    endorsement._parse_once.cache_clear()
    assert isinstance(outcome, VerifiedReport)


def test_simulation_names_are_of_amds_form(milan: SimulatedChip) -> None:
    assert read_certificate(signed(milan, subject=simulation_name("SEV-VCEK"))).subject_name == "SEV-VCEK"

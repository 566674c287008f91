"""Which certificates are judged together, and what is wrong with those that are not AMD's."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from kms.checks import failures
from kms.errors import MalformedEvidence
from kms.simulator.authorities import Role, authority_certificate
from kms.simulator.certificates import PSS_SHA384, SignatureScheme, simulation_name
from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import AMD_ROOTS, TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, verify
from tests.world import NOW

Hierarchies = Mapping[Product, AmdHierarchy]
DAY = timedelta(days=1)
WHEN_AVAILABLE = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=timedelta(days=7))


@pytest.fixture(scope="module")
def impostor() -> AmdHierarchy:
    """Another Milan hierarchy with the same names, under a key that nobody pinned."""
    return AmdHierarchy.generate(Product.MILAN, now=NOW - timedelta(days=30), rsa_bits=2048)


def judge(
    chip: SimulatedChip, *certificates: bytes, now: datetime = NOW, roots: AmdHierarchy | None = None
) -> tuple[str, ...]:
    """Verify an honest report of the chip with these certificates, and give the reasons against it."""
    trusted = TrustedRoots.with_development([load_der((roots or chip.hierarchy).ark.certificate)])
    report = Report.parse(chip.launch(b"m" * 48).report(b"d" * 64))
    outcome = verify(report, [load_der(each) for each in certificates], trusted, now, WHEN_AVAILABLE)
    reasons = failures(outcome.checks)
    assert isinstance(outcome, Unverified if reasons else VerifiedReport)
    return reasons


def authority(chip: SimulatedChip, role: Role = Role.ASK, **changes: object) -> bytes:
    """The chip's ASK or ARK, signed by its ARK, with changes to what it says."""
    hierarchy = chip.hierarchy
    subject = hierarchy.ark if role is Role.ARK else hierarchy.ask
    genuine = authority_certificate(
        hierarchy.product,
        role,
        subject.key.public_key(),
        hierarchy.ark.key.public_key(),
        now=NOW - timedelta(days=30),
    )
    extensions = tuple(
        each._replace(value=value) if (value := changes.get(each.oid)) is not None else each  # type: ignore[arg-type]
        for each in genuine.extensions
        if changes.get(each.oid, each.value) != b""
    )
    fields = {name: value for name, value in changes.items() if "." not in name}
    return replace(genuine, extensions=extensions, **fields).signed(hierarchy.ark.key)  # type: ignore[arg-type]


def leaf(chip: SimulatedChip, **changes: object) -> bytes:
    draft = chip.hierarchy.vcek_certificate(
        chip.endorsement.key.public_key(),
        chip.reported_tcb,
        chip.chip_id,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
    )
    return replace(draft, **changes).signed(chip.hierarchy.ask.key)  # type: ignore[arg-type]


def test_any_order_and_doubled_certificates_do(chip: SimulatedChip) -> None:
    certificates = chip.certificates()
    assert judge(chip, *certificates) == ()
    assert judge(chip, *reversed(certificates)) == ()
    assert judge(chip, *certificates, *certificates) == ()


def test_a_pinned_development_root_need_not_be_sent(chip: SimulatedChip) -> None:
    assert judge(chip, *chip.certificates()[:2]) == ()


def test_without_a_leaf(milan: SimulatedChip) -> None:
    assert judge(milan, *milan.certificates()[1:]) == ("endorsement-certificate",)


def test_without_an_authority(milan: SimulatedChip) -> None:
    reasons = judge(milan, milan.certificates()[0])
    assert {"root-unknown", "authority-signature", "leaf-signature", "chain-names", "authority-bits"} <= set(
        reasons
    )


def test_lesson_02_decoys_of_the_same_name_change_nothing(
    milan: SimulatedChip, impostor: AmdHierarchy
) -> None:
    decoys = (impostor.ask.certificate, impostor.ark.certificate)
    genuine = milan.certificates()
    assert judge(milan, *decoys, *genuine) == ()
    assert judge(milan, genuine[0], impostor.ask.certificate, genuine[1], *reversed(decoys), genuine[2]) == ()


def test_lesson_02_a_chain_under_another_root(milan: SimulatedChip, impostor: AmdHierarchy) -> None:
    forged = replace(milan, hierarchy=impostor)
    reasons = judge(forged, *forged.certificates(), roots=milan.hierarchy)
    assert "root-unknown" in reasons or "authority-signature" in reasons
    # The pinned root, by its name, is what such a chain ends at; it did not sign it.
    assert judge(forged, *forged.certificates()[:2], roots=milan.hierarchy) == ("authority-signature",)


def test_lesson_02_the_pinned_root_with_an_authority_of_the_forger(
    milan: SimulatedChip, impostor: AmdHierarchy
) -> None:
    ask = authority_certificate(
        Product.MILAN, Role.ASK, impostor.ask.key.public_key(), impostor.ark.key.public_key(), now=NOW
    ).signed(impostor.ark.key)
    forged = replace(milan, hierarchy=impostor)
    reasons = judge(
        forged, forged.certificates()[0], ask, milan.hierarchy.ark.certificate, roots=milan.hierarchy
    )
    assert reasons == ("authority-signature",)


def test_lesson_02_a_genuine_chain_in_the_store_does_not_hide_an_unknown_root(
    milan: SimulatedChip, impostor: AmdHierarchy
) -> None:
    forged = replace(milan, hierarchy=impostor)
    genuine = milan.certificates()[1:]
    reasons = judge(forged, *genuine, *forged.certificates(), roots=milan.hierarchy)
    assert reasons[0] == "root-unknown"
    assert "leaf-signature" not in reasons


def test_amds_roots_alone_do_not_trust_a_simulation(chip: SimulatedChip) -> None:
    report = Report.parse(chip.launch(b"m" * 48).report(b"d" * 64))
    outcome = verify(
        report, [load_der(each) for each in chip.certificates()], TrustedRoots(), NOW, WHEN_AVAILABLE
    )
    assert "root-unknown" in failures(outcome.checks)


def test_a_root_edited_by_a_stranger(milan: SimulatedChip, impostor: AmdHierarchy) -> None:
    """The pinned key in a certificate that another key signed: its dates are a stranger's word."""
    key = milan.hierarchy.ark.key.public_key()
    edited = authority_certificate(Product.MILAN, Role.ARK, key, key, now=NOW).signed(impostor.ark.key)
    genuine = milan.certificates()
    assert judge(milan, genuine[0], genuine[1], edited) in ((), ("root-signature",))
    trusted = replace(
        TrustedRoots.with_development([load_der(milan.hierarchy.ark.certificate)]), development=()
    )
    report = Report.parse(milan.launch(b"m" * 48).report(b"d" * 64))
    outcome = verify(
        report, [load_der(each) for each in (*genuine[:2], edited)], trusted, NOW, WHEN_AVAILABLE
    )
    assert failures(outcome.checks) == ("root-signature",)


CA = ExtensionOID.BASIC_CONSTRAINTS.dotted_string
USAGE = ExtensionOID.KEY_USAGE.dotted_string


@pytest.mark.parametrize(
    "changes",
    [{CA: b"\x30\x00"}, {CA: b""}, {USAGE: b"\x03\x02\x01\x02"}, {USAGE: b""}],
    ids=["not-a-ca", "no-basic-constraints", "signs-crls-only", "no-key-usage"],
)
@pytest.mark.parametrize("role", [Role.ASK, Role.ARK])
def test_an_authority_that_may_not_sign(milan: SimulatedChip, role: Role, changes: dict[str, bytes]) -> None:
    changed = authority(milan, role, **changes)
    ask = changed if role is Role.ASK else milan.hierarchy.ask.certificate
    trusted = TrustedRoots.with_development([load_der(milan.hierarchy.ark.certificate)])
    if role is Role.ARK:
        trusted = replace(trusted, development=())
    ark = changed if role is Role.ARK else milan.hierarchy.ark.certificate
    report = Report.parse(milan.launch(b"m" * 48).report(b"d" * 64))
    outcome = verify(
        report, [load_der(each) for each in (leaf(milan), ask, ark)], trusted, NOW, WHEN_AVAILABLE
    )
    assert failures(outcome.checks) == ("authority-bits",)


def test_a_leaf_that_signs_leaves(milan: SimulatedChip) -> None:
    """A leaf does not become an authority by its name, nor an authority a leaf."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    forged = leaf(
        milan,
        issuer=simulation_name("SEV-VCEK"),
        public_key=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )
    reasons = judge(milan, forged, milan.certificates()[0], *milan.certificates()[1:])
    assert reasons == ()  # the genuine leaf is there too, and the forged one plays no part
    assert "leaf-signature" in judge(milan, forged, *milan.certificates()[1:])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("SEV-VLEK", "endorsement-certificate"), ("VCEK", "endorsement-certificate"), ("", None)],
)
def test_lesson_03_the_name_of_a_leaf(milan: SimulatedChip, name: str, reason: str | None) -> None:
    forged = leaf(milan, subject=simulation_name(name or "SEV-VCEK"))
    reasons = judge(milan, forged, *milan.certificates()[1:])
    assert reasons == (() if reason is None else (reason,))


def test_a_vlek_under_the_authority_of_vceks(milan: SimulatedChip) -> None:
    provider = replace(milan, csp_id="Example Cloud")
    hierarchy = milan.hierarchy
    draft = hierarchy.vlek_certificate(
        provider.endorsement.key.public_key(),
        milan.reported_tcb,
        "Example Cloud",
        not_before=NOW - DAY,
        not_after=NOW + DAY,
    )
    forged = replace(draft, issuer=hierarchy.ask.name).signed(hierarchy.ask.key)
    reasons = judge(provider, forged, hierarchy.ask.certificate, hierarchy.ark.certificate)
    assert reasons == ("chain-names",)


def test_a_chain_of_another_product(milan: SimulatedChip, simulated_hierarchies: Hierarchies) -> None:
    """A genuine Genoa chain for a key that signed a report which says that it is Milan's."""
    genoa = simulated_hierarchies[Product.GENOA]
    swapped = replace(milan, hierarchy=genoa)
    assert judge(swapped, *swapped.certificates()) == ("product",)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1(), ec.BrainpoolP384R1()])
def test_a_leaf_on_another_curve(milan: SimulatedChip, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    forged = leaf(milan, public_key=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    reasons = judge(milan, forged, *milan.certificates()[1:])
    assert reasons == ("leaf-key", "report-signature")


def test_a_leaf_with_an_rsa_key(milan: SimulatedChip) -> None:
    key = milan.hierarchy.ask.key.public_key()
    forged = leaf(milan, public_key=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert judge(milan, forged, *milan.certificates()[1:]) == ("leaf-key", "report-signature")


@pytest.mark.parametrize("scheme", ["pkcs1", "pss-sha256"])
def test_another_signature_scheme(milan: SimulatedChip, scheme: str) -> None:
    from kms.simulator import der

    null = der.tlv(der.NULL)
    pkcs1 = SignatureScheme(
        algorithm=der.tlv(der.SEQUENCE, der.object_identifier("1.2.840.113549.1.1.12"), null),
        padding=padding.PKCS1v15(),
        hash=SHA384(),
    )
    sha256 = der.tlv(der.SEQUENCE, der.object_identifier("2.16.840.1.101.3.4.2.1"), null)
    mgf = der.tlv(der.SEQUENCE, der.object_identifier("1.2.840.113549.1.1.8"), sha256)
    parameters = der.tlv(
        der.SEQUENCE, der.context(0, sha256), der.context(1, mgf), der.context(2, der.integer(32))
    )
    pss_sha256 = SignatureScheme(
        algorithm=der.tlv(der.SEQUENCE, der.object_identifier("1.2.840.113549.1.1.10"), parameters),
        padding=padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32),
        hash=SHA256(),
    )
    changed = pkcs1 if scheme == "pkcs1" else pss_sha256
    assert judge(milan, leaf(milan, scheme=changed), *milan.certificates()[1:]) == ("leaf-signature",)
    assert judge(milan, leaf(milan, scheme=PSS_SHA384), *milan.certificates()[1:]) == ()


@pytest.mark.parametrize("which", ["leaf", "ask", "ark"])
@pytest.mark.parametrize("when", ["expired", "not-yet"])
def test_lesson_10_the_dates_of_each_certificate(milan: SimulatedChip, which: str, when: str) -> None:
    dates = {
        "expired": {"not_before": NOW - 9 * DAY, "not_after": NOW - timedelta(seconds=1)},
        "not-yet": {"not_before": NOW + timedelta(seconds=1), "not_after": NOW + 9 * DAY},
    }[when]
    certificates = {
        "leaf": leaf(milan, **(dates if which == "leaf" else {})),
        "ask": authority(milan, Role.ASK, **(dates if which == "ask" else {})),
        "ark": authority(milan, Role.ARK, **(dates if which == "ark" else {})),
    }
    trusted = replace(
        TrustedRoots.with_development([load_der(milan.hierarchy.ark.certificate)]), development=()
    )
    report = Report.parse(milan.launch(b"m" * 48).report(b"d" * 64))
    outcome = verify(report, [load_der(each) for each in certificates.values()], trusted, NOW, WHEN_AVAILABLE)
    assert failures(outcome.checks) == ("certificate-validity",)


class TestRoots:
    def test_amds_are_pinned_by_their_public_keys(self) -> None:
        assert {pin.hex()[:8]: product for pin, product in AMD_ROOTS.items()} == {
            "9f056bee": Product.MILAN,
            "429a69c9": Product.GENOA,
            "4f125410": Product.TURIN,
        }

    @pytest.mark.parametrize("name", ["ARK-Bergamo", "ark-Milan", "SEV-Milan", "ARK-", "ARK-Milan-B0"])
    def test_a_development_root_names_its_product(self, milan: SimulatedChip, name: str) -> None:
        named = simulation_name(name)
        with pytest.raises(ValueError, match="ARK-Milan"):
            TrustedRoots.with_development([load_der(authority(milan, Role.ARK, subject=named, issuer=named))])

    def test_a_development_root_is_self_signed(self, milan: SimulatedChip) -> None:
        stranger = rsa.generate_private_key(65537, 2048).public_key()
        spki = stranger.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(ValueError, match="self-signed"):
            TrustedRoots.with_development([load_der(authority(milan, Role.ARK, public_key=spki))])


@pytest.mark.parametrize("which", [0, 1])
def test_a_changed_byte_of_a_certificate_never_verifies_or_fails_otherwise(
    milan: SimulatedChip, which: int
) -> None:
    """Whatever a stranger does to a leaf or an authority: not parsed, or not verified."""
    certificates = list(milan.certificates())
    genuine = certificates[which]
    report = Report.parse(milan.launch(b"m" * 48).report(b"d" * 64))
    trusted = TrustedRoots.with_development([load_der(milan.hierarchy.ark.certificate)])
    survivors, stumbles = [], []
    for position in range(0, len(genuine), 3):
        changed = bytearray(genuine)
        changed[position] ^= 1 << position % 8
        candidates = [*certificates]
        candidates[which] = bytes(changed)
        try:
            outcome = verify(report, [load_der(each) for each in candidates], trusted, NOW, WHEN_AVAILABLE)
        except MalformedEvidence:
            continue
        except Exception as error:  # noqa: BLE001 -- what must not happen is what is looked for
            stumbles.append((position, type(error).__name__))
            continue
        if isinstance(outcome, VerifiedReport):
            survivors.append(position)
    assert (survivors, stumbles) == ([], [])

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.identifiers import AppId
from kms.keys import p256
from kms.keys.apps_ca import AppsCa
from kms.keys.certificates import (
    OID_BOOT_INFO,
    IssuedCertificate,
    certified_key,
    certify,
    check_chain,
    to_pem,
)

NOW = datetime(2026, 11, 22, 12, 0, 0, 987654, tzinfo=UTC)
APP = AppId(b"\x11" * 20)
SECRET = hashlib.sha512(b"an app's secret").digest()
DIGEST = hashlib.sha256(b"boot info").digest()
APPS_CA = AppsCa.from_prf(hashlib.sha512(b"root").digest())
APP_CA = APPS_CA.app_ca(SECRET, APP, 3)
KEY = p256.private_key(b"\7" * 48)
POINT = p256.point_of(KEY.public_key())
OTHER_POINT = p256.point_of(p256.private_key(b"\x08" * 48).public_key())
NAMES = ("payments.internal", "payments")

Chain = tuple[str, ...]


def ones(length: int) -> bytes:
    return b"\xff" * length


def issued(**changes: Any) -> Chain:
    arguments = {
        "app_ca": APP_CA,
        "public_key": POINT,
        "names": NAMES,
        "life": timedelta(days=7),
        "boot_info": DIGEST,
        "now": NOW,
        "random": ones,
        **changes,
    }
    app_ca, public_key = arguments.pop("app_ca"), arguments.pop("public_key")
    return certify(app_ca, public_key, **arguments)


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


CHAIN = issued()
LEAF = load(CHAIN[0])


def extension(kind: type[x509.ExtensionType]) -> Any:
    return LEAF.extensions.get_extension_for_class(kind)


class TestTheCertificate:
    def test_says_nothing_but_what_the_policy_names(self) -> None:
        assert list(LEAF.subject) == []
        names = extension(x509.SubjectAlternativeName)
        assert names.critical, "RFC 5280 section 4.2.1.6: the subject is empty"
        assert [(type(each), each.value) for each in names.value] == [(x509.DNSName, name) for name in NAMES]

    def test_is_good_for_tls_and_for_nothing_else(self) -> None:
        constraints = extension(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca) == (True, False)
        usage = extension(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.digital_signature, usage.value.key_cert_sign, usage.value.crl_sign) == (
            True,
            False,
            False,
        )
        assert list(extension(x509.ExtendedKeyUsage).value) == [
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ]

    def test_lives_for_the_days_of_the_policy_to_the_second(self) -> None:
        """Both ends count: 398 days and one second would be 399 to clients with a limit."""
        assert LEAF.not_valid_before_utc == datetime(2026, 11, 22, 11, 55, tzinfo=UTC)
        assert LEAF.not_valid_after_utc == datetime(2026, 11, 29, 11, 54, 59, tzinfo=UTC)

    def test_has_a_serial_number_of_159_random_bits(self) -> None:
        assert LEAF.serial_number == 2**159 - 1
        assert load(issued(random=lambda length: bytes(length - 1) + b"\2")[0]).serial_number == 1

    def test_carries_the_digest_of_what_the_guest_proved(self) -> None:
        assert OID_BOOT_INFO.dotted_string == "2.25." + str(0x6B2F83A5A46D43AA8D613592FC3AB169)
        carried = LEAF.extensions.get_extension_for_oid(OID_BOOT_INFO)
        assert not carried.critical
        assert carried.value.public_bytes() == bytes([0x04, 32]) + DIGEST

    def test_is_tied_to_its_issuer(self) -> None:
        own = APP_CA.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert extension(x509.AuthorityKeyIdentifier).value.key_identifier == own.digest
        assert LEAF.issuer == APP_CA.certificate.subject
        LEAF.verify_directly_issued_by(APP_CA.certificate)
        assert [load(pem) for pem in CHAIN[1:]] == [APP_CA.certificate, APPS_CA.certificate]

    def test_is_the_same_for_the_same_randomness_and_another_for_other(self) -> None:
        """The signature draws none: what is random comes in by the argument."""
        assert issued() == CHAIN
        assert issued(random=lambda length: b"\1" * length)[0] != CHAIN[0]

    def test_is_recorded_by_fingerprint_and_serial_number(self) -> None:
        der = LEAF.public_bytes(Encoding.DER)
        record = IssuedCertificate.of(CHAIN[0])
        assert record.fingerprint == hashlib.sha256(der).digest()
        assert record.serial == b"\x7f" + b"\xff" * 19


@pytest.mark.parametrize(
    "change",
    [
        {"boot_info": DIGEST[:31]},
        {"boot_info": DIGEST.hex().encode()},
        {"names": ()},
        {"life": timedelta(0)},
        {"life": timedelta(days=-1)},
        {"public_key": POINT[1:]},
        {"public_key": b"\4" + b"\1" * 64},
        {"random": bytes},
    ],
)
def test_nothing_is_issued_of_what_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- some are the library's words
        issued(**change)


class TestAsOthersVerifyIt:
    """By the verifier of `cryptography`, which is no part of OpenSSL."""

    @staticmethod
    def builder(anchor: x509.Certificate, at: datetime = NOW) -> PolicyBuilder:
        return PolicyBuilder().store(Store([anchor])).time(at)

    @pytest.mark.parametrize("anchor", [1, 2], ids=["the app's CA", "the apps' CA"])
    def test_as_client_and_as_server_of_each_name(self, anchor: int) -> None:
        others = [load(CHAIN[1])]
        builder = self.builder(load(CHAIN[anchor]))
        assert builder.build_client_verifier().verify(LEAF, others).chain[0] == LEAF
        for name in NAMES:
            assert builder.build_server_verifier(x509.DNSName(name)).verify(LEAF, others)[0] == LEAF

    def test_not_of_another_name_app_or_time(self) -> None:
        other_app = APPS_CA.app_ca(SECRET, AppId(b"\x12" * 20), 3).certificate
        for store, name, at in (
            (APP_CA.certificate, "internal", NOW),
            (other_app, NAMES[0], NOW),
            (APP_CA.certificate, NAMES[0], NOW + timedelta(days=7)),
            (AppsCa.from_prf(bytes(64)).certificate, NAMES[0], NOW),
        ):
            verifier = self.builder(store, at=at).build_server_verifier(x509.DNSName(name))
            with pytest.raises(VerificationError):
                verifier.verify(LEAF, [load(CHAIN[1])])

    # What `kms.policy.app_reader` admits.
    LABEL = st.from_regex(r"(?!-)[a-z0-9-]{1,63}(?<!-)", fullmatch=True)
    DNS_NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= 253)

    @settings(deadline=None, max_examples=30)
    @given(st.lists(DNS_NAMES, min_size=1, max_size=5))
    def test_whatever_names_a_policy_may_have(self, names: list[str]) -> None:
        chain = issued(names=names)
        check_chain(chain, public_key=POINT, app_id=APP, epoch=3)
        names_of = load(chain[0]).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names_of.get_values_for_type(x509.DNSName) == names


def forged(change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder]) -> x509.Certificate:
    """Give a certificate that the app's CA signs and that it should never have."""
    start = x509.CertificateBuilder().subject_name(x509.Name([])).public_key(KEY.public_key())
    dated = start.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    return APP_CA.issue(change(dated))


def named(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a")]), critical=True)


def as_authority(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return named(builder).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)


OTHER_KMS = AppsCa.from_prf(hashlib.sha512(b"another root").digest())
ALIEN_CA = OTHER_KMS.app_ca(SECRET, APP, 3)
SELF_SIGNED_KEY = ec.generate_private_key(ec.SECP256R1())


def posing_as_the_apps_ca() -> Chain:
    """Give a chain in which the CAs have the right names and another's keys."""
    key = SELF_SIGNED_KEY

    def ca(name: x509.Name, issuer: x509.Name) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer)
        return (
            builder.public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=99))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )

    top = APPS_CA.certificate.subject
    return (CHAIN[0], to_pem(ca(APP_CA.certificate.subject, top)), to_pem(ca(top, top)))


def changed(text: str) -> str:
    """Change the last byte of the signature."""
    certificate = load(text)
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return to_pem(x509.load_der_x509_certificate(bytes(der)))


WRONG: dict[str, Sequence[str]] = {
    "none": (),
    "two": CHAIN[:2],
    "four": (*CHAIN, CHAIN[2]),
    "another order": (CHAIN[0], CHAIN[2], CHAIN[1]),
    "backwards": CHAIN[::-1],
    "the leaf thrice": (CHAIN[0],) * 3,
    "a CA for a leaf": (CHAIN[1], CHAIN[1], CHAIN[2]),
    "a leaf as CA": (CHAIN[0], CHAIN[0], CHAIN[2]),
    "another KMS's chain": issued(app_ca=ALIEN_CA)[:1] + CHAIN[1:],
    "another KMS's app CA": (CHAIN[0], to_pem(ALIEN_CA.certificate), CHAIN[2]),
    "another KMS's apps' CA": (*CHAIN[:2], to_pem(OTHER_KMS.certificate)),
    "CAs that pose": posing_as_the_apps_ca(),
    "changed signature of the leaf": (changed(CHAIN[0]), *CHAIN[1:]),
    "changed signature of the app's CA": (CHAIN[0], changed(CHAIN[1]), CHAIN[2]),
    "changed signature of the apps' CA": (*CHAIN[:2], changed(CHAIN[2])),
    "a leaf that may sign certificates": (to_pem(forged(as_authority)), *CHAIN[1:]),
    "a leaf without names": (to_pem(forged(lambda builder: builder)), *CHAIN[1:]),
    "of another app": issued(app_ca=APPS_CA.app_ca(SECRET, AppId(b"\x12" * 20), 3)),
    "of another epoch": issued(app_ca=APPS_CA.app_ca(SECRET, APP, 4)),
    "another key": issued(public_key=OTHER_POINT),
    "text before": ("# mine\n" + CHAIN[0], *CHAIN[1:]),
    "another behind it": (CHAIN[0] + CHAIN[1], *CHAIN[1:]),
    "other line ends": (CHAIN[0].replace("\n", "\r\n"), *CHAIN[1:]),
    "no PEM": ("x", *CHAIN[1:]),
    "empty": ("", *CHAIN[1:]),
    "not ASCII": ("\u00e9" + CHAIN[0], *CHAIN[1:]),
    "a lone surrogate": ("\ud800", *CHAIN[1:]),
}


@pytest.mark.parametrize("chain", WRONG.values(), ids=WRONG.keys())
def test_a_guest_never_uses_a_chain_that_does_not_fit(chain: Sequence[str]) -> None:
    check_chain(CHAIN, public_key=POINT, app_id=APP, epoch=3)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the words are looked at below
        check_chain(chain, public_key=POINT, app_id=APP, epoch=3)
    assert not any(part in str(caught.value) for part in ("BEGIN", "x509", "0x"))


def test_a_chain_of_another_kms_fits_that_kms() -> None:
    """Which KMS it is, the signature around it says; the chain only has to be one."""
    check_chain(issued(app_ca=ALIEN_CA), public_key=POINT, app_id=APP, epoch=3)


def test_the_key_of_a_chain() -> None:
    assert certified_key(CHAIN) == POINT
    key = ec.generate_private_key(ec.SECP384R1())
    other = x509.CertificateBuilder().subject_name(x509.Name([])).public_key(key.public_key())
    dated = named(other).serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    for wrong in ((), CHAIN[:1], (to_pem(APP_CA.issue(dated)), *CHAIN[1:])):
        with pytest.raises(ValueError, match=r"P-256|chain"):
            certified_key(wrong)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2), st.data())
def test_only_a_value_error_comes_of_a_damaged_chain(index: int, data: st.DataObject) -> None:
    der = bytearray(load(CHAIN[index]).public_bytes(Encoding.DER))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        damaged = to_pem(x509.load_der_x509_certificate(bytes(der)))
    except Exception:  # noqa: BLE001 -- what cannot be loaded cannot be written as PEM either
        return
    chain = (*CHAIN[:index], damaged, *CHAIN[index + 1 :])
    if chain == CHAIN:
        return
    with pytest.raises(ValueError):  # noqa: PT011 -- that it is one is the point
        check_chain(chain, public_key=POINT, app_id=APP, epoch=3)

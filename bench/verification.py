"""Verification of a report in process, beside the primitives that nobody can save."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from bench.pairs import Case, Work, by_turns
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp import endorsement, signatures
from kms.snp.certificate import Certificate
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify

_NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
_REVOCATION: Final = Revocation(mode=RevocationMode.WHEN_AVAILABLE, max_age=timedelta(days=7))
_BATCH: Final = 20  # a verification takes less than a millisecond: too little for one look at the clock


def cases(rounds: int) -> Iterator[Case]:
    """Verify everything that a guest of a Milan chip sends (version 3, VCEK); each case when it is done."""
    hierarchy = AmdHierarchy.generate(Product.MILAN, now=_NOW - timedelta(days=30))
    chip_id = simulated_chip_id(Product.MILAN, b"bench")
    chip = SimulatedChip.typical(hierarchy, chip_id=chip_id, now=_NOW - timedelta(days=1))
    report = chip.launch(b"m" * 48).report(b"d" * 64)
    sent = chip.certificates()
    certificates = [load_der(each) for each in sent]
    roots = TrustedRoots.with_development([certificates[-1]])
    bare = _bare(Report.parse(report), certificates[0])

    def verified(candidates: list[Certificate]) -> None:
        outcome = verify(Report.parse(report), candidates, roots, _NOW, _REVOCATION)
        if not isinstance(outcome, VerifiedReport):
            raise TypeError("an honest report did not verify")

    def from_bytes() -> None:
        verified([load_der(each) for each in sent])

    def from_nothing() -> None:
        _forget()
        from_bytes()

    def parse_first_time() -> None:
        _forget()
        for each in sent:
            load_der(each)

    names = "P-384, SHA-384"
    yield by_turns(
        "report parsed and verified, chain known",
        {"ours": lambda: verified(certificates), names: bare},
        rounds=rounds,
        batch=_BATCH,
        aims={names: 1.25},
    )
    yield by_turns(
        "the same with the certificates as a guest sends them",
        {"ours": from_bytes, names: bare},
        rounds=rounds,
        batch=_BATCH,
        aims={names: 1.25},
    )
    yield by_turns(
        "the same for the first time",
        {"ours": from_nothing, "and 3 RSA-4096": _bare_chain(bare, certificates)},
        rounds=rounds,
        batch=_BATCH,
    )
    yield by_turns("report parsed", {"ours": lambda: Report.parse(report)}, rounds=rounds, batch=_BATCH)
    yield by_turns(
        "three certificates parsed for the first time",
        {"ours": parse_first_time, "cryptography": lambda: _parse_alone(sent)},
        rounds=rounds,
        batch=_BATCH,
    )
    yield by_turns(
        "certificate known",
        {"ours": lambda: load_der(sent[0]).is_signed_by(certificates[1])},
        rounds=rounds,
        batch=_BATCH,
        limit=0.2e-3,
    )


def _forget() -> None:
    endorsement._parse_once.cache_clear()  # noqa: SLF001  # the first time is the first time
    signatures._require_signature.cache_clear()  # noqa: SLF001


def _bare(report: Report, leaf: Certificate) -> Work:
    """Give the work that no verification can save: the hash and the check, with all else lying ready."""
    key, halves = leaf.public_key, report.signature
    if not isinstance(key, ec.EllipticCurvePublicKey) or halves is None:
        raise TypeError("a simulated report is signed by a VCEK")
    signature, signed, scheme = encode_dss_signature(*halves), report.signed_bytes, ec.ECDSA(SHA384())
    return lambda: key.verify(signature, signed, scheme)


def _bare_chain(bare: Work, certificates: list[Certificate]) -> Work:
    leaf, authority, root = certificates
    scheme = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)

    def check_all() -> None:
        bare()
        for certificate, issuer in ((leaf, authority), (authority, root), (root, root)):
            key = issuer.public_key
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(certificate.signature, certificate.signed, scheme, SHA384())

    return check_all


def _parse_alone(sent: tuple[bytes, ...]) -> None:
    for each in sent:
        x509.load_der_x509_certificate(each).public_key()

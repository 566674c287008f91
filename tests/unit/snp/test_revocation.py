"""Lesson 10: what an ARK takes back is refused, by whatever list, and a stale list is never used silently."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from kms.checks import Check, failures
from kms.errors import MalformedEvidence
from kms.simulator.chip import SimulatedChip
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.chain import Chain, build_chain
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.report import Report
from kms.snp.revocation import Revocation, RevocationList, RevocationMode, check_revocation
from kms.snp.revocation_list import load_revocation_list
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, verify
from tests.unit.snp.lists import revocation_list
from tests.world import NOW

DAY = timedelta(days=1)
WEEK = timedelta(days=7)
ALL_MODES = tuple(RevocationMode)
ASKING = (RevocationMode.REQUIRE, RevocationMode.WHEN_AVAILABLE)
VCEK_LINE = Line(Signer.VCEK, Product.MILAN)
VLEK_LINE = Line(Signer.VLEK, Product.MILAN)
SERIAL_OF_ANOTHER = 0x7777

Hierarchies = Mapping[Product, AmdHierarchy]


def made(chip: SimulatedChip, line: Line | None = None, **changes: Any) -> RevocationList:
    """A list by the chip's ARK, issued yesterday, next update tomorrow, that revokes somebody else."""
    members = {"this_update": NOW - DAY, "next_update": NOW + DAY, "serials": (SERIAL_OF_ANOTHER,), **changes}
    return load_revocation_list(revocation_list(chip.hierarchy.ark, **members), line=line)


def chain_of(chip: SimulatedChip) -> Chain:
    leaf, *authorities = (load_der(each) for each in chip.certificates())
    return build_chain(leaf, authorities, TrustedRoots.with_development([authorities[-1]]))


def check(
    chip: SimulatedChip, mode: RevocationMode, *lists: RevocationList, now: datetime = NOW
) -> dict[str, Check]:
    checks = check_revocation(chain_of(chip), Revocation(mode=mode, max_age=WEEK, lists=lists), now)
    return {each.name: each for each in checks}


def refused(
    chip: SimulatedChip, mode: RevocationMode, *lists: RevocationList, now: datetime = NOW
) -> tuple[str, ...]:
    return failures(check(chip, mode, *lists, now=now).values())


def said(chip: SimulatedChip, *lists: RevocationList, now: datetime = NOW) -> str:
    return check(chip, RevocationMode.WHEN_AVAILABLE, *lists, now=now)["revocation-list"].detail


def provider(chip: SimulatedChip) -> SimulatedChip:
    return replace(chip, csp_id="Example Cloud")


@pytest.fixture(scope="module")
def namesake() -> AmdHierarchy:
    """Another Milan hierarchy with the same names."""
    return AmdHierarchy.generate(Product.MILAN, now=NOW - 30 * DAY, rsa_bits=2048)


class TestModes:
    def test_no_list_is_missed_only_where_one_is_required(self, chip: SimulatedChip) -> None:
        assert refused(chip, RevocationMode.REQUIRE) == ("revocation-list-missing",)
        assert refused(chip, RevocationMode.WHEN_AVAILABLE) == ()
        assert "none is known" in said(chip)
        assert refused(chip, RevocationMode.OFF) == ()

    @pytest.mark.parametrize("mode", ALL_MODES)
    def test_a_current_list_that_names_others_pleases_all(
        self, chip: SimulatedChip, mode: RevocationMode
    ) -> None:
        assert refused(chip, mode, made(chip)) == ()

    def test_off_asks_nothing_and_says_so(self, milan: SimulatedChip) -> None:
        checks = check(milan, RevocationMode.OFF, made(milan, serials=(0x10001,)))
        assert list(checks) == ["revocation-list"]
        assert checks["revocation-list"].passed
        assert "not asked" in checks["revocation-list"].detail


class TestRevoked:
    @pytest.mark.parametrize("which", ["authority", "ark"])
    @pytest.mark.parametrize("mode", ASKING)
    def test_an_ask_and_an_ark(self, chip: SimulatedChip, mode: RevocationMode, which: str) -> None:
        certificate = getattr(chain_of(chip), which)
        revoking = made(chip, serials=(SERIAL_OF_ANOTHER, certificate.serial))
        assert refused(chip, mode, revoking) == ("certificate-revoked",)
        assert certificate.subject_name in check(chip, mode, revoking)["not-revoked"].detail
        assert refused(chip, RevocationMode.OFF, revoking) == ()

    @pytest.mark.parametrize("mode", ASKING)
    def test_an_asvk(self, milan: SimulatedChip, mode: RevocationMode) -> None:
        ask, asvk = (chain_of(each).authority for each in (milan, provider(milan)))
        assert ask is not None
        assert asvk is not None
        revoking = made(milan, serials=(asvk.serial,))
        assert refused(provider(milan), mode, revoking) == ("certificate-revoked",)
        assert refused(milan, mode, revoking) == ()
        assert refused(provider(milan), mode, made(milan, serials=(ask.serial,))) == ()

    @pytest.mark.parametrize(
        "reason",
        [x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.superseded],
    )
    def test_whatever_the_reason(self, milan: SimulatedChip, reason: x509.ReasonFlags) -> None:
        entry = [(x509.CRLReason(reason), False), (x509.InvalidityDate(datetime(2020, 1, 1)), False)]  # noqa: DTZ001
        revoking = made(milan, serials=(0x10001,), entry_extensions=entry)
        assert refused(milan, RevocationMode.REQUIRE, revoking) == ("certificate-revoked",)

    def test_a_leaf_cannot_be_named(self, milan: SimulatedChip) -> None:
        """Every leaf has serial number 0, so an entry 0 would be about all of them, or about none."""
        leaf = chain_of(milan).leaf
        assert leaf.serial == 0
        zero = replace(made(milan), serials=frozenset({0}))
        assert refused(milan, RevocationMode.WHEN_AVAILABLE, zero) == ()

    @pytest.mark.parametrize(
        ("this_update", "next_update"),
        [(-400 * DAY, -399 * DAY), (-9 * DAY, -DAY), (DAY, 2 * DAY)],
        ids=["too-old", "stale", "not-valid-yet"],
    )
    @pytest.mark.parametrize("line", [None, VCEK_LINE, VLEK_LINE])
    def test_a_list_of_any_age_and_line_revokes(
        self, milan: SimulatedChip, this_update: timedelta, next_update: timedelta, line: Line | None
    ) -> None:
        revoking = made(
            milan,
            line,
            serials=(0x10001,),
            this_update=NOW + this_update,
            next_update=NOW + next_update,
        )
        clean = made(milan, number=2)
        assert refused(milan, RevocationMode.WHEN_AVAILABLE, revoking) == ("certificate-revoked",)
        for known in ((clean, revoking), (revoking, clean)):
            assert refused(milan, RevocationMode.REQUIRE, *known) == ("certificate-revoked",)


class TestWhoMayRevoke:
    def test_a_stranger_of_the_same_name_cannot(self, milan: SimulatedChip, namesake: AmdHierarchy) -> None:
        forged = load_revocation_list(
            revocation_list(
                namesake.ark, this_update=NOW - DAY, next_update=NOW + DAY, serials=(0x10001, 0x10000)
            )
        )
        renamed = made(milan, serials=(0x10001,), signer=namesake.ark)
        for each in (forged, renamed):
            assert refused(milan, RevocationMode.WHEN_AVAILABLE, each) == ()
            # Nor vouch for anything.
            assert refused(milan, RevocationMode.REQUIRE, each) == ("revocation-list-missing",)
            assert "none is known" in said(milan, each)

    def test_an_ask_cannot(self, milan: SimulatedChip) -> None:
        hierarchy = milan.hierarchy
        own = load_revocation_list(
            revocation_list(hierarchy.ask, this_update=NOW - DAY, next_update=NOW + DAY, serials=(0x10001,))
        )
        in_the_arks_name = made(milan, serials=(0x10001,), signer=hierarchy.ask)
        for each in (own, in_the_arks_name):
            assert refused(milan, RevocationMode.WHEN_AVAILABLE, each) == ()
            assert refused(milan, RevocationMode.REQUIRE, each) == ("revocation-list-missing",)

    def test_the_ark_of_another_product_cannot(
        self, milan: SimulatedChip, simulated_hierarchies: Hierarchies
    ) -> None:
        genoa = simulated_hierarchies[Product.GENOA]
        other = load_revocation_list(
            revocation_list(genoa.ark, this_update=NOW - DAY, next_update=NOW + DAY, serials=(0x10001,))
        )
        assert refused(milan, RevocationMode.WHEN_AVAILABLE, other) == ()
        assert refused(milan, RevocationMode.REQUIRE, other) == ("revocation-list-missing",)

    def test_an_ark_cannot_revoke_under_another_name(
        self, milan: SimulatedChip, simulated_hierarchies: Hierarchies
    ) -> None:
        genoa = simulated_hierarchies[Product.GENOA]
        signed = load_revocation_list(
            revocation_list(
                genoa.ark, this_update=NOW - DAY, next_update=NOW + DAY, signer=milan.hierarchy.ark
            )
        )
        ark = load_der(milan.hierarchy.ark.certificate)
        assert not signed.is_signed_by(ark)
        assert not signed.is_signed_by(load_der(genoa.ark.certificate))

    @pytest.mark.parametrize("mode", ASKING)
    def test_a_root_that_is_not_pinned_says_nothing(self, milan: SimulatedChip, mode: RevocationMode) -> None:
        leaf, *authorities = (load_der(each) for each in milan.certificates())
        chain = build_chain(leaf, authorities, TrustedRoots())
        assert chain.ark is not None
        revocation = Revocation(mode=mode, max_age=WEEK, lists=(made(milan, serials=(0x10001,)),))
        expected = ("revocation-list-missing",) if mode is RevocationMode.REQUIRE else ()
        assert failures(check_revocation(chain, revocation, NOW)) == expected

    @pytest.mark.parametrize(
        "changes",
        [
            {"scheme": padding.PKCS1v15()},
            {"scheme": padding.PSS(padding.MGF1(hashes.SHA256()), 32), "digest": hashes.SHA256()},
            {"scheme": padding.PSS(padding.MGF1(hashes.SHA512()), 64), "digest": hashes.SHA512()},
        ],
        ids=["pkcs1", "sha256", "sha512"],
    )
    def test_another_signature_scheme_signs_nothing(
        self, milan: SimulatedChip, changes: dict[str, Any]
    ) -> None:
        signed = made(milan, serials=(0x10001,), **changes)
        assert not signed.signed_with_pss_sha384
        assert refused(milan, RevocationMode.REQUIRE, signed) == ("revocation-list-missing",)


class TestAge:
    def test_the_last_moments(self, milan: SimulatedChip) -> None:
        """Current from its issue on, stale after its next update, accepted for a week, no second more."""
        known = made(milan)
        require = RevocationMode.REQUIRE
        missing = ("revocation-list-missing",)
        issued, due = known.this_update, known.next_update
        assert due is not None
        second = timedelta(seconds=1)
        for now, expected, words in [
            (issued - second, missing, "not valid yet"),
            (issued, (), "issued"),
            (due, (), "issued"),
            (due + second, (), "stale, accepted until"),
            (due + WEEK, (), "stale, accepted until"),
            (due + WEEK + second, missing, "too old since"),
        ]:
            assert refused(milan, require, known, now=now) == expected
            assert refused(milan, RevocationMode.WHEN_AVAILABLE, known, now=now) == ()
            assert said(milan, known, now=now).startswith(f"revocation list: {words}")
            assert issued.isoformat() in said(milan, known, now=now)

    def test_without_a_next_update_it_is_stale_at_once(self, milan: SimulatedChip) -> None:
        known = replace(made(milan), next_update=None)
        assert "stale" in said(milan, known)
        assert refused(milan, RevocationMode.REQUIRE, known) == ()
        late = known.this_update + WEEK + timedelta(seconds=1)
        assert refused(milan, RevocationMode.REQUIRE, known, now=late) == ("revocation-list-missing",)

    def test_a_next_update_at_the_end_of_time(self, milan: SimulatedChip) -> None:
        known = made(milan, next_update=datetime(9999, 12, 31, tzinfo=UTC))
        assert refused(milan, RevocationMode.REQUIRE, known) == ()
        assert said(milan, known).startswith("revocation list: issued")

    def test_a_list_of_the_other_line_does_not_do(self, milan: SimulatedChip) -> None:
        require, missing = RevocationMode.REQUIRE, ("revocation-list-missing",)
        assert refused(milan, require, made(milan, VLEK_LINE)) == missing
        assert refused(milan, require, made(milan, VCEK_LINE)) == ()
        assert refused(milan, require, made(milan, None)) == ()
        assert refused(provider(milan), require, made(milan, VCEK_LINE)) == missing
        assert refused(provider(milan), require, made(milan, VLEK_LINE)) == ()

    def test_the_newest_of_those_in_force_is_told(self, milan: SimulatedChip) -> None:
        older = made(milan, number=1, this_update=NOW - 3 * DAY)
        newer = made(milan, number=2, this_update=NOW - 2 * DAY)
        future = made(milan, number=3, this_update=NOW + DAY, next_update=NOW + 2 * DAY)
        for known in ((older, newer, future), (future, newer, older)):
            assert newer.this_update.isoformat() in said(milan, *known)
            assert refused(milan, RevocationMode.REQUIRE, *known) == ()


class TestReplacing:
    @pytest.mark.parametrize(
        ("numbers", "later", "replaces"),
        [
            ((2, 1), False, True),  # a number outweighs a date
            ((1, 2), True, False),
            ((1, 1), True, True),
            ((1, 1), False, False),
            ((None, None), True, True),
            ((None, None), False, False),
            ((None, 5), True, True),
            ((None, 5), False, False),
            ((5, None), True, True),
            ((5, None), False, False),
        ],
    )
    def test_by_number_else_by_date(
        self, milan: SimulatedChip, numbers: tuple[int | None, int | None], later: bool, replaces: bool
    ) -> None:
        older = made(milan, number=numbers[1])
        at = older.this_update + (timedelta(seconds=1) if later else -timedelta(seconds=1))
        newer = replace(made(milan, number=numbers[0]), this_update=at)
        assert newer.replaces(older) is replaces
        assert not older.replaces(older)


class TestLoading:
    def test_der_and_pem(self, milan: SimulatedChip) -> None:
        ark = load_der(milan.hierarchy.ark.certificate)
        der = revocation_list(
            milan.hierarchy.ark, this_update=NOW - DAY, next_update=NOW + DAY, serials=(1, 2, 1 << 158)
        )
        loaded = load_revocation_list(der, line=VCEK_LINE)
        assert loaded.is_signed_by(ark)
        assert (loaded.number, loaded.line) == (1, VCEK_LINE)
        assert (loaded.this_update, loaded.next_update) == (NOW - DAY, NOW + DAY)
        assert loaded.serials == {1, 2, 1 << 158}
        assert loaded.issuer == ark.subject
        assert loaded.issuer_name == "ARK-Milan"
        assert loaded.der == der
        text = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
        assert load_revocation_list(text) == replace(loaded, line=None)
        with pytest.raises(MalformedEvidence):
            load_revocation_list(text + text)

    def test_without_a_number(self, milan: SimulatedChip) -> None:
        assert made(milan, number=None).number is None

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x30",
            bytes(100),
            b"\x30" * 70_000,
            b"-----BEGIN X509 CRL-----",
            b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN X509 CRL-----\n" + b"A" * 200_000 + b"\n-----END X509 CRL-----\n",
            b"-----BEGIN X509 CRL-----\n" + b"A" * 100_000 + b"\n-----END X509 CRL-----\n",
        ],
    )
    def test_what_is_no_list_is_malformed(self, data: bytes) -> None:
        with pytest.raises(MalformedEvidence) as refused:
            load_revocation_list(data)
        assert refused.value.reason == "revocation-list-unreadable"

    def test_a_certificate_is_no_list(self, milan: SimulatedChip) -> None:
        with pytest.raises(MalformedEvidence) as refused:
            load_revocation_list(milan.certificates()[1])
        assert refused.value.reason == "revocation-list-unreadable"

    def test_a_list_longer_than_it_may_be(self, milan: SimulatedChip) -> None:
        with pytest.raises(MalformedEvidence, match="longer"):
            made(milan, serials=range(1 << 150, (1 << 150) + 2000))

    UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3704.9"), b"\x05\x00")

    @pytest.mark.parametrize(
        ("extension", "critical"),
        [
            (UNKNOWN, True),
            (x509.DeltaCRLIndicator(1), True),
            (x509.DeltaCRLIndicator(1), False),
            (x509.AuthorityKeyIdentifier(b"12345678", None, None), True),
            *(
                (x509.IssuingDistributionPoint(None, None, *flags), critical)
                for critical in (True, False)
                for flags in [
                    # only user, only CA certificates, only some reasons, indirect, only attributes
                    (True, False, None, False, False),
                    (False, False, None, True, False),
                    (False, False, None, False, True),
                    (False, False, frozenset({x509.ReasonFlags.key_compromise}), False, False),
                ]
            ),
        ],
    )
    def test_a_list_that_may_not_say_all_is_malformed(
        self, milan: SimulatedChip, extension: x509.ExtensionType, critical: bool
    ) -> None:
        with pytest.raises(MalformedEvidence) as refused:
            made(milan, extensions=[(extension, critical)])
        assert refused.value.reason == "revocation-list-unreadable"

    @pytest.mark.parametrize(
        ("extension", "critical"),
        [
            (UNKNOWN, False),
            (x509.AuthorityKeyIdentifier(b"12345678", None, None), False),
            # ASKs, ASVKs and ARKs are CA certificates all.
            (x509.IssuingDistributionPoint(None, None, False, True, None, False, False), True),
            (
                x509.IssuingDistributionPoint(
                    [x509.UniformResourceIdentifier("https://kds.invalid/vcek/v1/Milan/crl")],
                    None,
                    False,
                    False,
                    None,
                    False,
                    False,
                ),
                True,
            ),
        ],
    )
    def test_a_list_that_says_all_is_taken(
        self, milan: SimulatedChip, extension: x509.ExtensionType, critical: bool
    ) -> None:
        assert made(milan, extensions=[(extension, critical)]).serials == {SERIAL_OF_ANOTHER}

    @pytest.mark.parametrize(
        "extension", [UNKNOWN, x509.CertificateIssuer([x509.DNSName("elsewhere.invalid")])]
    )
    def test_an_entry_that_cannot_be_understood(
        self, milan: SimulatedChip, extension: x509.ExtensionType
    ) -> None:
        with pytest.raises(MalformedEvidence) as refused:
            made(milan, entry_extensions=[(extension, True)])
        assert refused.value.reason == "revocation-list-unreadable"
        assert made(milan, entry_extensions=[(self.UNKNOWN, False)]).serials

    @pytest.mark.parametrize("mask", [0x01, 0x80])
    def test_no_byte_can_be_changed(self, milan: SimulatedChip, mask: int) -> None:
        genuine = made(milan, serials=(0x10001,)).der
        ark = load_der(milan.hierarchy.ark.certificate)
        survivors = []
        for position in range(len(genuine)):
            changed = bytearray(genuine)
            changed[position] ^= mask
            try:
                if load_revocation_list(bytes(changed)).is_signed_by(ark):
                    survivors.append(position)
            except MalformedEvidence:
                continue
        assert survivors == []


class TestInAVerification:
    def judge(
        self, chip: SimulatedChip, mode: RevocationMode, *lists: RevocationList
    ) -> VerifiedReport | Unverified:
        certificates = [load_der(each) for each in chip.certificates()]
        roots = TrustedRoots.with_development([certificates[-1]])
        report = Report.parse(chip.launch(b"m" * 48).report(b"d" * 64))
        revocation = Revocation(mode=mode, max_age=WEEK, lists=lists)
        return verify(report, certificates, roots, NOW, revocation)

    def test_an_honest_report(self, chip: SimulatedChip) -> None:
        outcome = self.judge(chip, RevocationMode.REQUIRE, made(chip))
        assert isinstance(outcome, VerifiedReport)
        assert outcome.leaf is outcome.chain.leaf
        names = [each.name for each in outcome.checks]
        # After the chain, before what the certificate says.
        assert names.index("certificate-validity") < names.index("not-revoked") < names.index("product")

    def test_a_revoked_authority(self, chip: SimulatedChip) -> None:
        authority = chain_of(chip).authority
        assert authority is not None
        outcome = self.judge(chip, RevocationMode.WHEN_AVAILABLE, made(chip, serials=(authority.serial,)))
        assert isinstance(outcome, Unverified)
        assert failures(outcome.checks) == ("certificate-revoked",)
        assert not outcome.revocation_list_missing

    def test_a_missing_list_is_told_apart(self, chip: SimulatedChip) -> None:
        outcome = self.judge(chip, RevocationMode.REQUIRE)
        assert isinstance(outcome, Unverified)
        assert outcome.revocation_list_missing
        assert not outcome.stale_leaf
        assert not outcome.authority_missing

    @pytest.mark.parametrize("mode", ASKING)
    def test_a_stale_leaf_is_known_as_such_without_a_list_too(
        self, milan: SimulatedChip, mode: RevocationMode
    ) -> None:
        """The right certificate is sought first, then the list: neither must hide the other."""
        updated = replace(milan, reported_tcb=replace(milan.reported_tcb, microcode=218))
        report = Report.parse(milan.launch(b"m" * 48).report(b"d" * 64))
        # The key of the old TCB in a certificate that names another: authentic but for that.
        stale = milan.hierarchy.vcek_certificate(
            milan.endorsement.key.public_key(),
            updated.reported_tcb,
            milan.chip_id,
            not_before=NOW - DAY,
            not_after=NOW + DAY,
        ).signed(milan.hierarchy.ask.key)
        certificates = [load_der(each) for each in (stale, *milan.certificates()[1:])]
        roots = TrustedRoots.with_development([certificates[-1]])
        revocation = Revocation(mode=mode, max_age=WEEK)
        outcome = verify(report, certificates, roots, NOW, revocation)
        assert isinstance(outcome, Unverified)
        assert outcome.stale_leaf
        assert not outcome.revocation_list_missing
        revoked = replace(revocation, lists=(made(milan, serials=(0x10001,)),))
        outcome = verify(report, certificates, roots, NOW, revoked)
        assert isinstance(outcome, Unverified)
        assert not outcome.stale_leaf

    def test_a_forged_report_is_not_told_to_be_missing_a_list(self, milan: SimulatedChip) -> None:
        certificates = [load_der(each) for each in milan.certificates()]
        raw = bytearray(milan.launch(b"m" * 48).report(b"d" * 64))
        raw[0x90] ^= 1
        outcome = verify(
            Report.parse(bytes(raw)),
            certificates,
            TrustedRoots.with_development([certificates[-1]]),
            NOW,
            Revocation(mode=RevocationMode.REQUIRE, max_age=WEEK),
        )
        assert isinstance(outcome, Unverified)
        assert not outcome.revocation_list_missing
        assert failures(outcome.checks) == ("revocation-list-missing", "report-signature")

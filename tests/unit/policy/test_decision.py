"""Every check of the decision: one guest that is allowed, and for each check one change that denies it."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, KeyDigest, OsImageHash
from kms.keys.names import Scope
from kms.measurement.images import Binding
from kms.policy.compiled import Policy
from kms.policy.decision import Allowed, AppClaim, Ask, Denied, decide
from kms.policy.revision import Revision
from kms.snp.advisories import NO_ADVISORIES
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersions
from tests.unit.policy.samples import (
    APP_ID,
    BOOT_INFO,
    CHIP,
    COMPOSE,
    HASH_ALONE,
    IDENTITY,
    IMAGE_HASH,
    SMT_AND_RESERVED_ONE,
    Case,
    documents,
    key,
    tcb,
)

Change = Callable[[Case], Case]
PAST = "2026-01-01T00:00:00Z"


def case() -> Case:
    return Case(documents())


def written(kind: str, **members: Any) -> Change:
    """Change members of a document; None takes one out."""

    def change(base: Case) -> Case:
        changed = {**base.documents[kind], **members}
        changed = {name: value for name, value in changed.items() if value is not None}
        return replace(base, documents={**base.documents, kind: changed})

    return change


def guest(**fields: Any) -> Change:
    return lambda base: base.guest(**fields)


def context(**fields: Any) -> Change:
    return lambda base: replace(base, context=replace(base.context, **fields))


def asks(*keys: Any, claim: AppClaim | None = None) -> Change:
    return lambda base: replace(base, ask=Ask(keys or base.ask.keys, claim))


def also(*documents: dict[str, Any]) -> Change:
    return lambda base: replace(base, more=(*base.more, *documents))


def both(*changes: Change) -> Change:
    def change(base: Case) -> Case:
        for each in changes:
            base = each(base)
        return base

    return change


def tcbs(**versions: Any) -> Change:
    every = {name: tcb() for name in ("current", "reported", "committed", "launch")}
    return guest(tcb=TcbVersions(**{**every, **versions}))


def policy_bits(*bits: int) -> Change:
    raw = SMT_AND_RESERVED_ONE
    for bit in bits:
        raw ^= 1 << bit
    return guest(guest_policy=GuestPolicy.decode(raw))


V2 = guest(cpuid=None, report_version=2)
VLEK = guest(signer=Signer.VLEK, csp_id="aws-us-east-2", chip_id=None)
OWN_CHIP_KEYS = asks(key("disk"))
ANY_VLEK = both(
    VLEK,
    OWN_CHIP_KEYS,
    written("app", chips="any"),
    written("guest", signers=["vlek"], csp=["aws-us-east-2"]),
)
TURIN_TCB = tcb(fmc=1, bootloader=1, tee=1, snp=4, microcode=81)
TURIN = guest(
    product=Product.TURIN,
    cpuid=Cpuid(0x1A, 0x02, 1),
    tcb=TcbVersions(current=TURIN_TCB, reported=TURIN_TCB, committed=TURIN_TCB, launch=TURIN_TCB),
)
OTHER_LAUNCH_HASH = OsImageHash(b"\x99" * 32)
MASKS = {"launch": "0x2", "current": "0x4"}
HASHED = guest(os_image_hash=HASH_ALONE, image=None)

DSTACK_DISK = key("dstack:disk", Scope.INSTANCE)
ALLOWED: dict[str, Change] = {
    "as it is": lambda base: base,
    "claim agrees": asks(
        claim=AppClaim(app_id=APP_ID, compose_hash=COMPOSE, instance_id=BOOT_INFO.instance_id)
    ),
    "compose any": both(written("app", compose="any"), guest(compose_hash=ComposeHash(b"\x01" * 32))),
    "chip by id": written("app", chips=[CHIP.hex()]),
    "chips any": both(written("app", chips="any"), guest(chip_id=ChipId(b"\x01" * 64))),
    "image by hash": written("app", images=[IMAGE_HASH.hex()]),
    "image by hash alone": HASHED,
    "image by hash alone, largest machine": both(HASHED, guest(vcpus=512, vcpu_type="EPYC-Turin")),
    "vCPU type that measures the same": guest(vcpu_type="EPYC-Milan-v2"),
    "document that agrees": context(document_app=(APP_ID, COMPOSE)),
    "document of this KMS": context(document_kms_identity=IDENTITY),
    "VLEK": ANY_VLEK,
    "exact model": both(
        guest(cpuid=Cpuid(0x19, 0xA0, 2)),
        tcbs(**{name: tcb(microcode=25) for name in ("current", "reported", "committed", "launch")}),
    ),
    "version 2 at the maximum": V2,
    "Turin": TURIN,
    "newer firmware than asked for": tcbs(current=tcb(snp=30), committed=tcb(snp=30)),
    "launch TCB is not checked": tcbs(launch=tcb(snp=0)),
    "provisional firmware allowed": both(
        written("tcb", provisional_firmware="allow"), tcbs(current=tcb(snp=99))
    ),
    "mitigations present": both(
        written("tcb", mitigations=MASKS), guest(launch_mitigations=0x2, current_mitigations=0xC)
    ),
    "report without mitigations where none is wanted": guest(
        launch_mitigations=None, current_mitigations=None
    ),
    "debug in development mode": both(
        written("guest", debug="allow"), policy_bits(19), context(development=True)
    ),
    "dstack's disk": both(asks(DSTACK_DISK), guest(instance_id=InstanceId(b"\x44" * 20))),
    "another advisory": guest(advisories=("AMD-SB-3020",)),
    "advisory of another product": written("app", forbid_advisories=["AMD-SB-3045"]),
    "not assessed, none forbidden": both(written("app", forbid_advisories=None), guest(advisories=None)),
    "firmware minimum exactly": written("guest", firmware_minimum="1.55.22"),
    "SVN and key": both(
        written("guest", guest_svn_minimum=2, id_key_digests=["ab" * 48]),
        guest(guest_svn=2, id_key_digest=KeyDigest(b"\xab" * 48)),
    ),
    "chip in a second, current set": both(
        written("chips", expires_at=PAST),
        also({"kind": "chips", "name": "rack-8", "chips": [CHIP.hex()]}),
        written("app", chips=["rack-7", "rack-8"]),
    ),
    "built-in strict": written("app", guest=None),
}

DENIED: dict[str, tuple[Change, set[str]]] = {
    # who
    "app not listed": (guest(app_id=AppId(b"\x05" * 20)), {"app-not-listed"}),
    "no app bound": (guest(app_id=None), {"app-not-listed"}),
    "app expired": (written("app", expires_at="2026-11-22T12:00:00Z"), {"app-expired"}),
    "app revoked": (written("revoked", apps=[APP_ID.hex()]), {"app-revoked"}),
    "claims another app": (asks(claim=AppClaim(app_id=AppId(b"\x05" * 20))), {"app-claim-disagrees"}),
    "claims another compose": (
        asks(claim=AppClaim(compose_hash=ComposeHash(b"\x05" * 32))),
        {"app-claim-disagrees"},
    ),
    "claims another instance": (
        asks(claim=AppClaim(instance_id=InstanceId(b"\x05" * 16))),
        {"app-claim-disagrees"},
    ),
    "claims an instance that is not bound": (
        both(
            guest(instance_id=None), asks(key("disk"), claim=AppClaim(instance_id=InstanceId(b"\x05" * 16)))
        ),
        {"app-claim-disagrees"},
    ),
    "document of another KMS": (context(document_kms_identity=b"\x02" * 32), {"kms-identity-differs"}),
    "compose not listed": (guest(compose_hash=ComposeHash(b"\x05" * 32)), {"compose-not-listed"}),
    "compose not proven": (
        both(guest(compose_hash=None), written("app", compose="any")),
        {"compose-not-listed"},
    ),
    "empty compose": (written("app", compose=[]), {"compose-not-listed"}),
    "compose revoked": (written("revoked", compose=[COMPOSE.hex()]), {"compose-revoked"}),
    "binding not allowed": (written("app", binding=["cmdline"]), {"binding-not-allowed"}),
    "empty binding": (written("app", binding=[]), {"binding-not-allowed"}),
    "no binding": (guest(binding=None), {"binding-not-allowed", "binding-not-enforced"}),
    "matched image does not enforce": (
        context(enforces=frozenset({Binding.CMDLINE})),
        {"binding-not-enforced"},
    ),
    "document does not enforce": (written("image", enforces=["dstack-mr-config"]), {"binding-not-enforced"}),
    "hash alone never enforces cmdline": (
        both(HASHED, guest(binding=Binding.CMDLINE), context(enforces=frozenset(Binding))),
        {"binding-not-enforced"},
    ),
    "advisory": (guest(advisories=("AMD-SB-3015", "AMD-SB-3020")), {"advisory-forbidden"}),
    "advisories not assessed": (guest(advisories=None), {"advisories-not-assessed"}),
    "advisory open by what is known now": (
        written("app", forbid_advisories=["AMD-SB-3016"]),
        {"advisory-forbidden"},
    ),
    "advisory that no report shows": (
        written("app", forbid_advisories=["AMD-SB-3034"]),
        {"advisory-not-attestable"},
    ),
    "advisory with figures of other CPUs": (
        written("app", forbid_advisories=["AMD-SB-3027"]),
        {"advisory-not-attestable"},
    ),
    "advisory that nobody knows": (
        written("app", forbid_advisories=["AMD-SB-9999"]),
        {"advisory-not-attestable"},
    ),
    "advisory without any data": (context(advisories=NO_ADVISORIES), {"advisory-not-attestable"}),
    "advisories of every kind": (
        both(
            written("app", forbid_advisories=["AMD-SB-3015", "AMD-SB-3016", "AMD-SB-3034"]),
            guest(advisories=("AMD-SB-3015",)),
        ),
        {"advisory-forbidden", "advisory-not-attestable"},
    ),
    "document of another app beside the binding": (
        context(document_app=(AppId(b"\x05" * 20), COMPOSE)),
        {"app-document-disagrees"},
    ),
    "document of another compose beside the binding": (
        context(document_app=(APP_ID, ComposeHash(b"\x05" * 32))),
        {"app-document-disagrees"},
    ),
    # launch
    "image not listed": (written("app", images=[HASH_ALONE.hex()]), {"image-not-listed"}),
    "empty images": (written("app", images=[]), {"image-not-listed"}),
    "another image": (guest(os_image_hash=OTHER_LAUNCH_HASH), {"image-not-listed"}),
    "no image matched": (
        guest(os_image_hash=None, image=None, vcpus=None, vcpu_type=None, guest_features=None),
        {"image-not-listed", "machine-not-allowed"},
    ),
    "image expired": (written("image", expires_at=PAST), {"image-expired"}),
    "image revoked by name": (written("revoked", images=["demo-os-1"]), {"image-revoked"}),
    "image revoked by hash": (written("revoked", images=[IMAGE_HASH.hex()]), {"image-revoked"}),
    "hash alone revoked": (both(HASHED, written("revoked", images=[HASH_ALONE.hex()])), {"image-revoked"}),
    "measurement revoked": (written("revoked", measurements=["33" * 48]), {"measurement-revoked"}),
    "too many vCPUs": (guest(vcpus=65), {"machine-not-allowed"}),
    "vCPU type not listed": (guest(vcpu_type="EPYC-Genoa"), {"machine-not-allowed"}),
    "unknown vCPU type": (guest(vcpu_type="EPYC-Nowhere"), {"machine-not-allowed"}),
    "features not listed": (guest(guest_features=0x21), {"machine-not-allowed"}),
    "hash alone with debug swap": (both(HASHED, guest(guest_features=0x21)), {"machine-not-allowed"}),
    "vCPUs not proven": (guest(vcpus=None), {"machine-not-allowed"}),
    # chip
    "chip not listed": (guest(chip_id=ChipId(b"\x05" * 64)), {"chip-not-listed"}),
    "chip not proven": (guest(chip_id=None), {"chip-not-listed", "chip-unbound"}),
    "empty chips": (written("app", chips=[]), {"chip-not-listed"}),
    "chip in a set that the app does not name": (written("app", chips=["05" * 64]), {"chip-not-listed"}),
    "chips set expired": (written("chips", expires_at=PAST), {"chips-expired"}),
    "chip revoked": (written("revoked", chips=[CHIP.hex()]), {"chip-revoked"}),
    "chip revoked, any chip allowed": (
        both(written("app", chips="any"), written("revoked", chips=[CHIP.hex()])),
        {"chip-revoked"},
    ),
    "chip revoked, VLEK": (
        both(ANY_VLEK, guest(chip_id=CHIP), written("revoked", chips=[CHIP.hex()])),
        {"chip-revoked"},
    ),
    "VLEK with a chips list": (
        both(ANY_VLEK, guest(chip_id=CHIP), written("app", chips=[CHIP.hex()])),
        {"chip-not-listed"},
    ),
    # platform
    "product revoked": (written("revoked", products=["genoa"]), {"product-revoked"}),
    "product not listed": (
        written("tcb", products={"milan": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}),
        {"product-not-listed"},
    ),
    "no product": (written("tcb", products={}), {"product-not-listed"}),
    "only another exact model": (
        written("tcb", products={"genoa/0xa0": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}),
        {"product-not-listed"},
    ),
    "tcb expired": (written("tcb", expires_at=PAST), {"tcb-expired"}),
    "reported too low": (tcbs(reported=tcb(microcode=83)), {"tcb-reported-too-low"}),
    "high microcode hides no old bootloader": (
        tcbs(reported=tcb(bootloader=9, microcode=255)),
        {"tcb-reported-too-low"},
    ),
    "committed too low": (
        both(written("tcb", provisional_firmware="allow"), tcbs(committed=tcb(snp=22))),
        {"tcb-committed-too-low"},
    ),
    "current too low": (
        both(written("tcb", check=["reported", "current"]), tcbs(current=tcb(snp=22), committed=tcb(snp=22))),
        {"tcb-current-too-low"},
    ),
    "launch too low": (
        both(written("tcb", check=["reported", "launch"]), tcbs(launch=tcb(snp=22))),
        {"tcb-launch-too-low"},
    ),
    "version 2 below the line's minimum, as an 0xa0 might be": (
        both(V2, tcbs(reported=tcb(microcode=25))),
        {"tcb-reported-too-low"},
    ),
    "version 2 below another model's minimum": (
        both(
            V2,
            written(
                "tcb",
                products={
                    "genoa": {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84},
                    "genoa/0xa0": {"bootloader": 11, "tee": 0, "snp": 0, "microcode": 0},
                },
            ),
        ),
        {"tcb-reported-too-low", "tcb-committed-too-low"},
    ),
    "turin without fmc": (
        both(
            TURIN,
            tcbs(**{name: replace(TURIN_TCB, fmc=None) for name in ("current", "reported", "committed")}),
        ),
        {"tcb-reported-too-low", "tcb-committed-too-low"},
    ),
    "provisional TCB": (tcbs(current=tcb(snp=24)), {"provisional-firmware"}),
    "provisional build": (
        guest(current_firmware=FirmwareVersion(major=1, minor=55, build=23)),
        {"provisional-firmware"},
    ),
    "platform bit missing": (guest(platform_info=PlatformInfo(0)), {"platform-required-missing"}),
    "platform bit forbidden": (
        both(written("tcb", platform={"forbid": ["tsme"]}), guest(platform_info=PlatformInfo(2))),
        {"platform-forbidden-set"},
    ),
    "launch mitigation missing": (
        both(written("tcb", mitigations={"launch": "0x6"}), guest(launch_mitigations=0x4)),
        {"mitigations-launch-missing"},
    ),
    "mitigations of a report without them": (
        both(written("tcb", mitigations=MASKS), guest(launch_mitigations=None, current_mitigations=None)),
        {"mitigations-launch-missing", "mitigations-current-missing"},
    ),
    # guest
    "guest document expired": (written("guest", expires_at=PAST), {"guest-expired"}),
    "vmpl": (guest(vmpl=1), {"vmpl-not-allowed"}),
    "report version": (written("guest", report_versions=[3]), {"report-version-not-allowed"}),
    "signer": (both(ANY_VLEK, written("guest", signers=["vcek"])), {"signer-not-allowed"}),
    "VLEK under strict": (
        both(ANY_VLEK, written("app", chips="any", guest=None)),
        {"signer-not-allowed", "csp-not-allowed"},
    ),
    "csp": (both(ANY_VLEK, guest(csp_id="another")), {"csp-not-allowed"}),
    "csp not proven": (both(ANY_VLEK, guest(csp_id=None)), {"csp-not-allowed"}),
    "debug": (policy_bits(19), {"debug-enabled"}),
    "debug in development mode, not allowed": (
        both(policy_bits(19), context(development=True)),
        {"debug-enabled"},
    ),
    "debug allowed outside development mode": (
        both(written("guest", debug="allow"), policy_bits(19)),
        {"debug-allowed"},
    ),
    "debug allowed but not used, outside development mode": (
        written("guest", debug="allow"),
        {"debug-allowed"},
    ),
    "migration agent": (policy_bits(18), {"policy-migration-agent"}),
    "smt": (written("guest", smt="forbid"), {"policy-smt"}),
    "single socket": (written("guest", single_socket="require"), {"policy-single-socket"}),
    "cxl": (both(written("guest", cxl="forbid"), policy_bits(21)), {"policy-cxl"}),
    "ciphertext hiding": (written("guest", ciphertext_hiding="require"), {"policy-ciphertext-hiding"}),
    "aes-256-xts": (written("guest", aes_256_xts="require"), {"policy-aes-256-xts"}),
    "rapl": (written("guest", rapl_disabled="require"), {"policy-rapl-disabled"}),
    "page swap": (written("guest", page_swap_disabled="require"), {"policy-page-swap-disabled"}),
    "firmware build": (
        written("guest", firmware_minimum="1.55.23"),
        {"firmware-current-too-low", "firmware-committed-too-low"},
    ),
    "committed firmware": (
        both(
            written("tcb", provisional_firmware="allow"),
            guest(committed_firmware=FirmwareVersion(major=1, minor=50, build=99)),
        ),
        {"firmware-committed-too-low"},
    ),
    "guest svn": (
        both(
            written("guest", guest_svn_minimum=2, author_key_digests=["ab" * 48]),
            guest(guest_svn=1, author_key_digest=KeyDigest(b"\xab" * 48)),
        ),
        {"guest-svn-too-low"},
    ),
    "id key": (written("guest", id_key_digests=["ab" * 48]), {"id-key-not-allowed"}),
    "author key": (written("guest", author_key_digests=[]), {"author-key-not-allowed"}),
    # keys
    "dstack's key without its compatibility": (
        both(asks(key("dstack:env")), written("app", compat=None, keys=["disk"])),
        {"key-not-allowed", "dstack-not-enabled"},
    ),
    "dstack's disk, an instance id that is not of dstack": (
        both(asks(DSTACK_DISK), guest(instance_id=InstanceId(b"\x44" * 32))),
        {"dstack-id-length"},
    ),
    "dstack's disk, instance unbound": (
        both(asks(DSTACK_DISK), guest(instance_id=None)),
        {"instance-unbound"},
    ),
    "dstack's key that is not listed": (asks(key("dstack:k256")), {"key-not-allowed"}),
    "no key": (lambda base: replace(base, ask=Ask(())), {"no-key-asked"}),
    "key not allowed": (asks(key("disk"), key("custom:cache/a")), {"key-not-allowed"}),
    "scope not allowed": (asks(key("custom:db/main", Scope.CHIP)), {"key-not-allowed"}),
    "empty keys": (both(asks(key("disk")), written("app", keys=[], tls=None)), {"key-not-allowed"}),
    "instance unbound": (guest(instance_id=None), {"instance-unbound"}),
    "chip unbound": (
        both(ANY_VLEK, guest(chip_id=CHIP), asks(key("disk", Scope.CHIP))),
        {"chip-unbound"},
    ),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED.keys())
def test_allows(change: Change) -> None:
    decision = change(case()).decide()
    assert isinstance(decision, Allowed), decision.reasons
    assert all(check.passed for check in decision.checks)


@pytest.mark.parametrize(("change", "reasons"), DENIED.values(), ids=DENIED.keys())
def test_denies_for_exactly_this(change: Change, reasons: set[str]) -> None:
    decision = change(case()).decide()
    assert isinstance(decision, Denied)
    assert set(decision.reasons) == reasons
    # Guests are told the codes: no value may be in them (field lesson 34).
    assert all(re.fullmatch(r"[a-z0-9-]+", check.reason) for check in decision.checks)


def test_every_reason_code_has_a_case() -> None:
    codes = {check.reason for change in ALLOWED.values() for check in change(case()).decide().checks}
    tested = {reason for _, reasons in DENIED.values() for reason in reasons}
    assert codes <= tested


def test_a_denial_carries_every_reason_and_the_checks_that_passed() -> None:
    change = both(
        guest(vmpl=2, chip_id=ChipId(b"\x05" * 64), compose_hash=ComposeHash(b"\x05" * 32)),
        asks(key("env"), key("custom:x")),
    )
    decision = change(case()).decide()
    allowed = asks(key("env"), key("custom:db/x"))(case()).decide()
    assert isinstance(decision, Denied)
    assert decision.reasons == (
        "compose-not-listed",
        "chip-not-listed",
        "vmpl-not-allowed",
        "key-not-allowed",
    )
    assert [check.name for check in decision.checks] == [check.name for check in allowed.checks]


def test_an_unlisted_app_is_still_told_what_is_revoked() -> None:
    change = both(
        guest(app_id=AppId(b"\x05" * 32)),
        written("revoked", chips=[CHIP.hex()], products=["genoa"], measurements=["33" * 48]),
    )
    decision = change(case()).decide()
    assert isinstance(decision, Denied)
    assert decision.reasons == ("app-not-listed", "measurement-revoked", "chip-revoked", "product-revoked")


def test_the_empty_policy_denies() -> None:
    """Field lessons 22 and 24: no default lets any genuine guest in."""
    decision = decide(Policy(Revision.from_canonical(b"[]")), BOOT_INFO, case().ask, case().context)
    assert isinstance(decision, Denied)
    assert "app-not-listed" in decision.reasons


def test_only_a_decision_makes_an_allowed() -> None:
    allowed = case().decide()
    assert isinstance(allowed, Allowed)
    with pytest.raises(ValueError, match="made_by"):
        replace(allowed, boot_info=BOOT_INFO)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Allowed(
            boot_info=BOOT_INFO,
            app=allowed.app,
            ask=allowed.ask,
            revision=allowed.revision,
            checks=allowed.checks,
            made_by=object(),
        )


def test_details_name_components_for_operators() -> None:
    decision = tcbs(reported=tcb(bootloader=9, microcode=83))(case()).decide()
    detail = next(check.detail for check in decision.checks if check.name == "tcb-reported")
    assert detail == "reported bootloader 9 is below 10; reported microcode 83 is below 84"


def test_expiry_is_judged_by_the_clock_that_was_given() -> None:
    change = both(
        written("app", expires_at="2026-11-22T12:00:00Z"),
        context(now=datetime(2026, 11, 22, 11, 59, 59, tzinfo=UTC)),
    )
    assert isinstance(change(case()).decide(), Allowed)


def test_the_name_of_a_check_says_which_one_it_is() -> None:
    names = [check.name for check in case().decide().checks]
    # Each key has its own two checks; every other name stands once, in the evidence's checks too.
    once = [name for name in names if name not in {"key-allowed", "key-derivable"}]
    assert len(once) == len(set(once))

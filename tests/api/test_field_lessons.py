"""What went wrong elsewhere, tried here as a client: one test or more for each numbered field lesson.

Lessons that no client can reach are in the unit tests, under the same names.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kms.database.collateral import CollateralDatabase
from kms.encoding import b64url, from_base64
from kms.http.limits import MAX_BODY, AddressLimiter
from kms.identifiers import ChipId
from kms.keys.envelope import EnvelopeRejected
from kms.keys.identity import Identity
from kms.keys.opening import RecipientKey
from kms.keys.sealing import Suite
from kms.measurement.launch import os_image_hash
from kms.policy.findings import PolicyInvalid
from kms.ports import StoredRevocationList
from kms.request import report_data
from kms.simulator.authorities import Authority
from kms.simulator.certificate_table import certificate_table
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.endorsement_extensions import (
    BOOTLOADER_SPL,
    CSP_ID,
    FMC_SPL,
    HARDWARE_ID,
    MICROCODE_SPL,
    PRODUCT_NAME,
    SNP_SPL,
    TEE_SPL,
)
from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.machine import Collateral, SimulatedMachine
from kms.snp.certificate_table import ARK, ASK, REVOCATION_LIST, VCEK
from kms.snp.endorsement import load_der
from kms.snp.kds_paths import Line
from kms.snp.product import Cpuid
from kms.snp.revocation import RevocationMode, load_revocation_list
from kms.snp.roots import TrustedRoots
from tests.changer import put
from tests.world import (
    APP_ID,
    NOW,
    Answer,
    Product,
    World,
    app_document,
    describe_image,
    document,
    image_document,
    open_answer,
    open_world,
    resigned,
    tampered,
    tcb_document,
)

Hierarchies = Mapping[Product, AmdHierarchy]
P384_ORDER = (
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
)


async def ask_resigned(world: World, **fields: Any) -> Answer:
    """Ask with report fields changed before the genuine chip signs."""
    request = await world.request()
    return await world.post(request, resigned(world.machine, report_data(request), **fields))


async def ask_with_certificates(
    world: World, *certificates: bytes, machine: SimulatedMachine | None = None
) -> Answer:
    """Ask with these certificates instead of the genuine ones."""
    request = await world.request()
    evidence = (machine or world.machine).evidence(report_data(request), collateral=Collateral.NONE)
    return await world.post(request, {**evidence, "certificates": [b64url(each) for each in certificates]})


def leaf(world: World, chip: SimulatedChip | None = None, **changes: Any) -> bytes:
    """A genuinely signed VCEK certificate for the chip's key, with changes to what it says."""
    chip = chip or world.chip
    hierarchy = chip.hierarchy
    extensions = changes.pop("extensions", None)
    draft = hierarchy.vcek_certificate(
        chip.endorsement.key.public_key(),
        changes.pop("tcb", chip.reported_tcb),
        changes.pop("chip_id", chip.chip_id),
        not_before=changes.pop("not_before", NOW - timedelta(days=1)),
        not_after=changes.pop("not_after", NOW + timedelta(days=365)),
    )
    if extensions is not None:
        changes["extensions"] = tuple(extensions(list(draft.extensions)))
    return replace(draft, **changes).signed(hierarchy.ask.key)


def authorities(world: World) -> tuple[bytes, bytes]:
    return world.chip.hierarchy.ask.certificate, world.chip.hierarchy.ark.certificate


class TestLesson01:
    async def test_lesson_01_a_forged_report_is_refused(self, world: World) -> None:
        for offset in (0x004, 0x010, 0x030, 0x040, 0x090, 0x0C0, 0x140, 0x1A0, 0x1E8):
            request = await world.request()
            report = bytearray(world.machine.guest.report(report_data(request)))
            report[offset] ^= 1
            evidence = {**world.machine.evidence(report_data(request)), "report": b64url(bytes(report))}
            answer = await world.post(request, evidence)
            assert (answer.status, answer.code) == (403, "evidence-untrusted")
            assert "report-signature" in answer.reasons
        assert await world.spent() == 0

    async def test_lesson_01_a_report_signed_by_the_forgers_key_is_refused(self, world: World) -> None:
        genuine = world.chip.certificates()
        forger = SimulatedMachine.launch(
            replace(world.chip, secret=b"forger".ljust(32)), world.description, app_document=document()
        )
        answer = await ask_with_certificates(world, *genuine, machine=forger)
        answer.check_refused(403, "evidence-untrusted", "report-signature")


class TestLesson02:
    @pytest.mark.parametrize("collateral", [Collateral.TABLE, Collateral.LIST])
    async def test_lesson_02_root_from_the_evidence_is_not_trusted(
        self, world: World, collateral: Collateral
    ) -> None:
        impostor = AmdHierarchy.generate(Product.MILAN, now=NOW - timedelta(days=30), rsa_bits=2048)
        machine = world.launch(chip=replace(world.chip, hierarchy=impostor))
        request = await world.request()
        answer = await world.post(request, machine.evidence(report_data(request), collateral=collateral))
        assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert await world.spent() == 0

    async def test_lesson_02_decoys_of_the_same_names_change_nothing(self, world: World) -> None:
        impostor = AmdHierarchy.generate(Product.MILAN, now=NOW - timedelta(days=30), rsa_bits=2048)
        decoys = (impostor.ask.certificate, impostor.ark.certificate)
        answer = await ask_with_certificates(world, *decoys, *world.chip.certificates(), *decoys)
        assert answer.status == 200

    async def test_lesson_02_an_ask_that_the_pinned_root_did_not_sign(self, world: World) -> None:
        impostor = AmdHierarchy.generate(Product.MILAN, now=NOW - timedelta(days=30), rsa_bits=2048)
        forged = replace(world.chip, hierarchy=impostor)
        answer = await ask_with_certificates(
            world,
            forged.certificates()[0],
            impostor.ask.certificate,
            world.chip.hierarchy.ark.certificate,
            machine=world.launch(chip=forged),
        )
        answer.check_refused(403, "evidence-untrusted", "authority-signature")


class TestLesson03:
    async def test_lesson_03_the_certificate_of_another_chip(self, world: World) -> None:
        other = simulated_chip_id(Product.MILAN, b"another chip")
        answer = await ask_with_certificates(world, leaf(world, chip_id=other), *authorities(world))
        answer.check_refused(403, "evidence-untrusted", "hwid-mismatch")

    async def test_lesson_03_chips_that_differ_in_the_last_byte(self, world: World) -> None:
        other = ChipId(world.chip.chip_id[:-1] + bytes([world.chip.chip_id[-1] ^ 1]))
        answer = await ask_with_certificates(world, leaf(world, chip_id=other), *authorities(world))
        answer.check_refused(403, "evidence-untrusted", "hwid-mismatch")

    @pytest.mark.parametrize("tail", [b"", b"\x01".rjust(56, b"\x00")])
    async def test_lesson_03_turins_chip_id_has_eight_bytes(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies, tail: bytes
    ) -> None:
        async with open_world(tmp_path, simulated_hierarchies[Product.TURIN]) as world:
            chip_id = world.chip.chip_id[:8] + tail.ljust(56, b"\x00")
            answer = await ask_resigned(world, chip_id=chip_id)
            if tail:
                answer.check_refused(403, "evidence-untrusted", "hwid-mismatch")
            else:
                assert answer.status == 200

    async def test_lesson_03_a_zero_chip_id(self, world: World) -> None:
        answer = await ask_resigned(world, chip_id=bytes(64))
        answer.check_refused(403, "evidence-untrusted", "chip-id-zero")


@pytest.mark.parametrize("oid", [BOOTLOADER_SPL, TEE_SPL, SNP_SPL, MICROCODE_SPL])
class TestLesson04:
    async def test_lesson_04_a_tcb_extension_that_is_missing(self, world: World, oid: str) -> None:
        forged = leaf(world, extensions=lambda all_: [each for each in all_ if each.oid != oid])
        answer = await ask_with_certificates(world, forged, *authorities(world))
        answer.check_refused(403, "evidence-untrusted", "certificate-tcb-extensions")

    async def test_lesson_04_a_tcb_extension_that_occurs_twice(self, world: World, oid: str) -> None:
        forged = leaf(world, extensions=lambda all_: [*all_, next(each for each in all_ if each.oid == oid)])
        answer = await ask_with_certificates(world, forged, *authorities(world))
        assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert "certificate-tcb-extensions" in answer.reasons

    async def test_lesson_04_a_tcb_extension_that_differs_from_the_report(
        self, world: World, oid: str
    ) -> None:
        component = {
            BOOTLOADER_SPL: "bootloader", TEE_SPL: "tee", SNP_SPL: "snp", MICROCODE_SPL: "microcode",
        }[oid]  # fmt: skip
        level = getattr(world.chip.reported_tcb, component)
        higher = replace(world.chip.reported_tcb, **{component: level + 1})
        answer = await ask_with_certificates(world, leaf(world, tcb=higher), *authorities(world))
        # Also above the current TCB: both are said.
        answer.check_refused(403, "evidence-untrusted", "certificate-tcb", "certificate-not-above-current")


class TestLesson05:
    async def test_lesson_05_a_big_endian_signature(self, world: World) -> None:
        request = await world.request()
        report = world.machine.guest.report(report_data(request))
        r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
        rewritten = (r.to_bytes(48, "big") + s.to_bytes(48, "big")).ljust(144, b"\x00")
        answer = await world.post(request, tampered(world.machine, report_data(request), {0x2A0: rewritten}))
        answer.check_refused(400, "malformed-evidence", "signature-range")

    async def test_lesson_05_upper_bytes_are_not_ignored(self, world: World) -> None:
        for offset in (*range(0x2A0 + 48, 0x2A0 + 72, 8), *range(0x2E8 + 48, 0x2E8 + 72, 8)):
            request = await world.request()
            evidence = tampered(world.machine, report_data(request), {offset: b"\x01"})
            (await world.post(request, evidence)).check_refused(400, "malformed-evidence", "signature-range")

    @pytest.mark.parametrize("value", [0, P384_ORDER, P384_ORDER + 1, 2**384 - 1])
    @pytest.mark.parametrize("offset", [0x2A0, 0x2E8])
    async def test_lesson_05_r_and_s_out_of_range(self, world: World, offset: int, value: int) -> None:
        request = await world.request()
        evidence = tampered(world.machine, report_data(request), {offset: value.to_bytes(72, "little")})
        (await world.post(request, evidence)).check_refused(400, "malformed-evidence", "signature-range")


class TestLesson06:
    async def test_lesson_06_bits_without_a_name_are_signed_and_kept(self, world: World) -> None:
        answer = await ask_resigned(world, platform_info=1 << 40 | 0x25)
        assert answer.status == 200
        assert answer.body["boot_info"]["platform_info"]["raw"] == hex(1 << 40 | 0x25)
        request = await world.request()
        evidence = tampered(world.machine, report_data(request), {0x045: b"\x01"})
        (await world.post(request, evidence)).check_refused(403, "evidence-untrusted", "report-signature")


class TestLesson07:
    async def test_lesson_07_a_high_component_does_not_hide_a_low_one(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        def old_bootloader(chip: SimulatedChip) -> SimulatedChip:
            mixed = replace(chip.reported_tcb, bootloader=3, microcode=255)
            return replace(chip, current_tcb=mixed, reported_tcb=mixed, committed_tcb=mixed)

        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], make_chip=old_bootloader
        ) as world:
            minimum = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
            await world.apply_changed(tcb={"products": {"milan": minimum}})
            (await world.ask()).check_refused(
                403, "policy-denied", "tcb-reported-too-low", "tcb-committed-too-low"
            )

    async def test_lesson_07_newer_firmware_is_welcome(self, world: World) -> None:
        await world.apply_changed(
            tcb={"products": {"milan": {"bootloader": 3, "tee": 0, "snp": 20, "microcode": 200}}}
        )
        assert (await world.ask()).status == 200

    async def test_lesson_07_four_equal_values_are_not_up_to_date(self, world: World) -> None:
        levels = {**world.chip.reported_tcb.components(), "microcode": 220}
        await world.apply_changed(tcb={"products": {"milan": levels}})
        (await world.ask()).check_refused(
            403, "policy-denied", "tcb-reported-too-low", "tcb-committed-too-low"
        )


class TestLesson08:
    async def test_lesson_08_reported_is_judged_not_current(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        """The host reports an older TCB than it runs: its key is the older one's, and so is the judgement."""

        def older(chip: SimulatedChip) -> SimulatedChip:
            return replace(chip, reported_tcb=replace(chip.reported_tcb, snp=20))

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], make_chip=older) as world:
            assert (await world.ask()).status == 200
            minimum = dict(world.chip.current_tcb.components())
            await world.apply_changed(tcb={"products": {"milan": minimum}})
            (await world.ask()).check_refused(403, "policy-denied", "tcb-reported-too-low")

    async def test_lesson_08_a_certificate_for_the_current_tcb_is_not_for_the_reported_one(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        def older(chip: SimulatedChip) -> SimulatedChip:
            return replace(chip, reported_tcb=replace(chip.reported_tcb, snp=20))

        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], make_chip=older) as world:
            forged = leaf(world, tcb=world.chip.current_tcb)
            answer = await ask_with_certificates(world, forged, *authorities(world))
            answer.check_refused(403, "evidence-untrusted", "certificate-tcb")


class TestLesson09:
    @pytest.mark.parametrize(
        ("product", "version"),
        [
            (Product.MILAN, 2), (Product.MILAN, 3), (Product.MILAN, 4), (Product.MILAN, 5),
            (Product.GENOA, 2), (Product.GENOA, 3), (Product.GENOA, 4), (Product.GENOA, 5),
            (Product.TURIN, 2), (Product.TURIN, 3), (Product.TURIN, 4), (Product.TURIN, 5),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("csp", [None, "Example Cloud"])
    async def test_lesson_09_every_version_product_and_signer(
        self,
        tmp_path: Path,
        simulated_hierarchies: Hierarchies,
        product: Product,
        version: int,
        csp: str | None,
    ) -> None:
        def change(chip: SimulatedChip) -> SimulatedChip:
            return replace(chip, report_version=version, csp_id=csp)

        async with open_world(tmp_path, simulated_hierarchies[product], make_chip=change) as world:
            if csp is not None:
                guest = {"signers": ["vlek"], "csp": [csp]}
                await world.apply_changed(app={"chips": "any", "guest": "g"}, guest=guest)
            answer = await world.ask()
            assert answer.status == 200, answer.body
            boot_info = answer.body["boot_info"]
            assert boot_info["product"] == product.value
            assert boot_info["report_version"] == version
            assert boot_info["signer"] == ("vcek" if csp is None else "vlek")
            assert boot_info["csp_id"] == csp
            assert (boot_info["cpuid"] is None) is (version == 2)

    @pytest.mark.parametrize(
        "cpuid", [Cpuid(0x19, 0x11, 0), Cpuid(0x1A, 0x02, 0), Cpuid(0x17, 0x31, 0), Cpuid(0, 0, 0)]
    )
    async def test_lesson_09_a_cpuid_of_another_product(self, world: World, cpuid: Cpuid) -> None:
        answer = await ask_resigned(world, cpuid=cpuid)
        assert answer.status in {400, 403}
        assert answer.code in {"malformed-evidence", "evidence-untrusted"}
        assert answer.reasons in (["product"], ["tcb-reserved"])

    async def test_lesson_09_the_product_is_not_the_guests_word(self, world: World) -> None:
        request = await world.request()
        evidence = {**world.machine.evidence(report_data(request)), "product": "genoa"}
        (await world.post(request, evidence)).check_refused(400, "malformed-evidence")

    @pytest.mark.parametrize(
        "hint",
        [{"vcpu_signature": "0xa10f11"}, {"vcpu_type": "EPYC-Genoa"}, {"vcpu_type": "EPYC-Turin"}],
        ids=str,
    )
    async def test_lesson_09_nor_what_a_launch_hint_says(self, world: World, hint: dict[str, str]) -> None:
        request = await world.request()
        evidence = {**world.machine.evidence(report_data(request)), "launch": hint}
        answer = await world.post(request, evidence)
        assert answer.status == 200, answer.body
        assert answer.body["boot_info"]["product"] == "milan"
        assert answer.body["boot_info"]["vcpu_type"] == "EPYC-v4"

    async def test_lesson_09_nor_what_a_hosts_table_says_of_the_cpu(self, world: World) -> None:
        """Some hosts put the guest's own CPUID there, which is the one that the hypervisor made up."""
        extra = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")  # ExtraPlatformInfo, go-sev-guest
        cpuid = (8).to_bytes(4, "little") + (0x00A10F11).to_bytes(4, "little")
        entries = zip((VCEK, ASK, ARK), world.chip.certificates(), strict=True)
        table = certificate_table([(extra, cpuid), *entries])
        request = await world.request()
        evidence = {**world.machine.evidence(report_data(request)), "certificate_table": b64url(table)}
        answer = await world.post(request, evidence)
        assert answer.status == 200, answer.body
        assert answer.body["boot_info"]["product"] == "milan"

    async def test_lesson_09_a_version_2_report_under_another_products_chain(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        """It does not name its CPU, so the chain does; the certificate must agree with its own chain."""
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            make_chip=lambda chip: replace(chip, report_version=2),
        ) as world:
            assert (await world.ask()).status == 200
            genoa = simulated_hierarchies[Product.GENOA]
            forged = replace(world.chip, hierarchy=genoa)
            answer = await ask_with_certificates(
                world, *forged.certificates(), machine=world.launch(chip=forged)
            )
            # The world pins Milan's root alone.
            assert (answer.status, answer.code) == (403, "evidence-untrusted")
            assert "root-unknown" in answer.reasons


class TestLesson10:
    @pytest.mark.parametrize(
        ("before", "after", "status"),
        [(-1, 1, 200), (-10, -1, 403), (1, 10, 403), (0, 0, 200)],
        ids=["valid", "expired", "not-yet", "this-second"],
    )
    async def test_lesson_10_the_dates_of_the_leaf(
        self, world: World, before: int, after: int, status: int
    ) -> None:
        forged = leaf(world, not_before=NOW + timedelta(days=before), not_after=NOW + timedelta(days=after))
        answer = await ask_with_certificates(world, forged, *authorities(world))
        assert answer.status == status
        if status == 403:
            answer.check_refused(403, "evidence-untrusted", "certificate-validity")

    async def test_lesson_10_an_expired_vlek(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            make_chip=lambda chip: replace(chip, csp_id="Example Cloud"),
        ) as world:
            guest = {"signers": ["vlek"], "csp": ["Example Cloud"]}
            await world.apply_changed(app={"chips": "any", "guest": "g"}, guest=guest)
            assert (await world.ask()).status == 200
            world.now[0] += timedelta(days=366)
            (await world.ask()).check_refused(403, "evidence-untrusted", "certificate-validity")

    async def test_lesson_10_an_expired_chain(self, world: World) -> None:
        long_lived = leaf(world, not_after=NOW + timedelta(days=365 * 30))
        world.now[0] += timedelta(days=365 * 26)
        answer = await ask_with_certificates(world, long_lived, *authorities(world))
        answer.check_refused(403, "evidence-untrusted", "certificate-validity")


MONTH = timedelta(days=30)


async def know_list(
    world: World, *serials: int, issued: timedelta, due: timedelta, signer: Authority | None = None
) -> None:
    """Put a revocation list of the world's line into the server's store, as a fetch or an import does."""
    line = Line(world.chip.signer, world.chip.hierarchy.product)
    der = made_list(world, *serials, issued=issued, due=due, signer=signer)
    parsed = load_revocation_list(der, line=line)
    ark = load_der(world.chip.hierarchy.ark.certificate).public_key_sha256
    stored = StoredRevocationList(list=parsed, line=line, ark=ark, source="import")
    await CollateralDatabase(world.engine, lambda: world.now[0]).keep(stored)


def made_list(
    world: World, *serials: int, issued: timedelta, due: timedelta, signer: Authority | None = None
) -> bytes:
    return world.chip.hierarchy.revocation_list(
        serials, this_update=NOW + issued, next_update=NOW + due, signer=signer
    )


def authority_serial(world: World) -> int:
    return load_der(world.chip.certificates()[1]).serial


async def revocation_details(world: World) -> list[str]:
    """Give what the audit record of the last decision says of the revocation list."""
    record = (await world.records())[-1]
    return [check["detail"] for check in record.entry["checks"] if check["name"] == "revocation-list"]


class TestLesson10Revocation:
    @pytest.mark.parametrize("csp", [None, "Example Cloud"], ids=["ask", "asvk"])
    @pytest.mark.parametrize("mode", [RevocationMode.WHEN_AVAILABLE, RevocationMode.REQUIRE], ids=str)
    async def test_lesson_10_a_revoked_authority(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies, mode: RevocationMode, csp: str | None
    ) -> None:
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            make_chip=lambda chip: replace(chip, csp_id=csp),
            revocation=mode,
        ) as world:
            await know_list(world, authority_serial(world), issued=-MONTH, due=MONTH)
            (await world.ask()).check_refused(403, "evidence-untrusted", "certificate-revoked")
            assert await world.spent() == 0

    async def test_lesson_10_a_revoked_root(self, tmp_path: Path, simulated_hierarchies: Hierarchies) -> None:
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN]) as world:
            root = load_der(world.chip.hierarchy.ark.certificate).serial
            await know_list(world, root, issued=-MONTH, due=MONTH)
            (await world.ask()).check_refused(403, "evidence-untrusted", "certificate-revoked")

    async def test_lesson_10_whom_a_stale_list_names_stays_revoked(self, world: World) -> None:
        await know_list(world, authority_serial(world), issued=-20 * MONTH, due=-19 * MONTH)
        (await world.ask()).check_refused(403, "evidence-untrusted", "certificate-revoked")

    async def test_lesson_10_a_list_that_the_host_itself_brings(self, world: World) -> None:
        revoking = made_list(world, authority_serial(world), issued=-MONTH, due=MONTH)
        entries = zip((VCEK, ASK, ARK), world.chip.certificates(), strict=True)
        table = certificate_table([*entries, (REVOCATION_LIST, revoking)])
        request = await world.request()
        evidence = {**world.machine.evidence(report_data(request)), "certificate_table": b64url(table)}
        answer = await world.post(request, evidence)
        answer.check_refused(403, "evidence-untrusted", "certificate-revoked")

    async def test_lesson_10_only_the_root_can_revoke(self, world: World) -> None:
        """The ASK's key, in the root's name: else anybody who has a key could deny service."""
        ask = world.chip.hierarchy.ask
        await know_list(world, authority_serial(world), issued=-MONTH, due=MONTH, signer=ask)
        assert (await world.ask()).status == 200

    @pytest.mark.parametrize(
        ("due", "said"),
        [(timedelta(days=-3), "stale, accepted until"), (timedelta(days=-8), "too old since")],
        ids=["stale", "too-old"],
    )
    async def test_lesson_10_a_stale_list_is_not_used_silently(
        self, world: World, due: timedelta, said: str
    ) -> None:
        await know_list(world, 0x7FFF, issued=-MONTH, due=due)
        assert (await world.ask()).status == 200
        [detail] = await revocation_details(world)
        assert said in detail
        assert (NOW + due).isoformat() in detail

    async def test_lesson_10_nor_is_it_hidden_that_there_is_none(self, world: World) -> None:
        assert (await world.ask()).status == 200
        assert await revocation_details(world) == ["revocation list: none is known"]

    @pytest.mark.parametrize(
        ("due", "status"),
        [(MONTH, 200), (timedelta(days=-7), 200), (timedelta(days=-7, seconds=-1), 503), (None, 503)],
        ids=["current", "within-the-maximum-age", "a-second-too-old", "none"],
    )
    async def test_lesson_10_a_list_that_is_required(
        self,
        tmp_path: Path,
        simulated_hierarchies: Hierarchies,
        due: timedelta | None,
        status: int,
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], revocation=RevocationMode.REQUIRE
        ) as world:
            if due is not None:
                await know_list(world, 0x7FFF, issued=-MONTH, due=due)
            answer = await world.ask()
            assert answer.status == status, answer.body
            if status == 503:
                answer.check_refused(503, "collateral-unavailable")
                assert int(answer.response.headers["retry-after"]) > 0
                assert await world.spent() == 0

    async def test_lesson_10_who_asks_for_no_lists_is_told_so(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], revocation=RevocationMode.OFF
        ) as world:
            await know_list(world, authority_serial(world), issued=-MONTH, due=MONTH)
            assert (await world.ask()).status == 200
            assert await revocation_details(world) == ["revocation lists are not asked for"]


class TestLesson11:
    async def test_lesson_11_a_debug_guest_is_refused(self, world: World) -> None:
        (await ask_resigned(world, policy=0x30000 | 1 << 19)).check_refused(
            403, "policy-denied", "debug-enabled"
        )

    async def test_lesson_11_debug_is_allowed_by_a_developer_only(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        """In production a policy that says so is refused; one that was stored all the same denies."""
        changes: dict[str, dict[str, object]] = {"app": {"guest": "g"}, "guest": {"debug": "allow"}}
        debug = 0x30000 | 1 << 19
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN]) as world:
            await world.apply_changed(**changes)
            assert (await ask_resigned(world, policy=debug)).status == 200
            stored = await world.changer.history.load((await world.in_force()) or "")
        assert stored is not None
        (tmp_path / "production").mkdir()
        async with open_world(
            tmp_path / "production", simulated_hierarchies[Product.MILAN], development=False
        ) as world:
            with pytest.raises(PolicyInvalid):
                await world.apply_changed(**changes)
            await put(world.changer, stored)
            await world.followed.refresh()
            answer = await ask_resigned(world, policy=debug)
            assert (answer.status, answer.code) == (403, "policy-denied")
            assert "debug-allowed" in answer.reasons

    @pytest.mark.parametrize("vmpl", [1, 3])
    async def test_lesson_11_another_vmpl(self, world: World, vmpl: int) -> None:
        (await ask_resigned(world, vmpl=vmpl)).check_refused(403, "policy-denied", "vmpl-not-allowed")

    async def test_lesson_11_a_report_that_the_host_asked_for(self, world: World) -> None:
        answer = await ask_resigned(world, vmpl=0xFFFFFFFF)
        answer.check_refused(403, "evidence-untrusted", "requested-by-host")

    @pytest.mark.parametrize(
        ("flags", "reason"), [(1 << 1, "chip-key-masked"), (7 << 2, "signer-none"), (2 << 2, "signer-none")]
    )
    async def test_lesson_11_a_report_that_no_endorsement_key_signed(
        self, world: World, flags: int, reason: str
    ) -> None:
        answer = await ask_resigned(world, flags=flags)
        assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert reason in answer.reasons


class TestLesson12:
    async def test_lesson_12_a_captured_report_is_good_once(self, world: World) -> None:
        request = await world.request()
        evidence = world.machine.evidence(report_data(request))
        assert (await world.post(request, evidence)).status == 200
        (await world.post(request, evidence)).check_refused(409, "challenge-used")
        fresh = await world.request()
        (await world.post(fresh, evidence)).check_refused(403, "evidence-untrusted", "report-data-mismatch")

    async def test_lesson_12_a_malleated_signature_is_no_new_token(self, world: World) -> None:
        request = await world.request()
        data = report_data(request)
        assert (await world.post(request, world.machine.evidence(data))).status == 200
        report = world.machine.guest.report(data)
        s = P384_ORDER - int.from_bytes(report[0x2E8 : 0x2E8 + 72], "little")
        malleated = tampered(world.machine, data, {0x2E8: s.to_bytes(72, "little")})
        (await world.post(request, malleated)).check_refused(409, "challenge-used")

    async def test_lesson_12_the_same_challenge_in_another_spelling(self, world: World) -> None:
        challenge = await world.challenge()
        assert (await world.ask(challenge=challenge)).status == 200
        standard = challenge.replace("-", "+").replace("_", "/")
        for spelling in (standard, standard + "=" * (-len(standard) % 4), challenge):
            (await world.ask(challenge=spelling)).check_refused(409, "challenge-used")

    async def test_lesson_12_every_byte_of_the_request_is_signed(self, world: World) -> None:
        request = await world.request()
        evidence = world.machine.evidence(report_data(request))
        for other in (request + b" ", request.replace(b'"disk"', b'"env"'), b" " + request):
            (await world.post(other, evidence)).check_refused(
                403, "evidence-untrusted", "report-data-mismatch"
            )
        assert (await world.post(request, evidence)).status == 200

    @pytest.mark.parametrize("length", [0, 1, 32, 44, 64])
    async def test_lesson_12_a_challenge_is_more_than_its_length(self, world: World, length: int) -> None:
        answer = await world.ask(challenge=b64url(b"c" * length) or "AA")
        answer.check_refused(400, "challenge-invalid")

    async def test_lesson_12_a_challenge_of_another_server(
        self, tmp_path: Path, world: World, simulated_hierarchies: Hierarchies
    ) -> None:
        (tmp_path / "other").mkdir()
        async with open_world(
            tmp_path / "other",
            simulated_hierarchies[Product.MILAN],
            change_desk=lambda desk: replace(desk, challenge_key=b"another".ljust(64)),
        ) as other:
            challenge = await other.challenge()
        (await world.ask(challenge=challenge)).check_refused(400, "challenge-invalid")

    async def test_lesson_12_no_challenge(self, world: World) -> None:
        request = json.loads(await world.request())
        del request["challenge"]
        text = json.dumps(request).encode()
        answer = await world.post(text, world.machine.evidence(report_data(text)))
        assert (answer.status, answer.code) == (400, "malformed-request")


class TestLesson13:
    async def test_lesson_13_hostile_certificate_tables(self, world: World) -> None:
        certificates = world.chip.certificates()
        table = certificate_table(list(zip((VCEK, ASK, ARK), certificates, strict=True)))

        def with_entry(offset: int, length: int) -> bytes:
            return table[:16] + offset.to_bytes(4, "little") + length.to_bytes(4, "little") + table[24:]

        hostile = [
            table[:10],
            table[:-1],
            with_entry(0xFFFFFFFF, 1),
            with_entry(0xFFFFFFF0, 0x20),
            with_entry(0, 24),
            with_entry(96, 0),
            with_entry(97, len(certificates[0])),
            table[:24] * 17,
            (table[:24] * 2) + bytes(24) + certificates[0],
            certificate_table([(VCEK, certificates[0][:-1])]),
            certificate_table([(VCEK, b"-----BEGIN CERTIFICATE-----")]),
            certificate_table([(REVOCATION_LIST, b"\x30\x00")]),
            certificate_table([(REVOCATION_LIST, certificates[2])]),
            certificate_table([(ARK, b"\x30\x84\xff\xff\xff\xff")]),
        ]
        for blob in hostile:
            request = await world.request()
            evidence = {**world.machine.evidence(report_data(request)), "certificate_table": b64url(blob)}
            answer = await world.post(request, evidence)
            assert (answer.status, answer.code) == (400, "malformed-evidence")

    async def test_lesson_13_an_empty_table_is_normal(self, world: World) -> None:
        for blob in (b"", bytes(24)):
            request = await world.request()
            evidence = world.machine.evidence(report_data(request), collateral=Collateral.LIST)
            answer = await world.post(request, {**evidence, "certificate_table": b64url(blob)})
            assert answer.status == 200


class TestLesson14:
    @pytest.mark.parametrize("value", [b"", b"\x00", b"\x04\x00"])
    async def test_lesson_14_empty_extension_values(self, world: World, value: bytes) -> None:
        for oid in (HARDWARE_ID, PRODUCT_NAME, BOOTLOADER_SPL, MICROCODE_SPL):

            def emptied(all_: list[Any], oid: str = oid) -> list[Any]:
                return [each._replace(value=value) if each.oid == oid else each for each in all_]

            answer = await ask_with_certificates(world, leaf(world, extensions=emptied), *authorities(world))
            assert (answer.status, answer.code) == (403, "evidence-untrusted")

    @pytest.mark.parametrize("kept", [1, 8, 32, 63])
    async def test_lesson_14_a_hardware_id_that_is_only_a_prefix(self, world: World, kept: int) -> None:
        def shortened(all_: list[Any]) -> list[Any]:
            return [
                each._replace(value=each.value[:kept]) if each.oid == HARDWARE_ID else each for each in all_
            ]

        answer = await ask_with_certificates(world, leaf(world, extensions=shortened), *authorities(world))
        assert (answer.status, answer.code) == (403, "evidence-untrusted")
        assert answer.reasons in (["hwid"], ["hwid-mismatch"])

    @pytest.mark.parametrize("name", ["M", "Mila", "MilanX", "milan-B0", "Genoa", "-Milan", "Milan\n"])
    async def test_lesson_14_a_product_name_that_only_resembles(self, world: World, name: str) -> None:
        def renamed(all_: list[Any]) -> list[Any]:
            value = b"\x16" + bytes([len(name)]) + name.encode()
            return [each._replace(value=value) if each.oid == PRODUCT_NAME else each for each in all_]

        answer = await ask_with_certificates(world, leaf(world, extensions=renamed), *authorities(world))
        answer.check_refused(403, "evidence-untrusted", "product")

    @pytest.mark.parametrize("oid", [CSP_ID, FMC_SPL])
    async def test_lesson_14_an_extension_of_another_kind_of_certificate(
        self, world: World, oid: str
    ) -> None:
        from kms.simulator.certificates import Extension

        extra = Extension(oid, b"\x16\x01x" if oid == CSP_ID else b"\x02\x01\x00")
        forged = leaf(world, extensions=lambda all_: [*all_, extra])
        answer = await ask_with_certificates(world, forged, *authorities(world))
        assert (answer.status, answer.code) == (403, "evidence-untrusted")


LAUNCHES: list[dict[str, Any]] = [
    {},
    {"firmware": {"sections": []}},
    {"firmware": {"sections": [{"gpa": 0, "size": 1 << 32, "type": 1}]}},
    {"firmware": {"sections": [{"gpa": 0, "size": 4096, "type": 99}]}},
    {"firmware": {"sections": [{"gpa": 4096 * n, "size": 4096, "type": 1} for n in range(65)]}},
    {"firmware": {"hashes_table_gpa": 0x1000}},
    {"firmware": {"digest": "00"}},
    {"cmdline": "a\x00b"},
    {"vmm": "unknown"},
    {"extra": 1},
]


class TestLessons16To21:
    @pytest.mark.parametrize("changes", LAUNCHES)
    async def test_lesson_16_a_description_that_cannot_be_measured(
        self, world: World, changes: dict[str, Any]
    ) -> None:
        """Even one whose hash a policy allows: ignored, or refused, but no digest and no failure of ours."""
        genuine = world.description.to_json()
        assert isinstance(genuine, dict)
        launch: dict[str, Any] = {**genuine, **changes} if changes else {}
        if "firmware" in changes:
            launch["firmware"] = {**genuine["firmware"], **changes["firmware"]}  # type: ignore[dict-item]
        documents = world.default_policy(app={"images": [os_image_hash(launch).hex()]})
        await world.apply(*documents[:1], *documents[2:])
        request = await world.request()
        evidence = world.machine.evidence(report_data(request))
        evidence["launch"] = {"description": launch, "vcpus": 2}
        answer = await world.post(request, evidence)
        if answer.status == 400:
            answer.check_refused(400, "malformed-evidence", "launch-description")
        else:
            answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    @pytest.mark.parametrize(
        "cmdline", ["console=ttyS0 root=/dev/vda ro ", " console=ttyS0 root=/dev/vda ro", "\n"]
    )
    async def test_lesson_17_the_command_line_is_measured_to_the_byte(
        self, world: World, cmdline: str
    ) -> None:
        answer = await world.ask(world.launch(cmdline=cmdline))
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_lesson_18_a_debug_swap_guest_passes_only_where_it_is_written_out(
        self, world: World
    ) -> None:
        machine = world.launch(guest_features=0x21)
        (await world.ask(machine)).check_refused(403, "measurement-unknown", "measurement-unknown")
        await world.apply_changed(image={"guest_features": ["0x1", "0x21"]})
        answer = await world.ask(machine)
        assert answer.status == 200
        assert answer.body["boot_info"]["guest_features"] == "0x21"

    async def test_lesson_18_a_guest_does_not_describe_other_features(self, world: World) -> None:
        documents = world.default_policy(app={"images": [os_image_hash(world.description.to_json()).hex()]})
        await world.apply(documents[0], documents[2])
        for features, status in (("0x1", 200), ("0x21", 403)):
            machine = world.launch(guest_features=int(features, 16))
            request = await world.request()
            hint = {"description": world.description.to_json(), "guest_features": features}
            answer = await world.post(request, {**machine.evidence(report_data(request)), "launch": hint})
            assert answer.status == status

    @pytest.mark.parametrize("features", ["0x20", "0x0", "0x801", "0x10001", "0x10000000000000001", "any"])
    async def test_lesson_18_features_that_no_policy_can_list(self, world: World, features: str) -> None:
        with pytest.raises(PolicyInvalid):
            await world.apply_changed(image={"guest_features": [features]})

    @pytest.mark.parametrize("member", ["measurement", "expected_measurement", "ovmf_hash", "firmware"])
    async def test_lesson_19_the_caller_supplies_no_expected_measurement(
        self, world: World, member: str
    ) -> None:
        request = await world.request()
        evidence = world.machine.evidence(report_data(request))
        hint = {**world.machine.hint(), member: world.machine.guest.measurement.hex()}
        answer = await world.post(request, {**evidence, "launch": hint})
        answer.check_refused(400, "malformed-evidence")

    async def test_lesson_19_a_description_that_nobody_allowed(self, world: World) -> None:
        other = describe_image(seed=b"another firmware")
        machine = world.launch(description=other)
        request = await world.request()
        evidence = machine.evidence(report_data(request))
        evidence["launch"] = {"description": other.to_json(), "vcpus": 2, "vcpu_type": "EPYC-v4"}
        (await world.post(request, evidence)).check_refused(403, "measurement-unknown", "measurement-unknown")

    async def test_lesson_21_every_size_of_machine_without_a_new_reference_value(self, world: World) -> None:
        for vcpus in range(1, 9):
            for vcpu_type in ("EPYC-v4", "EPYC-Milan"):
                answer = await world.ask(world.launch(vcpus=vcpus, vcpu_type=vcpu_type))
                assert answer.status == 200
                assert answer.body["boot_info"]["vcpus"] == vcpus
        answer = await world.ask(world.launch(vcpus=9))
        answer.check_refused(403, "measurement-unknown", "measurement-unknown")


class TestLesson22:
    @pytest.mark.parametrize(
        ("member", "reason"),
        [
            ("compose", "compose-not-listed"),
            ("chips", "chip-not-listed"),
            ("keys", "key-not-allowed"),
            ("binding", "binding-not-allowed"),
            ("images", "image-not-listed"),
        ],
    )
    async def test_lesson_22_an_empty_list_allows_nobody(
        self, world: World, member: str, reason: str
    ) -> None:
        await world.apply_changed(app={member: []})
        (await world.ask()).check_refused(403, "policy-denied", reason)

    @pytest.mark.parametrize("member", ["compose", "chips", "keys", "binding", "images", "tcb"])
    async def test_lesson_22_nothing_is_any_by_default(self, world: World, member: str) -> None:
        app = app_document(world.chip)
        del app[member]
        with pytest.raises(PolicyInvalid):
            await world.apply(app, image_document("os-1", world.description), tcb_document(world.chip))

    async def test_lesson_22_an_unlisted_platform_does_not_fall_through(self, world: World) -> None:
        await world.apply_changed(
            tcb={"products": {"genoa": {"bootloader": 0, "tee": 0, "snp": 0, "microcode": 0}}}
        )
        (await world.ask()).check_refused(403, "policy-denied", "product-not-listed")

    async def test_lesson_22_without_a_policy_nobody_is_allowed(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        class Nothing:
            async def active(self) -> None:
                return None

            async def refresh(self) -> None:
                return None

        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            change_desk=lambda desk: replace(desk, policies=Nothing()),
        ) as world:
            (await world.ask()).check_refused(403, "measurement-unknown", "measurement-unknown")


async def test_lesson_23_a_chip_list_matches_the_id_that_reports_show(world: World) -> None:
    await world.apply_changed(app={"chips": [world.chip.chip_id.hex()]})
    assert (await world.ask()).status == 200
    for shorter in (sha256(world.chip.chip_id).hexdigest(), world.chip.chip_id[:32].hex()):
        with pytest.raises(PolicyInvalid):
            await world.apply_changed(app={"chips": [shorter]})


class TestLesson27:
    @pytest.mark.parametrize(
        "changes",
        [{"app_id": None}, {"app_id": ""}, {"app_id": "aa"}, {"app_id": "00" * 20}, {"compose_hash": None}],
    )
    async def test_lesson_27_an_app_id_is_not_optional(
        self, world: World, changes: dict[str, object]
    ) -> None:
        answer = await world.ask(world.launch(app_document=document(**changes)))
        answer.check_refused(400, "malformed-evidence", "app-document-unreadable")

    async def test_lesson_27_no_field_slides_into_its_neighbour(self, world: World) -> None:
        """App ids of 20 and 32 bytes with a common beginning, and instances that continue them."""
        long_id = APP_ID + "ab" * 12
        await world.apply(
            app_document(world.chip),
            app_document(world.chip, id=long_id, name="other"),
            image_document("os-1", world.description),
            tcb_document(world.chip),
        )
        values = set()
        for app_id, instance in ((APP_ID, "ab" * 28), (APP_ID, "ab" * 16), (long_id, "ab" * 16)):
            world.machine = world.launch(app_document=document(app_id=app_id, instance_id=instance))
            payload = await world.fetch(
                keys=[{"name": "disk", "scope": "instance"}, {"name": "disk", "scope": "app"}]
            )
            values |= {key.value for key in payload.keys}
        assert len(values) == 5


class TestLesson29:
    @pytest.mark.parametrize("suite", list(Suite))
    async def test_lesson_29_keys_are_sealed_to_the_guest(self, world: World, suite: Suite) -> None:
        key = RecipientKey.generate(suite)
        request = await world.request(key)
        answer = await world.post(request, world.machine.evidence(report_data(request)))
        value = open_answer(answer, key, request, world.desk.identity.public_key).keys[0].secret
        for shown in (value.hex(), b64url(value)):
            assert shown not in answer.response.text
        assert value not in from_base64(answer.body["sealed"])

    async def test_lesson_29_a_guest_can_tell_the_kms_from_an_impostor(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        impostor = Identity.from_prf(b"i" * 64)
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            change_desk=lambda desk: replace(desk, identity=impostor),
        ) as world:
            genuine = Identity.from_prf(b"g" * 64).public_key
            key = RecipientKey.generate(Suite.HPKE_X25519)
            request = await world.request(key)
            answer = await world.post(request, world.machine.evidence(report_data(request)))
            with pytest.raises(EnvelopeRejected) as refused:
                open_answer(answer, key, request, genuine)
            assert refused.value.reason == "identity-mismatch"


async def test_lesson_31_no_key_serves_two_algorithms_or_names(world: World) -> None:
    names = ["disk", "env", "signing", "custom:db/disk", "custom:db/a", "custom:db/a/b"]
    payload = await world.fetch(keys=[{"name": name, "scope": "app"} for name in names])
    assert len({key.value for key in payload.keys}) == len(names)
    assert [key.algorithm.value for key in payload.keys][:3] == ["symmetric-256", "x25519", "ed25519"]


async def test_lesson_34_failures_have_statuses_of_their_own(world: World) -> None:
    """A guest knows from the status alone whether to try again, and never from a 401."""
    request = await world.request()
    genuine = world.machine.evidence(report_data(request))
    malformed = await world.post(request, {**genuine, "tee": "other"})
    untrusted = await world.post(request, tampered(world.machine, report_data(request), {0x10: b"\x01"}))
    assert (await world.post(request, genuine)).status == 200
    used = await world.post(request, genuine)
    await world.apply_changed(app={"keys": []})
    denied = await world.ask()
    assert [each.status for each in (malformed, untrusted, used, denied)] == [400, 403, 409, 403]


async def test_lesson_35_a_refused_release_is_not_recorded_as_allowed(world: World) -> None:
    await world.apply_changed(app={"keys": []})
    refused = await world.ask()
    await world.apply(*world.default_policy())
    released = await world.ask()
    records = {record.entry["release_id"]: record.entry for record in await world.records()}
    assert records[refused.body["request_id"]]["outcome"] == "refused"
    assert records[refused.body["request_id"]]["epochs"] == []
    assert records[released.body["release_id"]]["outcome"] == "released"
    assert len(records) == 2


async def test_lesson_35_the_record_says_who_got_which_key_on_what_evidence(world: World) -> None:
    answer = await world.ask(keys=[{"name": "disk", "scope": "app"}, {"name": "env", "scope": "app"}])
    [record] = await world.records()
    assert record.entry["boot_info"] == answer.body["boot_info"]
    assert [key["name"] for key in record.entry["keys"]] == ["disk", "env"]
    assert record.entry["policy_revision"] == answer.body["policy_revision"]
    assert record.entry["client"]
    assert {check["name"] for check in record.entry["checks"]} >= {"report-signature", "chip-listed", "root"}


class TestLesson37:
    async def test_lesson_37_the_rate_limit_comes_before_everything(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        limiter = AddressLimiter(1, 3, lambda: 0.0)
        async with open_world(tmp_path, simulated_hierarchies[Product.MILAN], limiter=limiter) as world:
            request = await world.request()
            evidence = world.machine.evidence(report_data(request))
            forged = tampered(world.machine, report_data(request), {0x10: b"\x01"})
            assert (await world.post(request, forged)).status == 403
            assert (await world.post(request, forged)).status == 403
            (await world.post(request, evidence)).check_refused(429, "rate-limited")
            assert len(await world.records()) == 2

    async def test_lesson_37_a_compressed_body_is_not_unpacked(self, world: World) -> None:
        import gzip

        bomb = gzip.compress(b" " * (64 * MAX_BODY))
        assert len(bomb) < MAX_BODY
        response = await world.client.post("/v1/releases", content=bomb, headers={"content-encoding": "gzip"})
        Answer(response).check_refused(415, "unsupported-media-type")

    async def test_lesson_37_a_body_has_a_limit(self, world: World) -> None:
        padded = json.dumps({"request": "AA", "evidence": {}}).ljust(MAX_BODY + 1)
        Answer(await world.client.post("/v1/releases", content=padded)).check_refused(
            413, "too-large", "body-too-large"
        )


class TestLesson38:
    async def test_lesson_38_readiness_is_not_always_ok(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path, simulated_hierarchies[Product.MILAN], not_ready=("database-unavailable",)
        ) as world:
            answer = Answer(await world.client.get("/readyz"))
            answer.check_refused(503, "not-ready", "database-unavailable")

    async def test_lesson_38_simulated_hardware_is_nobody_in_production(
        self, tmp_path: Path, simulated_hierarchies: Hierarchies
    ) -> None:
        async with open_world(
            tmp_path,
            simulated_hierarchies[Product.MILAN],
            development=False,
            change_desk=lambda desk: replace(
                desk, authenticator=replace(desk.authenticator, roots=TrustedRoots())
            ),
        ) as world:
            answer = await world.ask()
            assert (answer.status, answer.code) == (403, "evidence-untrusted")
            assert "root-unknown" in answer.reasons
            assert await world.spent() == 0


def test_the_curve_of_the_examples_is_p384() -> None:
    assert ec.SECP384R1().group_order == P384_ORDER

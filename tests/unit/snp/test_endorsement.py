"""What certificates say, in every form that a forger or an encoder could give it."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from kms.errors import MalformedEvidence
from kms.simulator.certificates import Extension
from kms.simulator.chip import SimulatedChip
from kms.simulator.endorsement_extensions import (
    BOOTLOADER_SPL,
    CSP_ID,
    FMC_SPL,
    HARDWARE_ID,
    MICROCODE_SPL,
    PRODUCT_NAME,
    SNP_SPL,
    SPL_5,
    SPL_6,
    SPL_7,
    TEE_SPL,
    vcek_extensions,
)
from kms.snp.certificate import Certificate, ExtensionInvalid
from kms.snp.endorsement import load_any, load_der, load_pem
from kms.snp.product import Product
from tests.world import NOW

Edit = Callable[[list[Extension]], list[Extension]]
LEVELS = {"bootloader": BOOTLOADER_SPL, "tee": TEE_SPL, "snp": SNP_SPL, "microcode": MICROCODE_SPL}


def certificate(chip: SimulatedChip, edit: Edit) -> Certificate:
    """A genuinely signed VCEK certificate of the chip, its extensions edited."""
    extensions = edit(vcek_extensions(chip.hierarchy.product, chip.reported_tcb, chip.chip_id))
    der = chip.hierarchy.issue_vcek(
        chip.endorsement.key.public_key(),
        chip.reported_tcb,
        chip.chip_id,
        not_before=NOW,
        not_after=NOW + timedelta(days=1),
        extensions=extensions,
    )
    return load_der(der)


def with_value(chip: SimulatedChip, oid: str, value: bytes) -> Certificate:
    return certificate(
        chip, lambda all_: [each._replace(value=value) if each.oid == oid else each for each in all_]
    )


def without(chip: SimulatedChip, oid: str) -> Certificate:
    return certificate(chip, lambda all_: [each for each in all_ if each.oid != oid])


def doubled(chip: SimulatedChip, oid: str) -> Certificate:
    return certificate(chip, lambda all_: [*all_, next(each for each in all_ if each.oid == oid)])


def _level(component: str, certificate: Certificate) -> int:
    return certificate.level(component)


@pytest.mark.parametrize("level", [0, 1, 0x7F, 0x80, 0xFF])
def test_a_level_is_a_minimal_integer(milan: SimulatedChip, level: int) -> None:
    value = b"\x02\x01" + bytes([level]) if level < 0x80 else b"\x02\x02\x00" + bytes([level])
    assert with_value(milan, SNP_SPL, value).level("snp") == level


@pytest.mark.parametrize(
    "value",
    [
        "", "02", "0200", "020118ff", "0201", "020180", "0201ff", "02020018", "0202007f", "02020100",
        "0202ff18", "0203000018", "02810118", "030118", "0a0118", "040118", "160118", "18", "0018",
        "3003020118", "02010218", "020118020118",
    ],
)  # fmt: skip
@pytest.mark.parametrize("component", list(LEVELS))
def test_lesson_14_anything_else_is_no_level(milan: SimulatedChip, component: str, value: str) -> None:
    """Not minimal, negative, longer than a byte, of another type, or the last byte of anything."""
    forged = with_value(milan, LEVELS[component], bytes.fromhex(value))
    with pytest.raises(ExtensionInvalid, match=component):
        forged.level(component)


@pytest.mark.parametrize("value", ["", "020101", "0201", "04"])
@pytest.mark.parametrize("oid", [SPL_5, SPL_6, SPL_7])
def test_reserved_levels_are_zero(chip: SimulatedChip, oid: str, value: str) -> None:
    assert certificate(chip, list).reserved_levels_are_zero()
    assert without(chip, oid).reserved_levels_are_zero()
    assert not with_value(chip, oid, bytes.fromhex(value)).reserved_levels_are_zero()


@pytest.mark.parametrize("oid", [*LEVELS.values(), PRODUCT_NAME, HARDWARE_ID])
def test_lesson_04_each_extension_is_there_exactly_once(chip: SimulatedChip, oid: str) -> None:
    reads: dict[str, Callable[[Certificate], object]] = {
        PRODUCT_NAME: Certificate.product_name,
        HARDWARE_ID: Certificate.hwid,
        **{each: partial(_level, name) for name, each in LEVELS.items()},
    }
    reads[oid](certificate(chip, list))
    with pytest.raises(ExtensionInvalid, match="missing"):
        reads[oid](without(chip, oid))
    twice = doubled(chip, oid)
    assert twice.doubled == oid
    # Nothing of such a certificate's extensions may be used, the others included.
    for read in reads.values():
        with pytest.raises(ExtensionInvalid):
            read(twice)


def test_a_turin_certificate_has_an_fmc_level_and_no_other_does(chip: SimulatedChip) -> None:
    parsed = certificate(chip, list)
    assert parsed.has_level("fmc") is (chip.hierarchy.product is Product.TURIN)
    if parsed.has_level("fmc"):
        assert parsed.level("fmc") == chip.reported_tcb.fmc
        with pytest.raises(ExtensionInvalid, match="missing"):
            without(chip, FMC_SPL).level("fmc")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\x16\x05Milan", "Milan"),
        (b"\x16\x08Milan-B0", "Milan-B0"),
        (b"\x16\x01x", "x"),
        (b"\x16\x00", None),
        (b"\x16", None),
        (b"", None),
        (b"Milan", None),
        (b"\x0c\x05Milan", None),
        (b"\x13\x05Milan", None),
        (b"\x16\x04Milan", None),
        (b"\x16\x06Milan", None),
        (b"\x16\x81\x05Milan", None),
        (b"\x16\x05Mil\xe4n", None),
        (b"\x16\x05Mil\x00n", None),
        (b"\x16\x05Mil\nn", None),
        (b"\x16\x80" + b"x" * 128, None),
    ],
)
@pytest.mark.parametrize("oid", [PRODUCT_NAME, CSP_ID])
def test_an_ia5_string_is_one(milan: SimulatedChip, oid: str, value: bytes, said: str | None) -> None:
    others = [PRODUCT_NAME] if oid == PRODUCT_NAME else []
    forged = certificate(
        milan, lambda all_: [*(each for each in all_ if each.oid not in others), Extension(oid, value)]
    )
    read = forged.product_name if oid == PRODUCT_NAME else forged.csp_id
    if said is None:
        with pytest.raises(ExtensionInvalid):
            read()
    else:
        assert read() == said


@pytest.mark.parametrize("length", [8, 64])
def test_lesson_03_a_hardware_id_is_bare_or_an_octet_string(milan: SimulatedChip, length: int) -> None:
    chip_id = bytes(range(1, length + 1))
    assert with_value(milan, HARDWARE_ID, chip_id).hwid() == chip_id
    assert with_value(milan, HARDWARE_ID, b"\x04" + bytes([length]) + chip_id).hwid() == chip_id


@pytest.mark.parametrize("length", [0, 1, 7, 9, 16, 32, 48, 63, 65, 128])
def test_lesson_14_a_hardware_id_of_another_length(milan: SimulatedChip, length: int) -> None:
    for value in (bytes(length), b"\x04" + bytes([length % 128]) + b"x" * length):
        if len(value) in {8, 64}:
            continue
        with pytest.raises(ExtensionInvalid, match="hwID"):
            with_value(milan, HARDWARE_ID, value).hwid()


@pytest.mark.parametrize("value", [b"\x04\x08" + b"x" * 64, b"\x03\x40" + b"x" * 64, b"\x04\x41" + b"x" * 64])
def test_an_octet_string_that_lies_about_its_length(milan: SimulatedChip, value: bytes) -> None:
    with pytest.raises(ExtensionInvalid):
        with_value(milan, HARDWARE_ID, value).hwid()


class TestLoading:
    def test_der_and_pem_are_the_same_certificate(self, milan: SimulatedChip) -> None:
        ask = milan.hierarchy.ask
        assert load_any(ask.certificate) == load_any(ask.pem)
        assert [each.subject_name for each in load_pem(ask.pem + b"\ntext\n" + milan.hierarchy.ark.pem)] == [
            "SEV-Milan",
            "ARK-Milan",
        ]

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x30",
            b"\x30\x03\x02\x01\x01",
            bytes(100),
            b"\x30" * 16385,
            b"-----BEGIN CERTIFICATE-----",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ],
    )
    def test_what_is_no_certificate_is_malformed(self, data: bytes) -> None:
        with pytest.raises(MalformedEvidence) as refused:
            load_any(data)
        assert refused.value.reason == "certificate-unreadable"

    def test_trailing_bytes_are_malformed(self, milan: SimulatedChip) -> None:
        with pytest.raises(MalformedEvidence):
            load_der(milan.certificates()[0] + b"\x00")

    @pytest.mark.filterwarnings("ignore::UserWarning")  # the library's, about lengths of names
    @pytest.mark.parametrize("mask", [0x01, 0x04, 0x10, 0x80, 0xFF])
    def test_lesson_13_a_byte_of_a_certificate_may_be_anything(self, milan: SimulatedChip, mask: int) -> None:
        """Whatever the parser meets, it is malformed evidence or a certificate, never another failure."""
        genuine = milan.certificates()[0]
        stumbles = []
        for position in range(len(genuine)):
            changed = bytearray(genuine)
            changed[position] ^= mask
            try:
                load_der(bytes(changed))
            except MalformedEvidence:
                continue
            except Exception as error:  # noqa: BLE001 -- what must not happen is what is looked for
                stumbles.append((position, type(error).__name__))
        assert stumbles == []

    def test_no_key_or_value_shows_in_a_repr(self, milan: SimulatedChip) -> None:
        assert "PublicKey" not in repr(load_der(milan.certificates()[0]))

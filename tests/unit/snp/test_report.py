from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import MalformedEvidence
from kms.simulator.chip import SimulatedChip
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer, SignerFlags
from kms.snp.product import Cpuid, Product, product_named, product_of
from kms.snp.report import LENGTH, Report, check_tcb_reserved

# (version, first reserved byte, byte after the last): SNP ABI 56860, ATTESTATION_REPORT.
RESERVED = [
    *((version, 0x04C, 0x050) for version in (2, 3, 4, 5)),
    (2, 0x188, 0x1A0),
    *((version, 0x18B, 0x1A0) for version in (3, 4, 5)),
    *((version, 0x1EB, 0x1EC) for version in (2, 3, 4, 5)),
    *((version, 0x1EF, 0x1F0) for version in (2, 3, 4, 5)),
    *((version, 0x1F8, 0x2A0) for version in (2, 3, 4)),
    (5, 0x208, 0x2A0),
    *((version, 0x330, 0x4A0) for version in (2, 3, 4, 5)),
]


def report_of(chip: SimulatedChip, version: int = 3) -> bytearray:
    chip = replace(chip, report_version=version)
    return bytearray(chip.launch(b"m" * 48).report(b"d" * 64))


def reason_for(raw: bytes | bytearray) -> str:
    with pytest.raises(MalformedEvidence) as refused:
        Report.parse(bytes(raw))
    return refused.value.reason


@pytest.mark.parametrize(("version", "start", "end"), RESERVED)
def test_every_byte_of_every_reserved_range(chip: SimulatedChip, version: int, start: int, end: int) -> None:
    genuine = report_of(chip, version)
    for offset in range(start, end):
        changed = bytearray(genuine)
        changed[offset] = 1 << offset % 8
        assert reason_for(changed) == "reserved-bytes", hex(offset)


def test_the_bytes_that_versions_brought_into_use(chip: SimulatedChip) -> None:
    """Reserved before, meaningful since: CPUID from version 3, mitigation vectors from version 5."""
    for version in (2, 3, 4, 5):
        parsed = Report.parse(bytes(report_of(chip, version)))
        assert (parsed.cpuid is None) is (version < 3)
        assert (parsed.product is None) is (version < 3)
        assert (parsed.launch_mitigations is None) is (version < 5)
        assert (parsed.current_mitigations is None) is (version < 5)


@pytest.mark.parametrize("version", [0, 1, 6, 7, 0x100, 0x03000000, 0xFFFFFFFF])
def test_lesson_09_a_version_that_nobody_knows(chip: SimulatedChip, version: int) -> None:
    raw = report_of(chip)
    raw[:4] = version.to_bytes(4, "little")
    assert reason_for(raw) == "report-version"


@pytest.mark.parametrize("length", [0, 1, 0x2A0, LENGTH - 1, LENGTH + 1, 2 * LENGTH])
def test_a_report_of_another_length(chip: SimulatedChip, length: int) -> None:
    assert reason_for((report_of(chip) * 2)[:length]) == "report-length"


@pytest.mark.parametrize("bit", range(5, 32))
def test_every_reserved_bit_of_the_flags(chip: SimulatedChip, bit: int) -> None:
    raw = report_of(chip)
    raw[0x48:0x4C] = (1 << bit).to_bytes(4, "little")
    assert reason_for(raw) == "reserved-bits"


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_the_guest_policy(chip: SimulatedChip, bit: int) -> None:
    raw = report_of(chip)
    raw[0x08:0x10] = (1 << 17 ^ 1 << bit).to_bytes(8, "little")
    if bit == 17 or bit > 25:
        assert reason_for(raw) == "policy-bits"
    else:
        assert Report.parse(bytes(raw)).policy.raw == 1 << 17 | 1 << bit


@pytest.mark.parametrize("bit", range(64))
def test_no_bit_of_the_platform_info_is_refused(chip: SimulatedChip, bit: int) -> None:
    raw = report_of(chip)
    raw[0x40:0x48] = (1 << bit).to_bytes(8, "little")
    assert Report.parse(bytes(raw)).platform_info.raw == 1 << bit


@pytest.mark.parametrize("algorithm", [0, 2, 0x0101, 0x01000000])
def test_another_signature_algorithm(chip: SimulatedChip, algorithm: int) -> None:
    raw = report_of(chip)
    raw[0x34:0x38] = algorithm.to_bytes(4, "little")
    assert reason_for(raw) == "signature-algorithm"


@pytest.mark.parametrize("offset", [0x2A0, 0x2E8])
def test_lesson_05_every_upper_byte_of_a_signature_half(chip: SimulatedChip, offset: int) -> None:
    for byte in range(offset + 48, offset + 72):
        raw = report_of(chip)
        raw[byte] = 1
        assert reason_for(raw) == "signature-range"


@pytest.mark.parametrize("tcb_offset", [0x038, 0x180, 0x1E0, 0x1F0])
def test_the_reserved_bytes_of_each_tcb(chip: SimulatedChip, tcb_offset: int) -> None:
    reserved = {4, 5, 6} if chip.hierarchy.product is Product.TURIN else {2, 3, 4, 5}
    for byte in range(8):
        raw = report_of(chip)
        raw[tcb_offset + byte] ^= 0x80
        if byte in reserved:
            assert reason_for(raw) == "tcb-reserved"
        else:
            Report.parse(bytes(raw))


def test_a_version_2_tcb_is_judged_once_the_chain_gives_the_product(chip: SimulatedChip) -> None:
    raw = report_of(chip, 2)
    raw[0x180 + 4] = 1  # reserved on every product
    parsed = Report.parse(bytes(raw))
    with pytest.raises(MalformedEvidence, match="reported TCB"):
        check_tcb_reserved(parsed.tcbs, chip.hierarchy.product)


def test_lesson_06_the_signed_bytes_are_those_received(chip: SimulatedChip) -> None:
    raw = bytes(report_of(chip))
    assert Report.parse(raw).signed_bytes == raw[:0x2A0]
    assert Report.parse(raw).raw == raw


def test_a_zero_chip_id_is_none(chip: SimulatedChip) -> None:
    raw = report_of(chip)
    raw[0x1A0:0x1E0] = bytes(64)
    assert Report.parse(bytes(raw)).chip_id is None


@given(st.binary(min_size=LENGTH, max_size=LENGTH))
def test_arbitrary_bytes_are_malformed_or_parsed(raw: bytes) -> None:
    try:
        assert Report.parse(raw).raw == raw
    except MalformedEvidence as refused:
        assert refused.code == "malformed-evidence"  # noqa: PT017 -- either way is right


@pytest.mark.parametrize(
    ("raw", "author", "masked", "signer"),
    [
        (0b00000, False, False, Signer.VCEK),
        (0b00001, True, False, Signer.VCEK),
        (0b00010, False, True, Signer.VCEK),
        (0b00100, False, False, Signer.VLEK),
        (0b11100, False, False, None),
        *((reserved << 2, False, False, None) for reserved in range(2, 7)),
    ],
)
def test_signer_flags(raw: int, author: bool, masked: bool, signer: Signer | None) -> None:
    flags = SignerFlags.decode(raw)
    assert flags == SignerFlags(author_key_enabled=author, chip_key_masked=masked, signer=signer)


def test_guest_policy_bits_are_where_the_abi_has_them() -> None:
    names = {
        16: "smt", 18: "migration_agent", 19: "debug", 20: "single_socket", 21: "cxl",
        22: "aes_256_xts", 23: "rapl_disabled", 24: "ciphertext_hiding", 25: "page_swap_disabled",
    }  # fmt: skip
    for bit, name in names.items():
        policy = GuestPolicy.decode(1 << bit)
        assert [each for each, is_set in policy.bits().items() if is_set] == [name]
        assert getattr(policy, name) is True
    assert (GuestPolicy.decode(0x1234).abi_major, GuestPolicy.decode(0x1234).abi_minor) == (0x12, 0x34)


def test_platform_bits_are_where_the_abi_has_them() -> None:
    names = [
        "smt", "tsme", "ecc", "rapl-disabled", "ciphertext-hiding",
        "alias-check-complete", "iommu-write-safe", "tio",
    ]  # fmt: skip
    for bit, name in enumerate(names):
        assert [each for each, is_set in PlatformInfo(1 << bit).bits().items() if is_set] == [name]


@pytest.mark.parametrize(
    ("family", "models", "product"),
    [
        (0x19, (0x00, 0x01, 0x0F), Product.MILAN),
        (0x19, (0x10, 0x11, 0x1F, 0xA0, 0xAA, 0xAF), Product.GENOA),
        (0x1A, (0x00, 0x02, 0x11), Product.TURIN),
        (0x19, (0x20, 0x9F, 0xB0, 0xFF), None),
        (0x1A, (0x12, 0x50, 0xA0), None),
        (0x17, (0x00, 0x31), None),
        (0x00, (0x00,), None),
        (0x1B, (0x00,), None),
    ],
)
def test_lesson_09_products_at_the_borders_of_their_models(
    family: int, models: tuple[int, ...], product: Product | None
) -> None:
    for model in models:
        for stepping in (0, 255):
            assert product_of(Cpuid(family, model, stepping)) is product


@pytest.mark.parametrize("name", ["", "milan", "MILAN", "Milan ", "Milan-B0", "Bergamo", "Mila", "Milan\n"])
def test_products_are_named_exactly(name: str) -> None:
    assert product_named(name) is None

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.simulator.report_bytes import ReportFields
from kms.snp import tcb
from kms.snp.product import Cpuid, Product
from kms.snp.report import LENGTH, FirmwareVersion, Report
from kms.snp.tcb import TcbVersion

REAL_REPORTS = ("milan-v2-vcek", "milan-v3-vcek-launch", "milan-v3-vlek", "genoa-v3-vcek", "turin-v5-vcek")
_CPUIDS = {Product.MILAN: (0x19, 0x01), Product.GENOA: (0x19, 0xA0), Product.TURIN: (0x1A, 0x02)}


def _tcbs(product: Product) -> st.SearchStrategy[bytes]:
    level = st.integers(0, 255)
    fmc = level if product is Product.TURIN else st.none()
    version = st.builds(TcbVersion, bootloader=level, tee=level, snp=level, microcode=level, fmc=fmc)
    return version.map(lambda each: tcb.encode(each, product))


def _bytes(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


@st.composite
def report_fields(draw: st.DrawFn) -> ReportFields:
    version = draw(st.sampled_from([2, 3, 4, 5]))
    product = draw(st.sampled_from(Product))
    u32, u64, byte = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255)
    firmware = st.builds(FirmwareVersion, major=byte, minor=byte, build=byte)
    return ReportFields(
        version=version,
        guest_svn=draw(u32),
        policy=draw(st.integers(0, 2**26 - 1)) | 1 << 17,
        family_id=draw(_bytes(16)),
        image_id=draw(_bytes(16)),
        vmpl=draw(u32),
        signature_algorithm=1,
        current_tcb=draw(_tcbs(product)),
        platform_info=draw(u64),
        flags=draw(st.sampled_from([0, 4, 28])) | draw(st.integers(0, 3)),
        report_data=draw(_bytes(64)),
        measurement=draw(_bytes(48)),
        host_data=draw(_bytes(32)),
        id_key_digest=draw(_bytes(48)),
        author_key_digest=draw(_bytes(48)),
        report_id=draw(_bytes(32)),
        report_id_ma=draw(_bytes(32)),
        reported_tcb=draw(_tcbs(product)),
        cpuid=Cpuid(*_CPUIDS[product], draw(byte)) if version >= 3 else None,
        chip_id=draw(_bytes(64)),
        committed_tcb=draw(_tcbs(product)),
        current_firmware=draw(firmware),
        committed_firmware=draw(firmware),
        launch_tcb=draw(_tcbs(product)),
        launch_mitigations=draw(u64) if version == 5 else None,
        current_mitigations=draw(u64) if version == 5 else None,
    )


def parsed(signed: bytes) -> Report:
    signature = (1).to_bytes(72, "little") * 2
    return Report.parse((signed + signature).ljust(LENGTH, b"\x00"))


@given(report_fields())
def test_the_parser_gives_back_every_field(wanted: ReportFields) -> None:
    assert ReportFields.of(parsed(wanted.encode())) == wanted


@given(report_fields(), report_fields())
def test_reports_with_different_fields_have_different_bytes(one: ReportFields, other: ReportFields) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@pytest.mark.parametrize("name", [each.name for each in fields(ReportFields) if each.type is bytes])
def test_a_field_of_another_length_is_an_error(name: str) -> None:
    genuine = ReportFields.of(parsed(_smallest()))
    for wrong in (b"", getattr(genuine, name) + b"\x00"):
        broken = replace(genuine, **{name: wrong})  # type: ignore[arg-type]  # a field of bytes
        with pytest.raises(ValueError, match="bytes, not"):
            broken.encode()


@pytest.mark.real_evidence
@pytest.mark.parametrize("name", REAL_REPORTS)
def test_real_reports_encode_to_the_bytes_that_hardware_signed(real_evidence: Path, name: str) -> None:
    report = Report.parse((real_evidence / name / "report.bin").read_bytes())
    assert ReportFields.of(report).encode() == report.signed_bytes


def _smallest() -> bytes:
    raw = bytearray(0x2A0)
    raw[0x000] = 2
    raw[0x00A] = 2  # POLICY bit 17
    raw[0x034] = 1
    return bytes(raw)

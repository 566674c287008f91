from datetime import datetime, timedelta
from hashlib import sha256

import pytest

from kms.encoding import from_base64
from kms.evidence.app_document import host_data_of
from kms.evidence.sev_snp import parse_evidence
from kms.identifiers import AppId, ComposeHash
from kms.measurement.errors import MeasurementError
from kms.measurement.images import Binding, Image
from kms.measurement.launch import LaunchDescription, Machine, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.chip import SimulatedChip
from kms.simulator.firmware import build_firmware
from kms.simulator.kernel import fake_initrd, fake_kernel
from kms.simulator.machine import Collateral, SimulatedMachine, describe
from kms.snp.endorsement import load_der
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.snp.verify import VerifiedReport, verify

FIRMWARE = build_firmware(size=64 << 10, seed=b"firmware")
KERNEL = fake_kernel(b"k", size=8 << 10)
INITRD = fake_initrd(b"i", size=8 << 10)
CMDLINE = "console=ttyS0  app={app_id} compose={compose_hash} "
REPORT_DATA = bytes(range(64))
NO_LISTS = Revocation(mode=RevocationMode.OFF, max_age=timedelta(0))
DOCUMENT = b'{"version":1,"app_id":"' + b"11" * 20 + b'","compose_hash":"' + b"22" * 32 + b'"}'


@pytest.fixture(scope="module")
def description() -> LaunchDescription:
    return describe(firmware=FIRMWARE, kernel=KERNEL, initrd=INITRD, cmdline=CMDLINE)


def test_the_description_holds_the_hashes_of_the_files(description: LaunchDescription) -> None:
    assert description.kernel == sha256(KERNEL).digest()
    assert description.initrd == sha256(INITRD).digest()
    assert description.cmdline == CMDLINE
    assert LaunchDescription.parse(description.to_json()) == description


def test_firmware_alone_can_be_launched(chip: SimulatedChip) -> None:
    machine = SimulatedMachine.launch(chip, describe(firmware=FIRMWARE))
    assert any(machine.guest.measurement)


def test_the_guest_shows_the_measurement_of_its_launch(
    chip: SimulatedChip, description: LaunchDescription
) -> None:
    machine = SimulatedMachine.launch(
        chip, description, vcpus=4, vcpu_type="EPYC-Milan", guest_features=0x21, cmdline="filled"
    )
    expected = launch_measurement(description, Machine(4, VCPU_TYPES["EPYC-Milan"], 0x21), cmdline="filled")
    assert parse_evidence(machine.evidence(REPORT_DATA)).report.measurement == expected


@pytest.mark.parametrize(
    "other",
    [
        {"firmware": build_firmware(size=64 << 10, seed=b"other")},
        {"kernel": fake_kernel(b"other", size=8 << 10)},
        {"initrd": fake_initrd(b"other", size=8 << 10)},
        {"cmdline": CMDLINE.strip()},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_tampering_host_is_a_host_with_other_files(
    chip: SimulatedChip, description: LaunchDescription, other: dict[str, bytes]
) -> None:
    files = {"firmware": FIRMWARE, "kernel": KERNEL, "initrd": INITRD, "cmdline": CMDLINE} | other
    tampered = describe(**files)  # type: ignore[arg-type]  # one dictionary of bytes and text
    honest = SimulatedMachine.launch(chip, description).guest.measurement
    assert SimulatedMachine.launch(chip, tampered).guest.measurement != honest


def test_what_cannot_be_launched_is_an_error(chip: SimulatedChip, description: LaunchDescription) -> None:
    with pytest.raises(MeasurementError):
        SimulatedMachine.launch(chip, description, vcpus=0)
    with pytest.raises(MeasurementError):
        SimulatedMachine.launch(chip, description, cmdline="nul\x00")


@pytest.mark.parametrize("collateral", list(Collateral))
def test_evidence_is_what_the_server_reads(
    chip: SimulatedChip, description: LaunchDescription, now: datetime, collateral: Collateral
) -> None:
    machine = SimulatedMachine.launch(chip, description, app_document=DOCUMENT)
    evidence = parse_evidence(machine.evidence(REPORT_DATA, collateral=collateral))
    assert evidence.app_document == DOCUMENT
    assert evidence.report.report_data == REPORT_DATA
    assert evidence.report.host_data == sha256(DOCUMENT).digest()
    assert evidence.hint.image == os_image_hash(description.to_json()).hex()
    assert (evidence.hint.vcpus, evidence.hint.vcpu_type, evidence.hint.guest_features) == (2, "EPYC-v4", 1)
    sent = tuple(each.der for each in evidence.certificates)
    assert sent == (() if collateral is Collateral.NONE else chip.certificates())
    roots = TrustedRoots.with_development([load_der(chip.hierarchy.ark.certificate)])
    certificates = [load_der(each) for each in chip.certificates()]
    assert isinstance(verify(evidence.report, certificates, roots, now, NO_LISTS), VerifiedReport)


def test_evidence_may_be_bare(chip: SimulatedChip, description: LaunchDescription) -> None:
    machine = SimulatedMachine.launch(chip, description)
    evidence = machine.evidence(REPORT_DATA, collateral=Collateral.NONE, hint=False)
    assert set(evidence) == {"tee", "report"}
    assert evidence["tee"] == "sev-snp"
    report = evidence["report"]
    assert isinstance(report, str)
    assert len(from_base64(report)) == 1184
    assert parse_evidence(evidence).report.host_data == bytes(32)


def test_host_data_follows_the_binding_or_what_the_host_says(
    chip: SimulatedChip, description: LaunchDescription
) -> None:
    for binding in (Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG):
        machine = SimulatedMachine.launch(chip, description, app_document=DOCUMENT, binding=binding)
        assert machine.guest.host_data == host_data_of(DOCUMENT, binding)
    machine = SimulatedMachine.launch(chip, description, app_document=DOCUMENT, host_data=b"x" * 32)
    assert machine.guest.host_data == b"x" * 32


def test_a_filled_command_line_is_one_that_the_image_can_show(
    chip: SimulatedChip, description: LaunchDescription
) -> None:
    image = Image(
        name="demo",
        os_image_hash=os_image_hash(description.to_json()),
        description=description,
        enforces=frozenset({Binding.CMDLINE}),
        vcpu_types=("EPYC-v4",),
        vcpus_minimum=1,
        vcpus_maximum=2,
        guest_features=(1,),
    )
    filled = image.filled_cmdline(AppId(b"a" * 20), ComposeHash(b"c" * 32))
    machine = SimulatedMachine.launch(chip, description, cmdline=filled)
    plain = SimulatedMachine.launch(chip, description)
    assert machine.guest.measurement != plain.guest.measurement
    assert machine.hint() == plain.hint()


def test_fake_files_are_deterministic_and_look_their_part() -> None:
    assert fake_kernel(b"k", size=8 << 10) == KERNEL != fake_kernel(b"l", size=8 << 10)
    assert fake_initrd(b"i", size=8 << 10) == INITRD != fake_initrd(b"j", size=8 << 10)
    assert (KERNEL[0x1FE:0x200], KERNEL[0x202:0x206]) == (b"\x55\xaa", b"HdrS")
    assert len(KERNEL) == len(INITRD) == 8 << 10
    assert len(fake_kernel(b"k")) == 2 << 20
    assert len(fake_initrd(b"i")) == 4 << 20

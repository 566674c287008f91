"""A measurement that nobody expected is explained by the component that differs (field lesson 20)."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.difference import Component
from kms.measurement.explanation import MAX_HASHES, Explanation, explain_measurement
from kms.measurement.firmware import Firmware
from kms.measurement.images import Image
from kms.measurement.launch import (
    LaunchDescription,
    LaunchFile,
    Machine,
    Vmm,
    launch_measurement,
    launch_prefix,
    os_image_hash,
    parse_launch_file,
)
from kms.measurement.snp import machine_digest, measurements
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.measurement.vmsa import VmsaVariant
from kms.simulator.firmware import build_firmware

FIRMWARE = Firmware.parse(build_firmware(size=4096, seed=b"explanation")).describe()
REBUILT = Firmware.parse(build_firmware(size=4096, seed=b"rebuilt")).describe()
NAPLES, MILAN = VCPU_TYPES["EPYC-v4"], VCPU_TYPES["EPYC-Milan"]
APP = AppId(b"\xa1" * 20), ComposeHash(b"\xc2" * 32)
TRUTH = LaunchDescription(
    vmm=Vmm.QEMU, firmware=FIRMWARE, kernel=b"\x11" * 32, initrd=b"\x22" * 32, cmdline="console=ttyS0 ro"
)
OTHER = LaunchDescription(
    vmm=Vmm.QEMU, firmware=REBUILT, kernel=b"\x33" * 32, initrd=b"\x44" * 32, cmdline="quiet"
)


def image(description: LaunchDescription, name: str = "os-1", **changes: Any) -> Image:
    values: dict[str, Any] = {
        "name": name,
        "os_image_hash": os_image_hash(description.to_json()),
        "description": description,
        "enforces": frozenset(),
        "vcpu_types": ("EPYC-v4",),
        "vcpus_minimum": 1,
        "vcpus_maximum": 8,
        "guest_features": (0x1,),
    }
    return Image(**values | changes)


def shown(
    description: LaunchDescription = TRUTH,
    vcpus: int = 2,
    signature: int = NAPLES,
    features: int = 1,
    variant: VmsaVariant = VmsaVariant.CURRENT,
) -> Measurement:
    machine, eip = Machine(vcpus, signature, features), description.firmware.reset_eip
    return machine_digest(launch_prefix(description), description.vmm, machine, eip, variant)


def components(explained: Explanation) -> set[Component]:
    return {each.component for each in explained.differences}


MACHINES: dict[str, tuple[Measurement, set[Component], str]] = {
    "one too many vCPUs": (shown(vcpus=9), {Component.VCPUS}, "9 was launched, not 1 to 8"),
    "512 vCPUs": (shown(vcpus=512), {Component.VCPUS}, "512"),
    "type": (shown(signature=MILAN), {Component.VCPU_TYPE}, "EPYC-Milan"),
    "debug swap": (shown(features=0x21), {Component.GUEST_FEATURES}, "0x21 was launched, not 0x1"),
    "secure TSC": (shown(features=0x201), {Component.GUEST_FEATURES}, "0x201"),
    "restricted injection": (shown(features=0x9), {Component.GUEST_FEATURES}, "0x9"),
    "host before 6.10": (
        shown(variant=VmsaVariant.BEFORE_6_10),
        {Component.INITIAL_STATE},
        "before-6.10",
    ),
    "type and features": (
        shown(signature=MILAN, features=0x21),
        {Component.VCPU_TYPE, Component.GUEST_FEATURES},
        "0x21",
    ),
    "count, type and old host": (
        shown(vcpus=64, signature=MILAN, variant=VmsaVariant.BEFORE_6_10),
        {Component.VCPUS, Component.VCPU_TYPE, Component.INITIAL_STATE},
        "64",
    ),
    "hypervisor": (shown(replace(TRUTH, vmm=Vmm.GCE), signature=0), {Component.HYPERVISOR}, "gce"),
}


@pytest.mark.parametrize(("measurement", "expected", "words"), MACHINES.values(), ids=MACHINES)
def test_image_on_another_machine(measurement: Measurement, expected: set[Component], words: str) -> None:
    explained = explain_measurement(measurement, [image(OTHER, "os-2"), image(TRUTH)], None)
    assert explained.conclusive
    assert components(explained) == expected
    assert explained.image == "os-1"
    assert words in str(explained)


DESCRIPTIONS: dict[str, tuple[LaunchDescription, set[Component]]] = {
    "trailing space": (replace(TRUTH, cmdline="console=ttyS0 ro "), {Component.COMMAND_LINE}),
    "newline": (replace(TRUTH, cmdline="console=ttyS0 ro\n"), {Component.COMMAND_LINE}),
    "no command line": (replace(TRUTH, cmdline=None), {Component.COMMAND_LINE}),
    "quotes": (replace(TRUTH, cmdline='"console=ttyS0 ro"'), {Component.COMMAND_LINE}),
    "no initrd": (replace(TRUTH, initrd=None), {Component.INITRD}),
    "kernel hashes off": (
        replace(TRUTH, kernel=None, initrd=None, cmdline=None),
        {Component.KERNEL_HASHES},
    ),
    "other firmware": (replace(TRUTH, firmware=REBUILT), {Component.FIRMWARE}),
    "other kernel": (replace(TRUTH, kernel=OTHER.kernel), {Component.KERNEL}),
    "other initrd": (replace(TRUTH, initrd=OTHER.initrd), {Component.INITRD}),
    "other command line": (replace(TRUTH, cmdline=OTHER.cmdline), {Component.COMMAND_LINE}),
    "other kernel and initrd": (
        replace(TRUTH, kernel=OTHER.kernel, initrd=OTHER.initrd),
        {Component.KERNEL, Component.INITRD},
    ),
}


@pytest.mark.parametrize(("launched", "expected"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
@pytest.mark.parametrize("vcpus", [2, 12])
def test_changed_image(launched: LaunchDescription, expected: set[Component], vcpus: int) -> None:
    explained = explain_measurement(shown(launched, vcpus), [image(TRUTH), image(OTHER, "os-2")], None)
    assert explained.conclusive
    assert explained.image == "os-1"
    assert components(explained) == expected | ({Component.VCPUS} if vcpus > 8 else set())


GIVEN = LaunchFile(description=TRUTH, vcpus=2, vcpu_type="EPYC-v4", vcpu_signature=NAPLES, guest_features=1)
INPUTS: dict[str, tuple[LaunchFile, Component]] = {
    "count": (replace(GIVEN, vcpus=4), Component.VCPUS),
    "type": (replace(GIVEN, vcpu_type="EPYC-Milan", vcpu_signature=MILAN), Component.VCPU_TYPE),
    "features": (replace(GIVEN, guest_features=0x21), Component.GUEST_FEATURES),
    "space": (
        replace(GIVEN, description=replace(TRUTH, cmdline="console=ttyS0 ro ")),
        Component.COMMAND_LINE,
    ),
}
FOREIGN: dict[str, tuple[LaunchFile, Component]] = {
    "firmware": (replace(GIVEN, description=replace(TRUTH, firmware=REBUILT)), Component.FIRMWARE),
    "kernel": (replace(GIVEN, description=replace(TRUTH, kernel=b"\x99" * 32)), Component.KERNEL),
    "initrd": (replace(GIVEN, description=replace(TRUTH, initrd=b"\x99" * 32)), Component.INITRD),
    "command line": (
        replace(GIVEN, description=replace(TRUTH, cmdline="console=hvc0")),
        Component.COMMAND_LINE,
    ),
}


@pytest.mark.parametrize(("given", "component"), INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("images", [(), (image(OTHER, "os-2"),)], ids=["no policy", "policy"])
def test_wrong_launch_inputs_alone(
    given: LaunchFile, component: Component, images: tuple[Image, ...]
) -> None:
    explained = explain_measurement(shown(), images, given)
    assert explained.conclusive
    assert components(explained) == {component}
    assert explained.image is None


@pytest.mark.parametrize(("given", "component"), (INPUTS | FOREIGN).values(), ids=INPUTS | FOREIGN)
def test_wrong_launch_inputs_where_policy_knows_the_image(given: LaunchFile, component: Component) -> None:
    explained = explain_measurement(shown(), [image(OTHER, "os-2"), image(TRUTH)], given)
    assert (explained.conclusive, explained.image) == (True, "os-1")
    assert components(explained) == {component}


@pytest.mark.parametrize(("given", "component"), FOREIGN.values(), ids=FOREIGN)
def test_honest_remainder(given: LaunchFile, component: Component) -> None:
    explained = explain_measurement(shown(), [], given)
    assert not explained.conclusive
    assert (explained.image, explained.differences) == (None, ())
    assert component in explained.remaining
    assert explained.ruled_out == (Component.VCPUS, Component.VCPU_TYPE, Component.GUEST_FEATURES)
    assert "a digest does not tell them apart" in str(explained)


def test_nearest_by_likeness_when_nothing_fits() -> None:
    given = replace(GIVEN, description=replace(TRUTH, cmdline="unknown", initrd=b"\x98" * 32))
    explained = explain_measurement(shown(vcpus=3), [image(OTHER, "os-2"), image(TRUTH)], given)
    assert explained.conclusive  # the truth is known
    foreign = shown(replace(TRUTH, kernel=b"\x97" * 32))
    explained = explain_measurement(foreign, [image(OTHER, "os-2"), image(TRUTH)], given)
    assert (explained.conclusive, explained.image) == (False, "os-1")
    assert "the nearest known image is os-1" in str(explained)


def test_right_launch_inputs_are_compared_with_the_nearest_image() -> None:
    explained = explain_measurement(
        shown(), [image(OTHER, "os-2"), image(replace(TRUTH, kernel=b"k" * 32))], GIVEN
    )
    assert (explained.conclusive, explained.image) == (True, "os-1")
    assert components(explained) == {Component.KERNEL}


def test_placeholders_filled_and_not_filled() -> None:
    template = "app={app_id} compose={compose_hash}"
    known = image(replace(TRUTH, cmdline=template))
    unfilled = explain_measurement(shown(known.description), [known], None, app=APP)
    assert components(unfilled) == {Component.COMMAND_LINE}
    assert "{app_id}" in str(unfilled)
    nameless = explain_measurement(shown(known.description), [known], None)
    assert components(nameless) == {Component.COMMAND_LINE}
    filled = known.filled_cmdline(*APP)
    explained = explain_measurement(shown(replace(TRUTH, cmdline=filled), 9), [known], None, app=APP)
    assert components(explained) == {Component.VCPUS}


def test_nothing_to_compare_with() -> None:
    explained = explain_measurement(shown(), [], None)
    assert not explained.conclusive
    assert "no image" in str(explained)


def test_firmware_without_a_reset_address_has_one_vcpu() -> None:
    single = replace(TRUTH, firmware=FIRMWARE._replace(reset_eip=0))
    explained = explain_measurement(shown(single, 1, MILAN), [image(single, vcpus_maximum=1)], None)
    assert components(explained) == {Component.VCPU_TYPE}
    assert not explain_measurement(shown(vcpus=3), [image(single)], None).conclusive


def test_work_is_bounded_whatever_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 images, the measurement none of theirs."""
    tried = 0

    def counting(prefix: bytes, vmm: Vmm, machine: Machine, *rest: Any) -> Any:
        nonlocal tried
        tried += machine.vcpus
        return measurements(prefix, vmm, machine, *rest)

    monkeypatch.setattr("kms.measurement.explanation.measurements", counting)
    images = [
        image(replace(TRUTH, kernel=number.to_bytes(32, "big")), f"os-{number}") for number in range(2000)
    ]
    started = time.perf_counter()
    explained = explain_measurement(shown(replace(TRUTH, kernel=b"\xff" * 32)), images, None)
    elapsed = time.perf_counter() - started
    assert not explained.conclusive
    assert not explained.ruled_out
    assert explained.image is None
    assert tried <= MAX_HASHES + 512
    # Half a second where nothing else runs; machines are shared.
    assert elapsed < 5


def test_every_measurement_of_an_allowed_machine_is_its_own() -> None:
    for vcpus in range(1, 9):
        explained = explain_measurement(shown(vcpus=vcpus), [image(TRUTH)], None)
        assert (explained.image, explained.differences, explained.conclusive) == ("os-1", (), True)


def test_a_release_explains_nothing() -> None:
    """A guest that is told how it differs from an allowed image is told what to pretend."""
    program = "import sys, kms.release; sys.exit('kms.measurement.explanation' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def anchored() -> tuple[dict[str, Any], Measurement]:
    root = Path(os.environ.get("KMS_REAL_EVIDENCE", Path(__file__).parents[4] / "shared"))
    folder = root / "evidence" / "milan-v3-vcek-launch"
    if not folder.is_dir():
        pytest.skip("no hardware evidence beside the project (KMS_REAL_EVIDENCE)")
    document: dict[str, Any] = json.loads((folder / "launch.json").read_bytes())
    return document, Measurement((folder / "report.bin").read_bytes()[0x90:0xC0])


@pytest.mark.real_evidence
@pytest.mark.parametrize(
    ("changes", "component"),
    [
        ({"vcpus": 4}, Component.VCPUS),
        ({"vcpu_type": "EPYC-Milan"}, Component.VCPU_TYPE),
        ({"guest_features": 0x21}, Component.GUEST_FEATURES),
        ({"base_cmdline": "console=ttyS0"}, Component.COMMAND_LINE),
        ({"kernel_hash": "aa" * 32}, Component.KERNEL),
        ({"initrd_hash": "aa" * 32}, Component.INITRD),
        ({"ovmf_hash": "aa" * 48}, Component.FIRMWARE),
    ],
    ids=str,
)
def test_what_hardware_measured(changes: dict[str, Any], component: Component) -> None:
    document, measurement = anchored()
    true = parse_launch_file(document)
    machine = true.machine()
    assert machine is not None
    assert launch_measurement(true.description, machine) == measurement
    wrong = parse_launch_file(document | changes)
    explained = explain_measurement(measurement, [image(true.description)], wrong)
    assert (explained.conclusive, components(explained)) == (True, {component})
    alone = explain_measurement(measurement, [], wrong)
    assert components(alone) == {component} or component in alone.remaining

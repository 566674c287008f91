"""Launch descriptions: their JSON form, their hash, and what is refused of them."""

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.measurement.errors import MeasurementError
from kms.measurement.firmware import Firmware
from kms.measurement.launch import (
    LaunchDescription,
    Machine,
    Vmm,
    launch_measurement,
    os_image_hash,
    parse_launch_file,
)
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.simulator.firmware import build_firmware

KERNEL, INITRD = "aa" * 32, "bb" * 32
FIRMWARE = Firmware.parse(build_firmware(size=4096, seed=b"launch")).describe()
MACHINE = Machine(2, VCPU_TYPES["EPYC-v4"], 1)
MISSING = object()


def launch(**changes: Any) -> dict[str, Any]:
    bare = LaunchDescription(vmm=Vmm.QEMU, firmware=FIRMWARE).to_json()
    value = bare | {"kernel": KERNEL, "initrd": INITRD, "cmdline": "console=ttyS0"} | changes
    return {name: member for name, member in value.items() if member is not MISSING}


def firmware(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = launch()["firmware"] | changes
    return value


def measured(value: dict[str, Any], *, cmdline: str | None = None) -> bytes:
    return launch_measurement(LaunchDescription.parse(value), MACHINE, cmdline=cmdline)


@pytest.mark.parametrize("vmm", Vmm)
def test_round_trip(vmm: Vmm) -> None:
    value = launch(vmm=vmm.value)
    assert LaunchDescription.parse(value).to_json() == value


def test_without_kernel() -> None:
    value = launch(kernel=MISSING, initrd=MISSING, cmdline=MISSING)
    assert LaunchDescription.parse(value).to_json() == value
    assert measured(value) != measured(launch())


def test_absent_initrd_and_cmdline_are_empty_ones() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert measured(launch(initrd=MISSING, cmdline=MISSING)) == measured(launch(initrd=empty, cmdline=""))


def test_every_part_counts() -> None:
    values = [
        launch(),
        launch(kernel=INITRD),
        launch(initrd=KERNEL),
        launch(cmdline="console=ttyS0 "),
        launch(cmdline=" console=ttyS0"),
        launch(cmdline="console=ttyS0\n"),
        launch(vmm="ec2"),
        launch(vmm="gce"),
        launch(vmm="krun"),
        launch(firmware=firmware(digest="cc" * 48)),
        launch(firmware=firmware(reset_eip=1)),
        launch(firmware=firmware(hashes_table_gpa=0x81_0C10)),
        launch(firmware=firmware(sections=firmware()["sections"][::-1])),
    ]
    assert len({measured(value) for value in values}) == len(values)


def test_cmdline_replaces_the_written_one() -> None:
    assert measured(launch(), cmdline="other") == measured(launch(cmdline="other"))
    assert measured(launch(), cmdline="") == measured(launch(cmdline=""))
    with pytest.raises(MeasurementError, match="only with a kernel"):
        measured(launch(kernel=MISSING, initrd=MISSING, cmdline=MISSING), cmdline="x")
    for wrong in ("a\0", "\ud800"):
        with pytest.raises(MeasurementError):
            measured(launch(), cmdline=wrong)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_digests_of_another_length_are_not_padded(length: int) -> None:
    description = LaunchDescription(vmm=Vmm.QEMU, firmware=FIRMWARE, kernel=bytes(length))
    with pytest.raises(MeasurementError, match="SHA-256"):
        launch_measurement(description, MACHINE)


SECTION = {"gpa": 0, "size": 4096, "type": 1}
REFUSED = {
    "not an object": [],
    "unknown member": launch(append=""),
    "no firmware": launch(firmware=MISSING),
    "unknown vmm": launch(vmm="QEMU"),
    "initrd without kernel": launch(kernel=MISSING, cmdline=MISSING),
    "cmdline without kernel": launch(kernel=MISSING, initrd=MISSING),
    "null kernel": launch(kernel=None, initrd=MISSING, cmdline=MISSING),
    "short kernel": launch(kernel=KERNEL[2:]),
    "uppercase kernel": launch(kernel=KERNEL.upper()),
    "NUL in cmdline": launch(cmdline="a\0b"),
    "trailing NUL in cmdline": launch(cmdline="a\0"),
    "surrogate in cmdline": launch(cmdline="\ud800"),
    "long cmdline": launch(cmdline="a" * 65537),
    "short digest": launch(firmware=firmware(digest="cc" * 47)),
    "unknown firmware member": launch(firmware=firmware(version=1)),
    "zero reset address": launch(firmware=firmware(reset_eip=0)),
    "reset address beyond 32 bits": launch(firmware=firmware(reset_eip=1 << 32)),
    "boolean reset address": launch(firmware=firmware(reset_eip=True)),
    "zero hash table address": launch(firmware=firmware(hashes_table_gpa=0)),
    "hash table outside its section": launch(firmware=firmware(hashes_table_gpa=0x82_0C00)),
    "no sections": launch(firmware=firmware(sections=[])),
    "65 sections": launch(firmware=firmware(sections=[SECTION] * 65)),
    "unknown section type": launch(firmware=firmware(sections=[SECTION | {"type": 5}])),
    "unknown section member": launch(firmware=firmware(sections=[SECTION | {"name": "x"}])),
    "huge section": launch(firmware=firmware(sections=[SECTION | {"size": 0xFFFF_F000}])),
    "unaligned section": launch(firmware=firmware(sections=[SECTION | {"gpa": 1}])),
    "fractional section": launch(firmware=firmware(sections=[SECTION | {"size": 4096.0}])),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_refuses(value: Any) -> None:
    with pytest.raises(MeasurementError) as refusal:
        LaunchDescription.parse(value)
    assert KERNEL not in refusal.value.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(member=st.sampled_from(["vmm", "firmware", "kernel", "initrd", "cmdline"]), value=json_values)
def test_a_description_that_parses_can_be_measured(member: str, value: Any) -> None:
    try:
        description = LaunchDescription.parse(launch(**{member: value}))
    except MeasurementError:
        return
    launch_measurement(description, Machine(512, 0, 1))


def test_os_image_hash_is_of_the_canonical_form() -> None:
    value = launch()
    other_order = json.loads(json.dumps(dict(reversed(value.items()))))
    assert os_image_hash(value) == os_image_hash(other_order)
    assert os_image_hash(value) != os_image_hash(launch(initrd=MISSING))
    # Computed by hand: SHA-256 of {"a":1,"b":"é"} in UTF-8.
    assert os_image_hash({"b": "é", "a": 1}).hex() == (
        "09ad9fd2fb648cb2f62141215828ea00a62c299db05d20aa9ade2f527a301cc6"
    )


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": 1 << 60}, {"a": "\ud800"}])
def test_os_image_hash_refuses_what_has_no_canonical_form(value: Any) -> None:
    with pytest.raises(MeasurementError):
        os_image_hash(value)


class TestLaunchFile:
    machine: ClassVar = {"vcpus": 2, "vcpu_type": "EPYC-v4", "guest_features": "0x1"}

    @pytest.mark.parametrize("nested", [False, True])
    def test_machine_beside_the_description(self, nested: bool) -> None:
        value: dict[str, Any] = {"launch": launch()} if nested else launch()
        file = parse_launch_file(value | self.machine)
        assert file.description == LaunchDescription.parse(launch())
        assert (file.vcpu_type, file.machine()) == ("EPYC-v4", MACHINE)

    def test_signature_instead_of_type(self) -> None:
        file = parse_launch_file(launch() | {"vcpus": 2, "vcpu_signature": "0x800f12", "guest_features": 1})
        assert file.machine() == MACHINE

    def test_parts_may_be_open(self) -> None:
        file = parse_launch_file(launch())
        assert (file.vcpus, file.vcpu_signature, file.machine()) == (None, None, None)

    def test_clouds_do_not_need_a_type(self) -> None:
        file = parse_launch_file(launch(vmm="ec2") | {"vcpus": 4, "guest_features": 1})
        assert file.machine() == Machine(4, 0, 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"vcpus": 0},
            {"vcpus": 513},
            {"vcpus": "2"},
            {"vcpu_type": "EPYC-v9"},
            {"vcpu_type": "EPYC-v4", "vcpu_signature": "0xa00f11"},
            {"vcpu_signature": 1 << 32},
            {"guest_features": "1"},
            {"guest_features": -1},
            {"guest_features": True},
            {"measurement": "00" * 48},
        ],
        ids=str,
    )
    def test_refuses(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(MeasurementError):
            parse_launch_file(launch() | wrong)

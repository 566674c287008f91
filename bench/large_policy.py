"""Policies of any size, and guests that they allow: made of counters, the same in every run."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256, sha384, shake_256
from typing import Final

import rfc8785

from kms.boot_info import BootInfo
from kms.identifiers import AppId, ChipId, ComposeHash, KeyDigest, Measurement, OsImageHash
from kms.keys.names import KeyRequest
from kms.measurement.images import Binding
from kms.policy.decision import Ask, Context
from kms.snp.advisories import TcbStatus
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions
from kms.strict_json import JsonValue

NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
ASK: Final = Ask((KeyRequest.parse("disk", "app"),))
CONTEXT: Final = Context(
    now=NOW,
    development=False,
    kms_identities=frozenset(),
    document_kms_identity=None,
    enforces=frozenset({Binding.HOST_DATA}),
)

_TCB: Final = TcbVersion(bootloader=10, tee=0, snp=23, microcode=84)
_FIRMWARE: Final = FirmwareVersion(major=1, minor=55, build=22)
_SMT_AND_RESERVED_ONE: Final = 1 << 16 | 1 << 17

_Document = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Size:
    """How many apps, chips, sets that hold the chips, and images."""

    apps: int
    chips: int
    chip_sets: int
    images: int


def canonical(size: Size) -> bytes:
    """Give the policy as a server stores it."""
    values = sorted(_documents(size), key=lambda each: (each["kind"], each.get("id", each["name"])))
    return rfc8785.dumps(values)


def guest(size: Size, number: int) -> BootInfo:
    """Give a guest of app `number`, on a chip and an image that the app lists."""
    chip = number % size.chip_sets
    return BootInfo(
        tee="sev-snp",
        product=Product.GENOA,
        cpuid=Cpuid(0x19, 0x11, 1),
        report_version=5,
        signer=Signer.VCEK,
        csp_id=None,
        measurement=Measurement(bytes(48)),
        os_image_hash=OsImageHash.from_hex(_image_hash(_launch(number % size.images))),
        image=f"os-{number % size.images}",
        vcpus=2,
        vcpu_type="EPYC-v4",
        guest_features=1,
        app_id=AppId.from_hex(_hex("app", number, 20)),
        compose_hash=ComposeHash.from_hex(_hex("compose", number, 32)),
        instance_id=None,
        binding=Binding.HOST_DATA,
        chip_id=ChipId.from_hex(_hex("chip", chip, 64)),
        tcb=TcbVersions(current=_TCB, reported=_TCB, committed=_TCB, launch=_TCB),
        current_firmware=_FIRMWARE,
        committed_firmware=_FIRMWARE,
        tcb_status=TcbStatus.UP_TO_DATE,
        advisories=(),
        guest_policy=GuestPolicy.decode(_SMT_AND_RESERVED_ONE),
        platform_info=PlatformInfo(0),
        launch_mitigations=None,
        current_mitigations=None,
        vmpl=0,
        guest_svn=0,
        family_id=bytes(16),
        image_id=bytes(16),
        id_key_digest=KeyDigest(bytes(48)),
        author_key_digest=KeyDigest(bytes(48)),
        host_data=bytes(32),
        report_id=bytes(32),
    )


def _documents(size: Size) -> Iterator[_Document]:
    for number in range(size.apps):
        yield _app(size, number)
    for number in range(size.images):
        yield _image(number)
    for number in range(size.chip_sets):
        chips: list[JsonValue] = [
            _hex("chip", each, 64) for each in range(number, size.chips, size.chip_sets)
        ]
        yield {"kind": "chips", "name": f"rack-{number}", "chips": chips}
    levels: _Document = {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}
    yield {"kind": "tcb", "name": "fleet", "products": {"genoa": levels}}
    yield {"kind": "guest", "name": "standard", "firmware_minimum": "1.51"}
    yield {"kind": "revoked", "name": "emergency", "chips": [_hex("lost chip", 0, 64)]}


def _app(size: Size, number: int) -> _Document:
    return {
        "kind": "app",
        "id": _hex("app", number, 20),
        "name": f"app-{number}",
        "description": f"application number {number}",
        "owner": f"team-{number % 50}@example.com",
        "compose": [_hex("compose", number, 32), _hex("next compose", number, 32)],
        "images": [f"os-{(number + each) % size.images}" for each in range(3)],
        "chips": [f"rack-{(number + each) % size.chip_sets}" for each in range(2)],
        "tcb": "fleet",
        "guest": "standard",
        "binding": ["host-data"],
        "keys": ["disk", "env", "signing", "custom:db/*", "disk@instance"],
    }


def _image(number: int) -> _Document:
    """Five vCPU types, two feature sets and 1 to 64 vCPUs: 640 measurements."""
    launch = _launch(number)
    return {
        "kind": "image",
        "name": f"os-{number}",
        "launch": launch,
        "os_image_hash": _image_hash(launch),
        "enforces": ["host-data"],
        "vcpu_types": ["EPYC-v4", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"],
        "vcpus": {"min": 1, "max": 64},
        "guest_features": ["0x1", "0x21"],
    }


def _launch(number: int) -> _Document:
    """Give a launch block as OVMF's is laid out; a fleet has few firmwares and many kernels."""
    return {
        "vmm": "qemu",
        "firmware": {
            "digest": sha384(b"firmware %d" % (number % 4)).hexdigest(),
            "reset_eip": 0x80B004,
            "hashes_table_gpa": 0x810C00,
            "sections": [
                {"gpa": 0x800000, "size": 0x9000, "type": 1},
                {"gpa": 0x80E000, "size": 0x1000, "type": 2},
                {"gpa": 0x80F000, "size": 0x1000, "type": 3},
                {"gpa": 0x810000, "size": 0x1000, "type": 0x10},
            ],
        },
        "kernel": _hex("kernel", number, 32),
        "initrd": _hex("initrd", number, 32),
        "cmdline": f"console=ttyS0 root=/dev/vda release={number}",
    }


def _image_hash(launch: _Document) -> str:
    return sha256(rfc8785.dumps(launch)).hexdigest()


def _hex(what: str, number: int, length: int) -> str:
    return shake_256(f"{what} {number}".encode()).hexdigest(length)

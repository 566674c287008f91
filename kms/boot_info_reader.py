"""Reading a BootInfo back from the JSON form that it writes, so that a recorded guest is judged again.

The exact inverse of `BootInfo.to_json`: what reads is what would be written again, so that nothing in a
record means anything but what a release wrote there.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from kms.boot_info import BootInfo
from kms.encoding import from_0x
from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, KeyDigest, Measurement, OsImageHash
from kms.measurement.images import Binding
from kms.snp.advisories import TcbStatus
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions, component_names
from kms.strict_json import MAX_VALUES, Fields, JsonError, JsonValue

T = TypeVar("T")
W = TypeVar("W", bound=StrEnum)


def read_boot_info(value: JsonValue, error: Callable[[str], Exception] = JsonError) -> BootInfo:
    """Read what `BootInfo.to_json` wrote. Raises what `error` makes for anything else."""
    fields = Fields(value, "boot_info", error)
    product = _word(fields, "product", Product)
    tcb, firmware, mitigations = (fields.object(name) for name in ("tcb", "firmware", "mitigations"))
    boot_info = BootInfo(
        tee=fields.text("tee"),
        product=product,
        cpuid=fields.nullable("cpuid", lambda name: _cpuid(fields.object(name))),
        report_version=fields.integer("report_version"),
        signer=_word(fields, "signer", Signer),
        csp_id=fields.nullable("csp_id", fields.text),
        measurement=fields.hex("measurement", Measurement),
        os_image_hash=_hex_or_null(fields, "os_image_hash", OsImageHash),
        image=fields.nullable("image", fields.text),
        vcpus=fields.nullable("vcpus", fields.integer),
        vcpu_type=fields.nullable("vcpu_type", fields.text),
        guest_features=_bits_or_null(fields, "guest_features"),
        app_id=_hex_or_null(fields, "app_id", AppId),
        compose_hash=_hex_or_null(fields, "compose_hash", ComposeHash),
        instance_id=_hex_or_null(fields, "instance_id", InstanceId),
        binding=fields.nullable("binding", lambda name: _word(fields, name, Binding)),
        chip_id=_hex_or_null(fields, "chip_id", ChipId),
        tcb=TcbVersions(
            current=_levels(tcb.object("current"), product),
            reported=_levels(tcb.object("reported"), product),
            committed=_levels(tcb.object("committed"), product),
            launch=_levels(tcb.object("launch"), product),
        ),
        current_firmware=_firmware(firmware.object("current")),
        committed_firmware=_firmware(firmware.object("committed")),
        tcb_status=fields.nullable("tcb_status", lambda name: _word(fields, name, TcbStatus)),
        advisories=fields.nullable("advisories", lambda name: fields.texts(name, at_most=MAX_VALUES)),
        guest_policy=GuestPolicy.decode(_raw(fields.object("guest_policy"))),
        platform_info=PlatformInfo(_raw(fields.object("platform_info"))),
        launch_mitigations=_bits_or_null(mitigations, "launch"),
        current_mitigations=_bits_or_null(mitigations, "current"),
        vmpl=fields.integer("vmpl"),
        guest_svn=fields.integer("guest_svn"),
        family_id=fields.hex("family_id", _of_length(16)),
        image_id=fields.hex("image_id", _of_length(16)),
        id_key_digest=fields.hex("id_key_digest", KeyDigest),
        author_key_digest=fields.hex("author_key_digest", KeyDigest),
        host_data=fields.hex("host_data", _of_length(32)),
        report_id=fields.hex("report_id", _of_length(32)),
    )
    # Whatever else stands there was not written by a release: names of bits that contradict the raw value,
    # numbers in another spelling, members that nobody knows.
    if boot_info.to_json() != value:
        raise error("boot_info is not as it was written")
    return boot_info


def _word(fields: Fields, name: str, words: type[W]) -> W:
    return fields.convert(name, fields.text(name), words)


def _hex_or_null(fields: Fields, name: str, kind: Callable[[bytes], T]) -> T | None:
    return fields.nullable(name, lambda member: fields.hex(member, kind))


def _bits_or_null(fields: Fields, name: str) -> int | None:
    return fields.nullable(name, lambda member: fields.convert(member, fields.text(member), from_0x))


def _raw(fields: Fields) -> int:
    """Read the raw value of a bit field; the names of its bits only repeat it."""
    return fields.convert("raw", fields.text("raw"), from_0x)


def _cpuid(fields: Fields) -> Cpuid:
    return Cpuid(fields.integer("family"), fields.integer("model"), fields.integer("stepping"))


def _levels(fields: Fields, product: Product) -> TcbVersion:
    return TcbVersion(**{name: fields.integer(name, maximum=0xFF) for name in component_names(product)})


def _firmware(fields: Fields) -> FirmwareVersion:
    major, _, minor = fields.text("version").partition(".")
    return FirmwareVersion(
        major=fields.convert("version", major, int),
        minor=fields.convert("version", minor, int),
        build=fields.integer("build"),
    )


def _of_length(length: int) -> Callable[[bytes], bytes]:
    def check(value: bytes) -> bytes:
        if len(value) != length:
            raise ValueError(f"not {length} bytes")
        return value

    return check

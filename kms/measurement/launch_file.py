"""Launch inputs as files carry them: a description and, beside it, the machine it was launched on."""

from dataclasses import dataclass

from kms.identifiers import Measurement
from kms.measurement.description import MAX_CMDLINE, LaunchDescription, Sha256, take_sections
from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import parse_features
from kms.measurement.metadata import FOUR_GIB, FirmwareDescription
from kms.measurement.snp import MAX_VCPUS, Machine
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.measurement.vmsa import Vmm
from kms.strict_json import Fields, JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFile:
    """A description with what is known of the machine it ran on."""

    description: LaunchDescription
    vcpus: int | None = None
    vcpu_type: str | None = None
    vcpu_signature: int | None = None
    guest_features: int | None = None

    def machine(self) -> Machine | None:
        """Give the machine, or None where the file leaves part of it open."""
        signature = self.vcpu_signature
        if signature is None and not self.description.vmm.shows_vcpu_type:
            signature = 0
        if self.vcpus is None or signature is None or self.guest_features is None:
            return None
        return Machine(self.vcpus, signature, self.guest_features)


def parse_launch_file(value: JsonValue) -> LaunchFile:
    """Read a launch description with its machine beside it, or dstack's ``sev_snp_measurement`` document.

    ``vcpus``, ``vcpu_type``, ``vcpu_signature`` and ``guest_features`` (integers, the last two also as
    ``0x`` text) stand in the description itself, or beside it where it is the member ``launch``.

    Raises:
        MeasurementError: neither of these, or something that cannot be measured.

    """
    fields = Fields(value, "launch file", MeasurementError)
    if fields.has("launch"):
        description = LaunchDescription.parse(fields.take("launch"))
    elif fields.has("ovmf_sections"):
        description = _dstack_description(fields)
    else:
        description = LaunchDescription.take(fields)
    vcpus = fields.integer("vcpus", minimum=1, maximum=MAX_VCPUS) if fields.has("vcpus") else None
    vcpu_type = _vcpu_type(fields) if fields.has("vcpu_type") else None
    signature = _number(fields, "vcpu_signature", bits=32) if fields.has("vcpu_signature") else None
    features = _number(fields, "guest_features", bits=64) if fields.has("guest_features") else None
    fields.end()
    if vcpu_type is not None:
        if signature not in {None, VCPU_TYPES[vcpu_type]}:
            fields.fail("`vcpu_signature` is not that of `vcpu_type`")
        signature = VCPU_TYPES[vcpu_type]
    return LaunchFile(
        description=description,
        vcpus=vcpus,
        vcpu_type=vcpu_type,
        vcpu_signature=signature,
        guest_features=features,
    )


def _vcpu_type(fields: Fields) -> str:
    # dstack takes vCPU types in any case; QEMU's spelling is the one that we go on with.
    given = fields.text("vcpu_type", at_most=64).lower()
    known = {name.lower(): name for name in VCPU_TYPES}
    if given not in known:
        fields.fail("`vcpu_type` is not a known vCPU type")
    return known[given]


def _number(fields: Fields, name: str, *, bits: int) -> int:
    value = fields.take(name)
    number = parse_features(value) if isinstance(value, str) else value
    if type(number) is not int or not 0 <= number < 1 << bits:
        fields.fail(f"`{name}` must be an integer or 0x text of at most {bits} bits")
    return number


def _dstack_description(fields: Fields) -> LaunchDescription:
    """Read the members of dstack's ``sev_snp_measurement`` (dstack-mr/src/sev.rs, MeasurementInput).

    dstack launches with QEMU and always with a kernel. It trims the command line before hashing it; QEMU
    does not, so neither do we (field lesson 17).
    """
    return LaunchDescription(
        vmm=Vmm.QEMU,
        firmware=FirmwareDescription(
            digest=fields.hex("ovmf_hash", Measurement),
            reset_eip=fields.integer("sev_es_reset_eip", minimum=1, maximum=FOUR_GIB - 1),
            hashes_table_gpa=fields.integer("sev_hashes_table_gpa", maximum=FOUR_GIB - 1),
            sections=take_sections(fields, "ovmf_sections", type_name="section_type"),
        ),
        kernel=fields.hex("kernel_hash", Sha256),
        initrd=_dstack_initrd(fields),
        cmdline=fields.text("base_cmdline", at_most=MAX_CMDLINE),
    )


def _dstack_initrd(fields: Fields) -> bytes | None:
    text = fields.text("initrd_hash", at_most=64)
    return fields.convert("initrd_hash", text, Sha256.from_hex) if text else None

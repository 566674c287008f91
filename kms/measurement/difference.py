"""In which components two launches differ: one that was expected, and one that shows a measurement."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from typing_extensions import override

from kms.identifiers import AppId, ComposeHash, OsImageHash
from kms.measurement.alternatives import Family, own_families
from kms.measurement.description import LaunchDescription
from kms.measurement.guest_features import SNP_ACTIVE
from kms.measurement.images import Image, filled_cmdline, has_placeholders
from kms.measurement.kernel_hashes import NO_INITRD
from kms.measurement.launch import LaunchFile
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.measurement.vmsa import VmsaVariant

_AROUND: Final = 12  # characters of a command line shown before a difference
_SHOWN: Final = 48


class Component(StrEnum):
    """A part of a launch that its measurement depends on."""

    VCPUS = "vCPU count"
    VCPU_TYPE = "vCPU type"
    GUEST_FEATURES = "guest features"
    INITIAL_STATE = "initial vCPU state"
    HYPERVISOR = "hypervisor"
    FIRMWARE = "firmware"
    KERNEL_HASHES = "kernel hashes"
    KERNEL = "kernel"
    INITRD = "initrd"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Difference:
    """A component, what the measurement shows of it, and what was expected. Texts for operators."""

    component: Component
    seen: str
    wanted: str

    @override
    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.component}: {self.seen} was launched, not {self.wanted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A launch that was expected: an image on any machine it may run on, or what a launch file says.

    `name` and `image_hash` are None for a launch file. `template` is the command line before its
    placeholders were filled, None where nothing was.
    """

    name: str | None
    image_hash: OsImageHash | None
    description: LaunchDescription
    template: str | None
    vcpus: range
    types: tuple[str, ...]
    signatures: tuple[int, ...]
    features: tuple[int, ...]

    @classmethod
    def of_image(cls, image: Image, app: tuple[AppId, ComposeHash] | None) -> Self:
        """Expect an image, its command line filled with `app` where it has placeholders."""
        description, template = _filled(image.description, app)
        return cls(
            name=image.name,
            image_hash=image.os_image_hash,
            description=description,
            template=template,
            vcpus=range(image.vcpus_minimum, image.vcpus_maximum + 1),
            types=image.vcpu_types,
            signatures=tuple(VCPU_TYPES[name] for name in image.vcpu_types),
            features=image.guest_features,
        )

    @classmethod
    def of_file(cls, given: LaunchFile, app: tuple[AppId, ComposeHash] | None) -> Self:
        """Expect what a launch file says; what it leaves open may be anything, features 0x1."""
        description, template = _filled(given.description, app)
        known = given.vcpu_signature is not None
        return cls(
            name=None,
            image_hash=None,
            description=description,
            template=template,
            vcpus=range(given.vcpus or 1, (given.vcpus or MAX_VCPUS) + 1),
            types=() if given.vcpu_type is None else (given.vcpu_type,),
            signatures=(given.vcpu_signature or 0,) if known else tuple(VCPU_TYPES.values()),
            features=(SNP_ACTIVE if given.guest_features is None else given.guest_features,),
        )

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of machines that were expected."""
        return own_families(self.description.vmm, self.signatures, self.features)


@dataclass(frozen=True, slots=True)
class FoundLaunch:
    """A launch that shows the measurement."""

    description: LaunchDescription
    family: Family
    vcpus: int


def differences(found: FoundLaunch, expected: Expected) -> Iterator[Difference]:
    """Give what is different in the launch that was found; nothing where it is what was expected."""
    family, vcpus = found.family, expected.vcpus
    if found.vcpus not in vcpus:
        wanted = str(vcpus[0]) if len(vcpus) == 1 else f"{vcpus[0]} to {vcpus[-1]}"
        yield Difference(Component.VCPUS, str(found.vcpus), wanted)
    if found.description.vmm is not expected.description.vmm:
        yield Difference(Component.HYPERVISOR, found.description.vmm.value, expected.description.vmm.value)
    elif family.vmm.shows_vcpu_type and family.vcpu_signature not in expected.signatures:
        types = ", ".join(expected.types) or " ".join(f"{each:#x}" for each in expected.signatures)
        yield Difference(Component.VCPU_TYPE, type_names(family.vcpu_signature), types)
    if family.guest_features not in expected.features:
        wanted = ", ".join(map(hex, expected.features))
        yield Difference(Component.GUEST_FEATURES, hex(family.guest_features), wanted)
    if family.variant is not VmsaVariant.CURRENT:
        yield Difference(Component.INITIAL_STATE, family.variant.value, VmsaVariant.CURRENT.value)
    yield from _of_description(found.description, expected.description)
    template = found.description.cmdline or ""
    unfilled = has_placeholders(template) and template == expected.description.cmdline
    if unfilled and expected.image_hash is not None:
        # No app to fill them with was known; yet no app's launch shows this.
        yield Difference(Component.COMMAND_LINE, "unfilled placeholders", "one that names an app")


def type_names(signature: int) -> str:
    """Name the vCPU types of a signature, which measure alike; in hex where there is none."""
    names = [name for name, value in VCPU_TYPES.items() if value == signature]
    return "/".join(names) or f"{signature:#x}"


def same_launch(one: LaunchDescription, other: LaunchDescription) -> bool:
    """Say whether two descriptions measure the same on every machine."""
    return one.vmm is other.vmm and not any(_of_description(one, other))


def likeness(one: LaunchDescription, other: LaunchDescription) -> tuple[int, int]:
    """Rank how alike two descriptions are: by the number of equal parts, then by the command lines."""
    parts = ("vmm", "firmware", "kernel", "initrd", "cmdline")
    equal = sum(getattr(one, part) == getattr(other, part) for part in parts)
    return equal, _common(one.cmdline or "", other.cmdline or "")


def _of_description(seen: LaunchDescription, wanted: LaunchDescription) -> Iterator[Difference]:
    if seen.firmware != wanted.firmware:
        yield _digests(Component.FIRMWARE, seen.firmware.digest, wanted.firmware.digest)
    if seen.kernel is None or wanted.kernel is None:
        if seen.kernel != wanted.kernel:
            texts = ("a page of zeros" if each.kernel is None else "hashes" for each in (seen, wanted))
            yield Difference(Component.KERNEL_HASHES, *texts)
        return
    if seen.kernel != wanted.kernel:
        yield _digests(Component.KERNEL, seen.kernel, wanted.kernel)
    initrds = (NO_INITRD if each.initrd is None else each.initrd for each in (seen, wanted))
    if (initrd := tuple(initrds))[0] != initrd[1]:
        yield _digests(Component.INITRD, *initrd)
    cmdlines = (seen.cmdline or "", wanted.cmdline or "")
    if cmdlines[0] != cmdlines[1]:
        common = _common(*cmdlines)
        start = common - _AROUND if common > 2 * _AROUND else 0
        yield Difference(Component.COMMAND_LINE, *(_excerpt(each, start) for each in cmdlines))


def _digests(component: Component, seen: bytes, wanted: bytes) -> Difference:
    return Difference(component, *("none" if each == NO_INITRD else each.hex() for each in (seen, wanted)))


def _common(one: str, other: str) -> int:
    """Give the length of the common beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _excerpt(cmdline: str, start: int) -> str:
    """Quote a command line from where it becomes interesting, so that a trailing space shows."""
    before, after = "…" if start else "", "…" if len(cmdline) > start + _SHOWN else ""
    return f"{before}{cmdline[start : start + _SHOWN]!r}{after}"


def _filled(
    description: LaunchDescription, app: tuple[AppId, ComposeHash] | None
) -> tuple[LaunchDescription, str | None]:
    template = description.cmdline
    if app is None or template is None or not has_placeholders(template):
        return description, None
    return replace(description, cmdline=filled_cmdline(template, *app)), template

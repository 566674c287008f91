"""Allowed images, and which machine of one shows a measurement.

An image may run on many machines, and each vCPU count, vCPU type and feature set has a measurement of its
own (field lesson 21). All of them are computed from the one description, so that a report finds its machine
whatever the guest says of itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Final, Self

from kms.encoding import from_0x
from kms.identifiers import AppId, ComposeHash, Measurement, OsImageHash
from kms.measurement.description import LaunchDescription, os_image_hash
from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import SNP_ACTIVE, acceptable_features
from kms.measurement.launch import launch_measurement, launch_prefix
from kms.measurement.snp import MAX_VCPUS, Machine, check_vcpus, measurements
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.strict_json import Fields, JsonError, JsonValue

APP_ID_PLACEHOLDER: Final = "{app_id}"
COMPOSE_HASH_PLACEHOLDER: Final = "{compose_hash}"

# All combinations are computed before the first answer: 16 feature sets of 512 vCPUs and every type are
# some 40 000 hashes.
MAX_FEATURE_SETS: Final = 16


def has_placeholders(cmdline: str) -> bool:
    """Say whether a command line has both placeholders, each exactly once."""
    return cmdline.count(APP_ID_PLACEHOLDER) == cmdline.count(COMPOSE_HASH_PLACEHOLDER) == 1


def filled_cmdline(cmdline: str, app_id: AppId, compose_hash: ComposeHash) -> str:
    """Replace the placeholders by hex, and leave every other brace as it is.

    Raises:
        MeasurementError: the command line does not have both placeholders, each once.

    """
    if not has_placeholders(cmdline):
        raise MeasurementError("the command line does not have both placeholders, each once")
    filled = cmdline.replace(APP_ID_PLACEHOLDER, app_id.hex())
    return filled.replace(COMPOSE_HASH_PLACEHOLDER, compose_hash.hex())


class Binding(StrEnum):
    """How an app's identity can be bound to a report."""

    HOST_DATA = "host-data"
    DSTACK_MR_CONFIG = "dstack-mr-config"
    CMDLINE = "cmdline"


# What an image that is allowed by hash alone is taken to enforce: the protocol, section 4.
UNDOCUMENTED_ENFORCES: Final = frozenset({Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image and the machines that it may run on; `name` is None for one that is allowed by hash alone.

    `enforces` names what the measured image itself checks before it runs a workload. `vcpu_types` are names
    of `VCPU_TYPES`, `guest_features` values of SEV_FEATURES.

    Raises:
        MeasurementError: no or unknown types, vCPUs beyond 1 to 512, unacceptable features, or `CMDLINE`
            enforced by a command line without both placeholders.

    """

    name: str | None
    os_image_hash: OsImageHash
    description: LaunchDescription
    enforces: frozenset[Binding]
    vcpu_types: tuple[str, ...]
    vcpus_minimum: int
    vcpus_maximum: int
    guest_features: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.vcpu_types or not VCPU_TYPES.keys() >= set(self.vcpu_types):
            raise MeasurementError("vCPU types must be names that QEMU knows, and at least one")
        if check_vcpus(self.vcpus_minimum) > check_vcpus(self.vcpus_maximum):
            raise MeasurementError("the least number of vCPUs is above the greatest")
        if not 1 <= len(set(self.guest_features)) == len(self.guest_features) <= MAX_FEATURE_SETS:
            raise MeasurementError(f"guest features must be 1 to {MAX_FEATURE_SETS} different values")
        for features in self.guest_features:
            acceptable_features(features)
        if Binding.CMDLINE in self.enforces and not self.has_placeholders:
            raise MeasurementError(
                "`cmdline` is enforced only by a command line with both placeholders, each once"
            )

    @classmethod
    def described_by_guest(cls, launch: JsonValue) -> Self:
        """Make the image of a description that a guest sent, for one that policy allows by hash alone.

        The caller allows `os_image_hash` first; the bounds are those of the protocol, section 4.

        Raises:
            MeasurementError: the description cannot be measured.

        """
        return cls(
            name=None,
            os_image_hash=os_image_hash(launch),
            description=LaunchDescription.parse(launch),
            enforces=UNDOCUMENTED_ENFORCES,
            vcpu_types=tuple(VCPU_TYPES),
            vcpus_minimum=1,
            vcpus_maximum=MAX_VCPUS,
            guest_features=(SNP_ACTIVE,),
        )

    @property
    def has_placeholders(self) -> bool:
        """Say whether the command line has both placeholders, each exactly once."""
        return has_placeholders(self.description.cmdline or "")

    def filled_cmdline(self, app_id: AppId, compose_hash: ComposeHash) -> str:
        """Give the command line of one app. Raises as `filled_cmdline`."""
        return filled_cmdline(self.description.cmdline or "", app_id, compose_hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchHint:
    """What a guest says of its launch: where to look first, never a fact (field lesson 19)."""

    image: str | None = None
    vcpus: int | None = None
    vcpu_type: str | None = None
    vcpu_signature: int | None = None
    guest_features: int | None = None
    description: dict[str, JsonValue] | None = None

    @classmethod
    def parse(cls, value: JsonValue, error: Callable[[str], Exception] = JsonError) -> Self:
        """Read the ``launch`` member of evidence. Raises what `error` makes for a wrong shape.

        Values are not judged here: a hint that fits nothing is ignored by whoever looks it up.
        """
        fields = Fields(value, "launch", error)
        hint = cls(
            image=fields.text("image", at_most=256) if fields.has("image") else None,
            vcpus=fields.integer("vcpus") if fields.has("vcpus") else None,
            vcpu_type=fields.text("vcpu_type", at_most=64) if fields.has("vcpu_type") else None,
            vcpu_signature=_hexadecimal(fields, "vcpu_signature"),
            guest_features=_hexadecimal(fields, "guest_features"),
            description=fields.members("description") if fields.has("description") else None,
        )
        fields.end()
        return hint


def _hexadecimal(fields: Fields, name: str) -> int | None:
    if not fields.has(name):
        return None
    return fields.convert(name, fields.text(name, at_most=18), from_0x)


@dataclass(frozen=True, slots=True)
class NamedMachine:
    """A machine and the name of its vCPU type (of the image's list, the first that measures the same)."""

    machine: Machine
    vcpu_type: str


class MeasurementTable:
    """Every measurement that an image may show with one command line.

    Computed at the first look-up, one hash for each further vCPU; then a look-up is one of a dictionary.
    `cmdline` replaces the image's, placeholders filled.
    """

    __slots__ = ("_by_digest", "_cmdline", "_families", "_image")

    def __init__(self, image: Image, cmdline: str | None = None) -> None:
        self._image = image
        self._cmdline = cmdline
        # Types that measure the same, once: by signature, or not at all where the hypervisor hides it.
        first: dict[int, str] = {}
        for name in image.vcpu_types:
            first.setdefault(VCPU_TYPES[name] if image.description.vmm.shows_vcpu_type else 0, name)
        self._families = [
            (Machine(image.vcpus_maximum, VCPU_TYPES[name], features), name)
            for name in first.values()
            for features in image.guest_features
        ]
        # Digest to place: family and vCPU count in one small integer, whatever the table's size.
        self._by_digest: dict[bytes, int] | None = None

    def find(self, measurement: Measurement) -> tuple[NamedMachine, ...]:
        """Give the machines on which the image shows this measurement: none or one.

        Raises:
            MeasurementError: the command line given to the table cannot be measured.

        """
        place = self._computed().get(measurement)
        return () if place is None else (self._machine(place),)

    def _computed(self) -> Mapping[bytes, int]:
        if self._by_digest is None:
            self._by_digest = {digest: place for place, digest in self.places()}
        return self._by_digest

    def __iter__(self) -> Iterator[tuple[Measurement, NamedMachine]]:
        """Give each measurement with its machine: by vCPU type, then features, then vCPU count."""
        for place, digest in self.places():
            yield Measurement(digest), self._machine(place)

    def __len__(self) -> int:
        return len(self._families) * (self._image.vcpus_maximum - self._image.vcpus_minimum + 1)

    def at(self, place: int, measurement: Measurement) -> NamedMachine | None:
        """Give the machine of a place if the image does show the measurement on it, computed anew."""
        named = self._machine(place)
        shown = launch_measurement(self._image.description, named.machine, cmdline=self._cmdline)
        return named if shown == measurement else None

    def places(self) -> Iterator[tuple[int, bytes]]:
        """Give each measurement (48 bytes) with its place: a small number that stands for the machine."""
        description, minimum = self._image.description, self._image.vcpus_minimum
        prefix = launch_prefix(description, cmdline=self._cmdline)
        for family, (largest, _) in enumerate(self._families):
            digests = measurements(prefix, description.vmm, largest, description.firmware.reset_eip)
            # Nothing of ours runs for each of them: an index of images has a million.
            yield from enumerate(islice(digests, minimum - 1, None), family * (MAX_VCPUS + 1) + minimum)

    def _machine(self, place: int) -> NamedMachine:
        family, vcpus = divmod(place, MAX_VCPUS + 1)
        largest, name = self._families[family]
        return NamedMachine(Machine(vcpus, largest.vcpu_signature, largest.guest_features), name)

"""Why a measurement is not the expected one: the nearest known image and the component that differs.

"Measurement mismatch" is the first complaint of every newcomer (field lesson 20), and a digest does not say
what went into it. So plausible launches are recomputed until one shows the measurement. For operators only:
a guest that is told how it differs from an allowed image is told what to pretend.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from typing_extensions import override

from kms.identifiers import AppId, ComposeHash, Measurement, OsImageHash
from kms.measurement.alternatives import Family, far_families, near_families, other_descriptions
from kms.measurement.description import LaunchDescription
from kms.measurement.difference import (
    Component,
    Difference,
    Expected,
    FoundLaunch,
    differences,
    likeness,
    same_launch,
)
from kms.measurement.images import Image
from kms.measurement.launch import LaunchFile, launch_prefix
from kms.measurement.metadata import PAGE
from kms.measurement.snp import MAX_VCPUS, Machine, measurements

MAX_HASHES: Final = 150_000  # SHA-384 of 112 bytes: less than half a second, however large the policy
MAX_IMAGES: Final = 4  # the images most like the launch inputs are varied; without any, the first ones

_OF_MACHINE: Final = (Component.VCPUS, Component.VCPU_TYPE, Component.GUEST_FEATURES)
_OF_IMAGE: Final = (Component.FIRMWARE, Component.KERNEL, Component.INITRD, Component.COMMAND_LINE)

_MANY_VCPUS: Final = 64  # where more than one thing changed, so many vCPUs or as many as expected are tried

# What a launch is near to, its description and family, and the most vCPUs to try.
_Guess: TypeAlias = tuple[Expected, LaunchDescription, Family, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was found out about a measurement.

    Conclusive: a launch shows it, and `differences` are all that differs in it from the launch inputs, or
    (without any, or if they are right) from the image that is named. Inconclusive: `ruled_out` are the
    components that neither alone nor together explain it; `remaining` may, and no search tells which.
    `image` and `os_image_hash` are those of the known image that was launched or is nearest; both None where
    there is none.
    """

    image: str | None
    os_image_hash: OsImageHash | None
    differences: tuple[Difference, ...]
    conclusive: bool
    ruled_out: tuple[Component, ...] = ()
    remaining: tuple[Component, ...] = ()

    @override
    def __str__(self) -> str:
        """Say it in a sentence for operators."""
        named = self.image or (self.os_image_hash.hex() if self.os_image_hash else None)
        nearest = f"the nearest known image is {named}; " if named else ""
        if self.conclusive:
            return nearest + ("; ".join(map(str, self.differences)) or "nothing differs from it")
        if not self.remaining:
            return f"{nearest}there is no image to compare it with"
        *others, last = self.remaining
        remaining = f"{', '.join(others)} or {last} (a digest does not tell them apart)"
        if not self.ruled_out:
            return f"{nearest}not explained within {MAX_HASHES} hashes; look at {remaining}"
        *others, last = self.ruled_out
        ruled_out = f"{', '.join(others)} or {last}"
        return f"{nearest}no other {ruled_out} explains it, so look at {remaining}"


class _Search:
    """Recomputes launches until one shows the measurement or the hashes are spent."""

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._left = MAX_HASHES
        self._prefixes: dict[LaunchDescription, bytes] = {}
        self._tried: dict[tuple[bytes, Family], int] = {}

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def first(self, guesses: Iterable[_Guess]) -> tuple[Expected, FoundLaunch] | None:
        for expected, description, family, at_most in guesses:
            if self.exhausted:
                return None
            found = self._try(replace(description, vmm=family.vmm), family, at_most)
            if found is not None:
                return expected, found
        return None

    def _try(self, description: LaunchDescription, family: Family, at_most: int) -> FoundLaunch | None:
        """Try 1 to `at_most` vCPUs, unless they were tried before."""
        prefix, reset_eip = self._prefix(description), description.firmware.reset_eip
        at_most = at_most if reset_eip else 1
        if self._tried.get((prefix, family), 0) >= at_most:
            return None
        self._tried[prefix, family] = at_most
        self._left -= at_most
        machine = Machine(at_most, family.vcpu_signature, family.guest_features)
        digests = measurements(prefix, family.vmm, machine, reset_eip, family.variant)
        for vcpus, digest in enumerate(digests, start=1):
            if digest == self._measurement:
                return FoundLaunch(description, family, vcpus)
        return None

    def _prefix(self, description: LaunchDescription) -> bytes:
        prefix = self._prefixes.get(description)
        if prefix is None:
            prefix = self._prefixes[description] = launch_prefix(description)
            self._left -= sum(each.size for each in description.firmware.sections) // PAGE
        return prefix


def explain_measurement(
    measurement: Measurement,
    known: Sequence[Image],
    given: LaunchFile | None,
    *,
    app: tuple[AppId, ComposeHash] | None = None,
) -> Explanation:
    """Say how the launch that shows `measurement` differs from the given one, or from a known image.

    `known` are the operator's images, `given` launch inputs that do not give this measurement; `app` fills
    command lines with placeholders. At most about `MAX_HASHES` hashes are computed. Tried are, in this order,
    for the launch inputs and `MAX_IMAGES` images: 1 to 512 vCPUs with every type, features or vCPU state that
    hosts are known to set; these together, and every hypervisor; command lines as launchers change them, no
    kernel hashes, no initrd, and mixtures of two known descriptions; at last those on other machines.

    Raises:
        MeasurementError: a description that cannot be measured.

    """
    images = [Expected.of_image(image, app) for image in known]
    wanted = None if given is None else Expected.of_file(given, app)
    if wanted is not None:
        images.sort(key=lambda image: likeness(image.description, wanted.description), reverse=True)
    bases = [*([wanted] if wanted else []), *images[:MAX_IMAGES]]
    search = _Search(measurement)
    found = search.first(_other_machines(bases))
    complete = wanted is not None or 1 <= len(images) <= MAX_IMAGES
    ruled_out = complete and not search.exhausted
    found = found or search.first(_other_descriptions(bases)) or search.first(_both(bases))
    if found is None:
        nearest = images[0] if images and (wanted or len(images) == 1) else None
        return Explanation(
            image=nearest.name if nearest else None,
            os_image_hash=nearest.image_hash if nearest else None,
            differences=(),
            conclusive=False,
            ruled_out=_OF_MACHINE if ruled_out else (),
            remaining=_OF_IMAGE if bases else (),
        )
    near, launch = found
    of_inputs = tuple(differences(launch, wanted)) if wanted is not None else ()
    same = [image for image in images if same_launch(image.description, launch.description)]
    # Launch inputs that are right are not what the measurement is held against: the nearest image is.
    named = (same or ([near] if of_inputs or not images or wanted is None else images))[0]
    return Explanation(
        image=named.name,
        os_image_hash=named.image_hash,
        differences=of_inputs or tuple(differences(launch, named)),
        conclusive=True,
    )


def _other_machines(bases: Sequence[Expected]) -> Iterator[_Guess]:
    for base in bases:
        for family in near_families(base.families):
            yield base, base.description, family, MAX_VCPUS
    for base in bases:
        for family in far_families(base.description.vmm):
            yield base, base.description, family, _largest(base)


def _other_descriptions(bases: Sequence[Expected]) -> Iterator[_Guess]:
    for base, description in _changed(bases):
        for family in base.families:
            yield base, description, family, base.vcpus[-1]


def _both(bases: Sequence[Expected]) -> Iterator[_Guess]:
    for base, description in _changed(bases):
        for family in near_families(base.families):
            yield base, description, family, _largest(base)


def _changed(bases: Sequence[Expected]) -> Iterator[tuple[Expected, LaunchDescription]]:
    for base in bases:
        templates = () if base.template is None else (base.template,)
        others = [other.description for other in bases if other is not base]
        for description in other_descriptions(base.description, templates, others):
            yield base, description


def _largest(base: Expected) -> int:
    return max(base.vcpus[-1], _MANY_VCPUS)

"""What is revoked, united over all `revoked` documents, and every measurement that a revoked image can show.

An image is revoked with all that measures the same, under whatever document: the same launch written with
other ranges, under another name or with other bytes (an absent initrd, a filled-in command line) would
otherwise bring the revoked measurement back.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kms.boot_info import BootInfo
from kms.identifiers import AppId, ChipId, ComposeHash, Measurement, OsImageHash
from kms.measurement.errors import MeasurementError
from kms.measurement.images import APP_ID_PLACEHOLDER, COMPOSE_HASH_PLACEHOLDER, Image
from kms.measurement.launch import LaunchDescription, Machine, launch_measurement, launch_prefix
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy.documents import RevokedDocument
from kms.snp.product import Product

_HEX_40_OR_64 = "(?:[0-9a-f]{40}|[0-9a-f]{64})"  # an app id
_HEX_64 = "[0-9a-f]{64}"  # a compose hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """The union of all `revoked` documents.

    `image_hashes` holds, beside what was written, every documented image that measures the same as a
    revoked one. `look_alikes` are revoked images that a template of this hash may turn into, for some app.
    `revoked_images` are the documented ones of the revoked.
    """

    chips: frozenset[ChipId] = frozenset()
    measurements: frozenset[Measurement] = frozenset()
    image_names: frozenset[str] = frozenset()
    image_hashes: frozenset[OsImageHash] = frozenset()
    apps: frozenset[AppId] = frozenset()
    compose: frozenset[ComposeHash] = frozenset()
    products: frozenset[Product] = frozenset()
    revoked_images: tuple[Image, ...] = ()
    look_alikes: Mapping[OsImageHash, tuple[Image, ...]]

    @classmethod
    def unite(cls, documents: Iterable[RevokedDocument], images: Mapping[str, Image]) -> "Revocations":
        """Unite the documents; `images` are all documented images by name."""
        every = tuple(documents)
        names = frozenset().union(*(each.images for each in every))
        hashes = frozenset().union(*(each.image_hashes for each in every))
        hashes |= {images[name].os_image_hash for name in names if name in images}
        revoked = tuple(image for image in images.values() if image.os_image_hash in hashes)
        same, alike = _same_measurements(revoked, images.values())
        return cls(
            chips=frozenset().union(*(each.chips for each in every)),
            measurements=frozenset().union(*(each.measurements for each in every)),
            image_names=names,
            image_hashes=hashes | same,
            apps=frozenset().union(*(each.apps for each in every)),
            compose=frozenset().union(*(each.compose for each in every)),
            products=frozenset().union(*(each.products for each in every)),
            revoked_images=revoked,
            look_alikes=alike,
        )

    def image_revoked(self, boot_info: BootInfo, *, documented: bool) -> bool:
        """Say whether the guest runs a revoked image, or one that measures as a revoked one does.

        `documented` is false for an image allowed by hash alone, whose description is not in the policy:
        its measurement is then compared with what each revoked image shows on the guest's machine.
        """
        if boot_info.image in self.image_names or boot_info.os_image_hash in self.image_hashes:
            return True
        if boot_info.os_image_hash is None:
            return False
        suspects = self.look_alikes.get(boot_info.os_image_hash, ()) if documented else self.revoked_images
        return any(_shows(image, boot_info) for image in suspects)


def _same_measurements(
    revoked: tuple[Image, ...], images: Iterable[Image]
) -> tuple[frozenset[OsImageHash], dict[OsImageHash, tuple[Image, ...]]]:
    same: set[OsImageHash] = set()
    alike: dict[OsImageHash, tuple[Image, ...]] = {}
    if not revoked:
        return frozenset(), alike
    by_content: dict[tuple[object, ...], list[Image]] = {}
    for image in revoked:
        by_content.setdefault(_all_but_cmdline(image.description), []).append(image)
    for image in images:
        for other in by_content.get(_all_but_cmdline(image.description), ()):
            if _can_become(other, image.description.cmdline or ""):
                same.add(image.os_image_hash)
            elif _can_become(image, other.description.cmdline or ""):
                alike[image.os_image_hash] = (*alike.get(image.os_image_hash, ()), other)
    return frozenset(same), alike


def _all_but_cmdline(description: LaunchDescription) -> tuple[object, ...]:
    """Give what decides the measurement beside command line and machine, by its own computation."""
    cmdline = None if description.kernel is None else ""
    return (description.vmm, description.firmware.reset_eip, launch_prefix(description, cmdline=cmdline))


def _can_become(image: Image, cmdline: str) -> bool:
    """Say whether the image's command line, filled in or as it is, can be `cmdline`."""
    own = image.description.cmdline or ""
    if own == cmdline or not image.has_placeholders:
        return own == cmdline
    pattern = re.escape(own)
    pattern = pattern.replace(re.escape(APP_ID_PLACEHOLDER), _HEX_40_OR_64)
    pattern = pattern.replace(re.escape(COMPOSE_HASH_PLACEHOLDER), _HEX_64)
    return re.fullmatch(pattern, cmdline) is not None


def _shows(image: Image, boot_info: BootInfo) -> bool:
    """Say whether a revoked image shows the guest's measurement on the guest's machine."""
    if boot_info.vcpus is None or boot_info.vcpu_type is None or boot_info.guest_features is None:
        return True  # a launch that nobody can compare with a revoked one is not cleared by that
    signature = VCPU_TYPES.get(boot_info.vcpu_type)
    if signature is None:
        return True
    cmdlines: list[str | None] = [None]
    if image.has_placeholders and boot_info.app_id is not None and boot_info.compose_hash is not None:
        cmdlines.append(image.filled_cmdline(boot_info.app_id, boot_info.compose_hash))
    try:
        machine = Machine(boot_info.vcpus, signature, boot_info.guest_features)
        return any(
            launch_measurement(image.description, machine, cmdline=cmdline) == boot_info.measurement
            for cmdline in cmdlines
        )
    except MeasurementError:
        return True

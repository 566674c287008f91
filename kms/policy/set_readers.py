"""Reads `kind: image`, `kind: chips` and `kind: revoked`."""

from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeAlias

from kms.identifiers import Measurement, OsImageHash
from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import SNP_ACTIVE, acceptable_features
from kms.measurement.images import Binding, Image
from kms.measurement.launch import LaunchDescription, os_image_hash
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy import values
from kms.policy.app_reader import HeaderSlots, app_id, compose_hash, name_or
from kms.policy.app_reader import os_image_hash as image_hash
from kms.policy.chip_set import ChipSet
from kms.policy.documents import ChipsDocument, ImageDocument, RevokedDocument
from kms.policy.nodes import Items, Members, Node, to_json
from kms.policy.reader import Reader, Unread, Wrong, closest, list_of
from kms.snp.product import Product

_Launch: TypeAlias = tuple[LaunchDescription, OsImageHash]
_LAUNCH_MEMBERS: Final = ("vmm", "firmware", "kernel", "initrd", "cmdline")
_FIRMWARE_MEMBERS: Final = ("digest", "reset_eip", "hashes_table_gpa", "sections")
_measurement: Final = values.hex_of(Measurement, "a measurement")
_chip_list: Final = list_of(values.chip_id, "chips")


def read_image(reader: Reader) -> ImageDocument:
    """Read an image; its hash is checked, never believed. Raises `Unread` after its findings were made.

    Left out, the machines are those of an image allowed by hash alone (the protocol, section 4).
    """
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    launch = reader.required("launch", _launch)
    stated = reader.required("os_image_hash", image_hash)
    enforces = reader.listed(
        "enforces", values.one_of(Binding, "a binding"), empty="no app is bound on it, so it gets no keys"
    )
    vcpu_types = reader.listed_or("vcpu_types", _vcpu_type, tuple(VCPU_TYPES))
    vcpus = reader.optional("vcpus", lambda node: _vcpus(node, reader), (1, MAX_VCPUS))
    features = reader.listed_or("guest_features", _features, (SNP_ACTIVE,))
    reader.end()
    description, computed = launch.value
    if stated.value != computed:
        reader.notes.error(
            reader.place("os_image_hash"),
            f"the launch block hashes to {computed.hex()}: one of the two was changed;"
            " `kms image describe` writes both",
        )
    image = _image(
        reader,
        name=header.values["name"],
        os_image_hash=computed,
        description=description,
        vcpu_types=tuple(dict.fromkeys(vcpu_types.value)),
        vcpus=vcpus.value,
        features=tuple(dict.fromkeys(features.value)),
    )
    try:
        image = replace(image, enforces=frozenset(enforces.value))
    except MeasurementError as error:
        reader.notes.error(reader.place("enforces"), error.detail)
        raise Unread from None
    return ImageDocument(**header.values, expires_at=expires_at.value, image=image)


def _image(
    reader: Reader,
    *,
    name: str,
    os_image_hash: OsImageHash,
    description: LaunchDescription,
    vcpu_types: tuple[str, ...],
    vcpus: tuple[int, int],
    features: tuple[int, ...],
) -> Image:
    """Make the image, enforcing nothing yet, so that its complaint is about its machines."""
    try:
        return Image(
            name=name,
            os_image_hash=os_image_hash,
            description=description,
            enforces=frozenset(),
            vcpu_types=vcpu_types,
            vcpus_minimum=vcpus[0],
            vcpus_maximum=vcpus[1],
            guest_features=features,
        )
    except MeasurementError as error:
        reader.notes.error(reader.place("guest_features" if vcpu_types else "vcpu_types"), error.detail)
        raise Unread from None


def _launch(node: Node) -> _Launch:
    if not isinstance(node, Members):
        raise Wrong(node, "`launch` is a mapping: `kms image describe` writes it")
    _refuse_unknown(node)
    value = to_json(node)
    try:
        return LaunchDescription.parse(value), os_image_hash(value)
    except MeasurementError as error:
        raise Wrong(_place_of(node, error.detail), error.detail) from None


def _refuse_unknown(launch: Members) -> None:
    """Name what the launch block does not have, which the measurement's own parser only counts."""
    parts: list[tuple[Node | None, tuple[str, ...]]] = [
        (launch, _LAUNCH_MEMBERS),
        (launch.value("firmware"), _FIRMWARE_MEMBERS),
    ]
    for part, known in parts:
        if not isinstance(part, Members):
            continue
        for name in part.names:
            if name not in known:
                key = part.members[name].key
                raise Wrong(key, f"`launch` has no `{name}` here: {closest(name, known)}")


def _place_of(launch: Members, detail: str) -> Node:
    """Find the member of the launch block that a complaint quotes first."""
    parts = detail.split("`")
    quoted = parts[1] if len(parts) > 2 else ""
    firmware = launch.value("firmware")
    if isinstance(firmware, Members) and (found := firmware.value(quoted)) is not None:
        return found
    return launch.value(quoted) or launch


def _vcpu_type(node: Node) -> str:
    text = values.text(node)
    if text not in VCPU_TYPES:
        raise Wrong(node, f"`{text}` is not a vCPU type of QEMU: {closest(text, list(VCPU_TYPES))}")
    return text


def _vcpus(node: Node, parent: Reader) -> tuple[int, int]:
    reader = parent.within(node, "`vcpus`")
    count = values.integer(1, MAX_VCPUS)
    least, most = reader.required("min", count), reader.required("max", count)
    reader.end()
    if least.value > most.value:
        raise Wrong(reader.place("max"), f"`max` is below `min`, {least.value}")
    return least.value, most.value


def _features(node: Node) -> int:
    try:
        return acceptable_features(values.mask(node))
    except MeasurementError as error:
        raise Wrong(node, error.detail) from None


def read_chips(reader: Reader) -> ChipsDocument:
    """Read a set of chips. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    chips = reader.whole_list("chips", _chips, empty="it lists no chip")
    reader.end()
    return ChipsDocument(**header.values, expires_at=expires_at.value, chips=chips.value)


def _chips(node: Node) -> ChipSet:
    """Read all at once where all are right; else one by one, to say which is wrong."""
    texts = node.texts() if isinstance(node, Items) else None
    if texts is not None:
        with suppress(ValueError):
            return ChipSet.from_hex(texts)
    return ChipSet(_chip_list(node))


def read_revoked(reader: Reader) -> RevokedDocument:
    """Read revocations. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    # A revocation that ends by the clock would let back in what nobody cleared.
    reader.optional("expires_at", _no_expiry, None)
    chips = reader.listed_or("chips", values.chip_id, ())
    measurements = reader.listed_or("measurements", _measurement, ())
    images = reader.listed_or("images", name_or(image_hash), ())
    apps = reader.listed_or("apps", app_id, ())
    compose = reader.listed_or("compose", compose_hash, ())
    products = reader.listed_or("products", values.one_of(Product, "a product"), ())
    reader.end()
    listed = images.value
    return RevokedDocument(
        **header.values,
        chips=frozenset(chips.value),
        measurements=frozenset(measurements.value),
        images=frozenset(each for each in listed if not isinstance(each, OsImageHash)),
        image_hashes=frozenset(each for each in listed if isinstance(each, OsImageHash)),
        apps=frozenset(apps.value),
        compose=frozenset(compose.value),
        products=frozenset(products.value),
    )


def _no_expiry(node: Node) -> None:
    raise Wrong(node, "a revocation does not expire: a new revision without it ends it")

"""Reads `kind: image`, `kind: chips` and `kind: revoked`."""

from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from kms.identifiers import Measurement, OsImageHash
from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import SNP_ACTIVE, acceptable_features
from kms.measurement.images import Binding, Image
from kms.measurement.launch import LaunchDescription
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy import values
from kms.policy.app_reader import HeaderSlots, app_id, compose_hash, name_or
from kms.policy.app_reader import os_image_hash as image_hash
from kms.policy.chip_set import ChipSet
from kms.policy.documents import ChipsDocument, ImageDocument, RevokedDocument
from kms.policy.launch_reader import launch
from kms.policy.nodes import Items, Node
from kms.policy.parser import Parser, Unread, Wrong, list_of
from kms.policy.reader import Reader
from kms.snp.product import Product

T = TypeVar("T")


def read_image(reader: Reader) -> ImageDocument:
    """Read an image; its hash is checked, never believed. Raises `Unread` after its findings were made.

    Left out, the machines are those of an image allowed by hash alone (the protocol, section 4).
    """
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    block = reader.required("launch", launch(reader))
    stated = reader.required("os_image_hash", image_hash)
    enforces = reader.listed("enforces", _binding, empty="no app is bound on it, so it gets no keys")
    vcpu_types = reader.whole_list_or("vcpu_types", _vcpu_types, tuple(VCPU_TYPES))
    vcpus = reader.mapping_or("vcpus", _vcpus, (1, MAX_VCPUS), example="{min: 1, max: 8}")
    features = reader.whole_list_or("guest_features", _feature_sets, (SNP_ACTIVE,))
    reader.end()
    description, computed = block.value
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
    """Make the image, enforcing nothing yet, so that its complaint is not of what it enforces."""
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
        # The lists of types and counts were checked; what is left is too many sets of features.
        reader.notes.error(reader.place("guest_features"), error.detail)
        raise Unread from None


def _vcpus(reader: Reader) -> tuple[int, int]:
    least, most = reader.required("min", _count), reader.required("max", _count)
    reader.end()
    if least.value > most.value:
        raise Wrong(reader.place("max"), f"`max` is below `min`, {least.value}")
    return least.value, most.value


def _read_features(node: Node) -> int:
    try:
        return acceptable_features(values.mask.read(node))
    except MeasurementError as error:
        raise Wrong(node, error.detail) from None


def _not_empty(items: Parser[tuple[T, ...]], what: str) -> Parser[tuple[T, ...]]:
    """Make a parser of lists that no image can be without."""

    def read(node: Node) -> tuple[T, ...]:
        listed = items.read(node)
        if not listed:
            raise Wrong(node, f"an image needs at least one {what}; left out, the list has a default")
        return listed

    return Parser(read, {**items.schema, "minItems": 1})


_binding: Final = values.one_of(Binding, "a binding")
_count: Final = values.integer(1, MAX_VCPUS, "a number of vCPUs")
_vcpu_type: Final = values.word({name: name for name in VCPU_TYPES}, "a vCPU type of QEMU")
_vcpu_types: Final = _not_empty(list_of(_vcpu_type, "vcpu_types"), "vCPU type")
_features: Final = Parser(_read_features, values.mask.schema)
_feature_sets: Final = _not_empty(list_of(_features, "guest_features"), "set of guest features")


def read_chips(reader: Reader) -> ChipsDocument:
    """Read a set of chips. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    chips = reader.whole_list("chips", _chips, empty="it lists no chip")
    reader.end()
    return ChipsDocument(**header.values, expires_at=expires_at.value, chips=chips.value)


def _read_chips(node: Node) -> ChipSet:
    """Read all at once where all are right; else one by one, to say which is wrong."""
    texts = node.texts() if isinstance(node, Items) else None
    if texts is not None:
        with suppress(ValueError):
            return ChipSet.from_hex(texts)
    return ChipSet(_chip_list.read(node))


_chip_list: Final = list_of(values.chip_id, "chips")
_chips: Final = Parser(_read_chips, _chip_list.schema)


def read_revoked(reader: Reader) -> RevokedDocument:
    """Read revocations. Raises `Unread` after its findings were made."""
    header = HeaderSlots(reader)
    # A revocation that ends by the clock would let back in what nobody cleared.
    reader.refuse("expires_at", "a revocation does not expire: a new revision without it ends it")
    chips = reader.listed_or("chips", values.chip_id, ())
    measurements = reader.listed_or("measurements", _measurement, ())
    images = reader.listed_or("images", _revoked_image, ())
    apps = reader.listed_or("apps", app_id, ())
    compose = reader.listed_or("compose", compose_hash, ())
    products = reader.listed_or("products", _product, ())
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


_measurement: Final = values.hex_of(Measurement, "a measurement")
_product: Final = values.one_of(Product, "a product")
_revoked_image: Final = name_or(image_hash)

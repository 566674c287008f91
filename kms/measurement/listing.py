"""Images and their measurements as JSON, for commands and operators."""

from collections.abc import Iterator

from kms.identifiers import AppId, ComposeHash
from kms.measurement.images import Image, MeasurementTable
from kms.strict_json import JsonValue


def image_json(image: Image) -> dict[str, JsonValue]:
    """Give an image's name, hash and machines as a document of kind image writes them; not its launch."""
    return {
        "name": image.name,
        "os_image_hash": image.os_image_hash.hex(),
        "enforces": [*sorted(image.enforces)],
        "vcpu_types": [*image.vcpu_types],
        "vcpus": {"min": image.vcpus_minimum, "max": image.vcpus_maximum},
        "guest_features": [hex(features) for features in image.guest_features],
    }


def measurement_rows(image: Image, app: tuple[AppId, ComposeHash] | None) -> Iterator[dict[str, JsonValue]]:
    """Give every measurement that an image may show with its machine, in an order that stays.

    `app` fills the placeholders of the command line.

    Raises:
        MeasurementError: there are none to fill.

    """
    cmdline = None if app is None else image.filled_cmdline(*app)
    for measurement, named in MeasurementTable(image, cmdline):
        yield {
            "measurement": measurement.hex(),
            "vcpus": named.machine.vcpus,
            "vcpu_type": named.vcpu_type,
            "guest_features": hex(named.machine.guest_features),
        }

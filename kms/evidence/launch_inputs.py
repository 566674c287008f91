"""Launch inputs that somebody gives: whether they show a measurement, and what they show instead.

For explanations. What a release goes by is found by `kms.evidence.launch` among the operator's own images.
"""

from typing import TypeAlias

from kms.evidence.launch import LaunchFacts
from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.description import LaunchDescription, os_image_hash
from kms.measurement.guest_features import SNP_ACTIVE
from kms.measurement.images import Image, MeasurementTable, filled_cmdline, has_placeholders
from kms.measurement.launch import LaunchFile, launch_measurement
from kms.measurement.snp import MAX_VCPUS
from kms.measurement.vcpu_types import VCPU_TYPES, vcpu_type_name

App: TypeAlias = tuple[AppId, ComposeHash]  # what fills the placeholders of a command line


def launched(given: LaunchFile, measurement: Measurement, app: App | None) -> LaunchFacts | None:
    """Give the launch that shows the measurement; what the inputs leave open is searched for.

    Raises:
        MeasurementError: they cannot be measured.

    """
    found, cmdline = given.machine(), cmdline_for(given.description, app)
    if found is None:
        table = MeasurementTable(_image(given), cmdline)
        found = next((each.machine for each in table.find(measurement)), None)
    elif launch_measurement(given.description, found, cmdline=cmdline) != measurement:
        found = None
    if found is None:
        return None
    return LaunchFacts(
        measurement=measurement,
        image=None,
        os_image_hash=os_image_hash(given.description.to_json()),
        vcpus=found.vcpus,
        vcpu_type=given.vcpu_type or vcpu_type_name(found.vcpu_signature),
        guest_features=found.guest_features,
    )


def expected(given: LaunchFile, app: App | None) -> str:
    """Say what the inputs show. Raises as `launched`."""
    machine = given.machine()
    if machine is None:
        return "no machine that fits the launch inputs"
    cmdline = cmdline_for(given.description, app)
    return f"they give {launch_measurement(given.description, machine, cmdline=cmdline).hex()}"


def cmdline_for(description: LaunchDescription, app: App | None) -> str | None:
    """Give the filled command line; None where the description's own is measured as it is."""
    template = description.cmdline or ""
    return filled_cmdline(template, *app) if app is not None and has_placeholders(template) else None


def _image(given: LaunchFile) -> Image:
    types = tuple(
        name
        for name, signature in VCPU_TYPES.items()
        if given.vcpu_signature is None or signature == given.vcpu_signature
    )
    return Image(
        name=None,
        os_image_hash=os_image_hash(given.description.to_json()),
        description=given.description,
        enforces=frozenset(),
        vcpu_types=types,
        vcpus_minimum=given.vcpus or 1,
        vcpus_maximum=given.vcpus or MAX_VCPUS,
        guest_features=(SNP_ACTIVE if given.guest_features is None else given.guest_features,),
    )

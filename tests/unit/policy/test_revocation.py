"""A revoked image takes everything with it that measures the same, under whatever document."""

from dataclasses import replace
from typing import Any

import pytest

from kms.boot_info import BootInfo
from kms.identifiers import OsImageHash
from kms.measurement.images import Binding
from kms.measurement.launch import LaunchDescription, Machine, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy.decision import Denied, decide
from tests.unit.policy.samples import APP_ID, ASK, BOOT_INFO, COMPOSE, CONTEXT, Document, documents, policy_of

TEMPLATE = "console=ttyS0 app={app_id} compose={compose_hash}"
FILLED = f"console=ttyS0 app={APP_ID.hex()} compose={COMPOSE.hex()}"


def image(name: str, **launch_changes: Any) -> Document:
    base = documents()["image"]
    launch = {**base["launch"], **launch_changes}
    launch = {key: value for key, value in launch.items() if value is not None}
    return {**base, "name": name, "launch": launch, "os_image_hash": os_image_hash(launch).hex()}


def shown(document: Document, cmdline: str | None = None) -> BootInfo:
    """Give what a guest on this image proves, its true measurement included."""
    machine = Machine(2, VCPU_TYPES["EPYC-v4"], 1)
    description = LaunchDescription.parse(document["launch"])
    return replace(
        BOOT_INFO,
        image=document["name"],
        os_image_hash=OsImageHash.from_hex(document["os_image_hash"]),
        measurement=launch_measurement(description, machine, cmdline=cmdline),
    )


def reasons(
    boot_info: BootInfo, images: list[Document], revoked: list[str], listed: list[str]
) -> tuple[str, ...]:
    values = documents()
    app = {**values["app"], "images": listed}
    revocation = {"kind": "revoked", "name": "now", "images": revoked}
    policy = policy_of([app, values["tcb"], values["guest"], values["chips"], *images, revocation])
    context = replace(CONTEXT, enforces=frozenset(Binding))
    decision = decide(policy, boot_info, ASK, context)
    return decision.reasons if isinstance(decision, Denied) else ()


EMPTY_INITRD = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing


def test_the_same_launch_under_another_name() -> None:
    images = [image("old"), image("new")]
    assert reasons(shown(images[1]), images, ["old"], ["new"]) == ("image-revoked",)
    assert reasons(shown(images[1]), images, [], ["new"]) == ()


@pytest.mark.parametrize("revoked", ["old", "by hash"])
def test_the_same_measurement_written_with_other_bytes(revoked: str) -> None:
    images = [image("old", initrd=None), image("new", initrd=EMPTY_INITRD)]
    assert images[0]["os_image_hash"] != images[1]["os_image_hash"]
    value = images[0]["os_image_hash"] if revoked == "by hash" else revoked
    assert reasons(shown(images[1]), images, [value], ["new"]) == ("image-revoked",)


def test_an_image_that_measures_otherwise_is_untouched() -> None:
    images = [image("old"), image("new", kernel="9c" * 32)]
    assert reasons(shown(images[1]), images, ["old"], ["new"]) == ()


def test_a_revoked_template_takes_a_filled_in_command_line_with_it() -> None:
    images = [image("old", cmdline=TEMPLATE), image("new", cmdline=FILLED)]
    assert reasons(shown(images[1]), images, ["old"], ["new"]) == ("image-revoked",)
    other = image("new", cmdline=FILLED + " quiet")
    assert reasons(shown(other), [images[0], other], ["old"], ["new"]) == ()


def test_a_template_is_denied_only_where_it_becomes_the_revoked_one() -> None:
    images = [image("old", cmdline=FILLED), image("new", cmdline=TEMPLATE)]
    assert reasons(shown(images[1], FILLED), images, ["old"], ["new"]) == ("image-revoked",)
    elsewhere = FILLED.replace(COMPOSE.hex(), "5e" * 32)
    assert reasons(shown(images[1], elsewhere), images, ["old"], ["new"]) == ()


def test_an_image_that_only_the_guest_describes() -> None:
    old, described = image("old", initrd=None), image("new", initrd=EMPTY_INITRD)
    listed = [described["os_image_hash"]]
    boot_info = replace(shown(described), image=None)
    assert reasons(boot_info, [old], ["old"], listed) == ("image-revoked",)
    assert reasons(boot_info, [old], [], listed) == ()
    unlike = replace(shown(image("x", kernel="9c" * 32)), image=None, os_image_hash=boot_info.os_image_hash)
    assert reasons(unlike, [old], ["old"], listed) == ()


def test_revoked_documents_are_united() -> None:
    values = documents()
    more = [
        {"kind": "revoked", "name": "a", "products": ["milan"]},
        {"kind": "revoked", "name": "b", "products": ["turin"], "apps": [APP_ID.hex()]},
    ]
    policy = policy_of([*values.values(), *more])
    assert {product.value for product in policy.revocations.products} == {"milan", "turin"}
    assert policy.revocations.apps == {APP_ID}

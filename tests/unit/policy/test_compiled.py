"""What the release path and the measurement index ask a policy."""

from kms.identifiers import AppId, OsImageHash
from tests.unit.policy.samples import APP_ID, CHIP, HASH_ALONE, IMAGE_HASH, documents, policy_of


def test_looks_up_apps_and_images() -> None:
    policy = policy_of(documents())
    app = policy.app(APP_ID)
    assert app is not None
    assert app.name == "payments"
    assert policy.app(AppId(b"\x01" * 20)) is None
    assert [image.name for image in policy.images] == ["demo-os-1"]
    assert policy.images_of(APP_ID) == policy.images
    assert policy.images_of(AppId(b"\x01" * 20)) == ()
    assert policy.image("demo-os-1") is policy.image(IMAGE_HASH.hex()) is policy.images[0]
    assert policy.image("nothing") is policy.image("00" * 32) is None


def test_only_hashes_without_a_document_may_be_described_by_guests() -> None:
    """Field lesson 19: a guest never replaces what the operator documented."""
    values = documents()
    policy = policy_of(values)
    assert policy.lists_image_hash(HASH_ALONE)
    assert not policy.lists_image_hash(IMAGE_HASH)
    assert not policy.lists_image_hash(OsImageHash(b"\x01" * 32))
    values["app"]["images"] = [IMAGE_HASH.hex()]
    assert not policy_of(values).lists_image_hash(IMAGE_HASH)


def test_an_image_listed_by_hash_is_found_under_every_name() -> None:
    values = documents()
    values["app"]["images"] = [IMAGE_HASH.hex()]
    second = {**values["image"], "name": "demo-os-1-large", "vcpus": {"min": 65, "max": 128}}
    policy = policy_of([*values.values(), second])
    assert {image.name for image in policy.images_of(APP_ID)} == {"demo-os-1", "demo-os-1-large"}


def test_chips_know_their_sets() -> None:
    values = documents()
    second = {"kind": "chips", "name": "rack-8", "chips": [CHIP.hex()]}
    policy = policy_of([*values.values(), second])
    assert {each.name for each in policy.chip_sets_with(CHIP)} == {"rack-7", "rack-8"}

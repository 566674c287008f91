"""Keys of a dstack KMS: what is refused, and that they have nothing to do with ours."""

from typing import Any

import pytest

from kms.errors import RootKeyUnavailable
from kms.identifiers import AppId, InstanceId
from kms.keys import dstack
from kms.keys.dstack import DstackRoots, derive_dstack, dstack_obstacle
from kms.keys.names import KeyName, KeyPattern, KeyRequest

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ROOTS = DstackRoots(ca=b"\x0c" * 32, k256=b"\x25" * 32)
APP, LONG_APP = AppId(b"\xa0" * 20), AppId(b"\xa0" * 32)
INSTANCE = InstanceId(b"\x10" * 20)
NAMES = ["dstack:disk", "dstack:env", "dstack:k256"]


def asks(name: str) -> KeyRequest:
    return KeyRequest(KeyName.parse(name), KeyPattern.parse(name).scope)


def value(roots: DstackRoots, name: str, app: AppId = APP, instance: InstanceId = INSTANCE) -> bytes | None:
    return derive_dstack(roots, asks(name), app_id=app, instance_id=instance).value


@pytest.mark.parametrize("name", NAMES)
def test_they_have_no_epoch(name: str) -> None:
    key = derive_dstack(ROOTS, asks(name), app_id=APP, instance_id=INSTANCE)
    assert key.epoch is None
    assert key.to_json()["epoch"] is None


def test_each_key_is_of_its_root_alone() -> None:
    other_ca, other_k256 = DstackRoots(b"\x0d" * 32, ROOTS.k256), DstackRoots(ROOTS.ca, b"\x26" * 32)
    assert [value(ROOTS, name) == value(other_ca, name) for name in NAMES] == [False, False, True]
    assert [value(ROOTS, name) == value(other_k256, name) for name in NAMES] == [True, True, False]


def test_only_the_disk_is_the_instances() -> None:
    other, other_app = InstanceId(b"\x11" * 20), AppId(b"\xa1" * 20)
    assert [value(ROOTS, name) == value(ROOTS, name, instance=other) for name in NAMES] == [False, True, True]
    assert [value(ROOTS, name) == value(ROOTS, name, app=other_app) for name in NAMES] == [False] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("app", "instance", "reasons"),
    [
        (APP, INSTANCE, [None, None, None]),
        (APP, None, ["instance-unbound", None, None]),
        (APP, InstanceId(b"\x10" * 16), ["dstack-id-length", None, None]),
        (APP, InstanceId(b"\x10" * 32), ["dstack-id-length", None, None]),
        (LONG_APP, INSTANCE, ["dstack-id-length"] * 3),
    ],
)
def test_ids_of_other_lengths_are_refused(
    name: str, app: AppId, instance: InstanceId | None, reasons: list[str | None]
) -> None:
    """Unframed, an app with a longer id could pose as another with another instance (field lesson 27)."""
    reason = reasons[NAMES.index(name)]
    assert dstack_obstacle(asks(name), app_id=app, instance_id=instance) == reason
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            derive_dstack(ROOTS, asks(name), app_id=app, instance_id=instance)


def test_ids_that_read_alike_unframed_do_not_meet() -> None:
    """The collision that dstack's own info has: the same bytes, split elsewhere."""
    joined = bytes(range(1, 53))
    for split in (20, 32):
        app, instance = AppId(joined[:split]), InstanceId(joined[split:])
        reason = dstack_obstacle(asks("dstack:disk"), app_id=app, instance_id=instance)
        assert reason == "dstack-id-length"


@pytest.mark.parametrize("name", ["disk", "env", "custom:db"])
def test_our_own_keys_are_not_derived_from_them(name: str) -> None:
    with pytest.raises(ValueError, match="no key of this name"):
        derive_dstack(ROOTS, asks(name), app_id=APP, instance_id=INSTANCE)


@pytest.mark.parametrize("order", [P256_ORDER, K256_ORDER])
@pytest.mark.parametrize("excess", [0, 1])
def test_what_is_no_private_key_is_no_root(order: int, excess: int) -> None:
    largest, beyond = (number.to_bytes(32, "big") for number in (order - 1, order + excess))
    good = b"\x01" * 32

    def roots(root: bytes) -> DstackRoots:
        return DstackRoots(ca=root, k256=good) if order == P256_ORDER else DstackRoots(ca=good, k256=root)

    assert largest in {roots(largest).ca, roots(largest).k256}
    for wrong in (beyond, bytes(32), b"", largest[1:], largest + b"\x00"):
        with pytest.raises(ValueError, match="not a private key of secp256"):
            roots(wrong)


@pytest.mark.parametrize("derived", [bytes(32), P256_ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_a_key_that_dstack_cannot_derive_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, derived: bytes
) -> None:
    """For one app and instance in 2^32; not to be found by trying, so the function is replaced."""

    class Unlucky:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def derive(self, _: bytes) -> bytes:
            return derived

    monkeypatch.setattr(dstack, "HKDF", Unlucky)
    with pytest.raises(RootKeyUnavailable) as caught:
        value(ROOTS, "dstack:disk")
    assert caught.value.reason == "dstack-key-undefined"


def test_no_repr_shows_a_root() -> None:
    shown = repr(ROOTS) + repr(derive_dstack(ROOTS, asks("dstack:disk"), app_id=APP, instance_id=INSTANCE))
    for secret in (ROOTS.ca, ROOTS.k256, value(ROOTS, "dstack:disk") or b""):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.identifiers import AppId, ChipId, InstanceId
from kms.keys import p256
from kms.keys.derivation import derive, obstacle, signing_statement
from kms.keys.identity import Identity, SignatureInvalid
from kms.keys.names import DSTACK_KINDS, KeyRequest, Scope
from kms.keys.released import ReleasedKey
from kms.labels import PAYLOAD, SIGNING_STATEMENT
from tests.golden.keys import second_implementation

SECRET = hashlib.sha512(b"an app's secret").digest()
APP = AppId(b"\x11" * 20)
INSTANCE = InstanceId(b"\x22" * 16)
CHIP = ChipId(b"\x33" * 64)
IDENTITY = Identity.from_prf(hashlib.sha512(b"identity").digest())

APP_IDS = (st.binary(min_size=20, max_size=20) | st.binary(min_size=32, max_size=32)).filter(any).map(AppId)
INSTANCES = st.binary(min_size=16, max_size=32).filter(any).map(InstanceId)
CHIPS = st.binary(min_size=64, max_size=64).filter(any).map(ChipId)
EPOCHS = st.integers(min_value=1, max_value=2**53 - 1)
PATHS = st.from_regex(r"[a-z0-9_-]{1,8}(/[a-z0-9_-]{1,8}){0,2}", fullmatch=True)
APP_NAMES = st.sampled_from(["disk", "env", "signing"]).map(lambda name: (name, "app"))
SCOPED_NAMES = st.tuples(
    st.just("disk") | PATHS.map(lambda path: f"custom:{path}"), st.sampled_from(list(Scope)).map(str)
)


def derived(
    name: str = "disk",
    scope: str = "app",
    epoch: int = 1,
    *,
    secret: bytes = SECRET,
    app_id: AppId = APP,
    instance_id: InstanceId | None = INSTANCE,
    chip_id: ChipId | None = CHIP,
) -> ReleasedKey:
    request = KeyRequest.parse(name, scope)
    ids: dict[str, Any] = {"app_id": app_id, "instance_id": instance_id, "chip_id": chip_id}
    return derive(secret, request, epoch, **ids, identity=IDENTITY)


def value_of(case: tuple[Any, ...]) -> bytes | None:
    (name, scope), epoch, app_id, instance_id, chip_id = case
    return derived(name, scope, epoch, app_id=app_id, instance_id=instance_id, chip_id=chip_id).value


def coordinates(case: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give what makes the key: ids of other scopes do not count."""
    (name, scope), epoch, app_id, instance_id, chip_id = case
    return name, scope, epoch, app_id, {"app": b"", "instance": instance_id, "chip": chip_id}[scope]


CASES = st.tuples(APP_NAMES | SCOPED_NAMES, EPOCHS, APP_IDS, INSTANCES, CHIPS)


@given(CASES, CASES)
def test_two_keys_are_equal_exactly_when_everything_that_names_them_is(
    one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    assert (value_of(one) == value_of(other)) is (coordinates(one) == coordinates(other))


@given(CASES, st.data())
def test_changing_any_one_field_changes_the_key(case: tuple[Any, ...], data: st.DataObject) -> None:
    index = data.draw(st.integers(min_value=0, max_value=4))
    pools: list[st.SearchStrategy[Any]] = [APP_NAMES | SCOPED_NAMES, EPOCHS, APP_IDS, INSTANCES, CHIPS]
    changed = (*case[:index], data.draw(pools[index]), *case[index + 1 :])
    assert (value_of(case) == value_of(changed)) is (coordinates(case) == coordinates(changed))


@given(st.binary(min_size=32, max_size=32), CASES)
def test_the_second_implementation_agrees(root: bytes, case: tuple[Any, ...]) -> None:
    (name, scope), epoch, app_id, instance_id, chip_id = case
    secret = second_implementation.app_secret(root, app_id)
    key = derived(name, scope, epoch, secret=secret, app_id=app_id, instance_id=instance_id, chip_id=chip_id)
    expected = second_implementation.key_value(
        root, app_id, epoch, name=name, scope=scope, scope_value=coordinates(case)[4]
    )
    assert (key.algorithm, key.value) == expected
    assert key.public_key == second_implementation.public_key(*expected)


def test_another_app_secret_gives_another_key() -> None:
    assert derived(secret=hashlib.sha512(b"x").digest()).value != derived().value


def test_x25519_keys_are_stored_clamped() -> None:
    for epoch in range(1, 40):
        value = derived("env", epoch=epoch).value
        assert value is not None
        assert (value[0] & 7, value[31] & 0xC0) == (0, 0x40)


@pytest.mark.parametrize(
    ("name", "scope", "instance_id", "chip_id", "reason"),
    [
        ("tls", "app", None, None, None),
        ("disk", "instance", None, CHIP, "instance-unbound"),
        ("disk", "chip", INSTANCE, None, "chip-unbound"),
        ("custom:a", "chip", INSTANCE, None, "chip-unbound"),
        ("disk", "app", None, None, None),
        ("disk", "instance", INSTANCE, None, None),
        ("disk", "chip", None, CHIP, None),
    ],
)
def test_obstacles(
    name: str, scope: str, instance_id: InstanceId | None, chip_id: ChipId | None, reason: str | None
) -> None:
    request = KeyRequest.parse(name, scope)
    assert obstacle(request, instance_id=instance_id, chip_id=chip_id) == reason
    if reason is None:
        assert derived(name, scope, instance_id=instance_id, chip_id=chip_id).value
        return
    with pytest.raises(ValueError, match=reason):
        derived(name, scope, instance_id=instance_id, chip_id=chip_id)


def test_a_tls_key_is_a_p256_key_of_48_derived_bytes() -> None:
    def field(value: bytes) -> bytes:
        return len(value).to_bytes(4, "big") + value

    fields = (APP, (3).to_bytes(8, "big"), b"tls", b"", b"app", b"", b"p-256")
    info = b"attested-kms/v1/app-key\0" + b"".join(map(field, fields))
    expected = p256.private_key(hmac.digest(SECRET, info + b"\1", "sha512")[:48])
    key = derived("tls", epoch=3)
    assert key.value == p256.to_pkcs8(expected)
    assert key.public_key == p256.point_of(expected.public_key())
    assert (key.statement, key.certificate_chain) == (None, None)


def test_for_a_key_of_the_guests_own_nothing_is_derived() -> None:
    point = p256.point_of(p256.private_key(bytes(48)).public_key())
    request = replace(KeyRequest.parse("tls", "app"), certificate_for=point)
    ids: dict[str, Any] = {"app_id": APP, "instance_id": None, "chip_id": None, "identity": IDENTITY}
    key = derive(SECRET, request, 2, **ids)
    assert (key.value, key.public_key, key.epoch) == (None, point, 2)


@pytest.mark.parametrize("kind", sorted(DSTACK_KINDS))
def test_what_is_dstacks_is_not_derived_of_our_secret(kind: str) -> None:
    with pytest.raises(ValueError, match="dstack"):
        derived(kind, "instance" if kind == "dstack:disk" else "app")


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        derived(secret=b"\1" * length)


def test_a_request_for_an_epoch_is_not_served_from_another() -> None:
    request = KeyRequest.parse("disk", "app", 2)
    ids: dict[str, Any] = {"app_id": APP, "instance_id": None, "chip_id": None, "identity": IDENTITY}
    assert derive(SECRET, request, 2, **ids).epoch == 2
    with pytest.raises(ValueError, match="epoch"):
        derive(SECRET, request, 1, **ids)


def test_the_statement_binds_app_epoch_and_key_under_its_own_label() -> None:
    key = derived("signing", epoch=4)
    assert key.statement is not None
    assert key.public_key is not None
    assert key.statement.payload == signing_statement(APP, 4, key.public_key)
    assert key.statement.identity == IDENTITY.public_key
    key.statement.verify(SIGNING_STATEMENT)
    with pytest.raises(SignatureInvalid):
        key.statement.verify(PAYLOAD)
    assert derived("disk").statement is None


def test_no_repr_shows_a_value() -> None:
    for name in ("disk", "env", "signing", "tls"):
        key = derived(name)
        assert key.value is not None
        for form in (key.value.hex(), repr(key.value), repr(key.value)[2:10]):
            assert form not in repr(key)


def test_the_derivation_is_one_hmac_and_not_the_bare_secret() -> None:
    """Field lesson 31: a key is never a truncation of the secret or of a bare HMAC over its name."""
    value = derived().value
    assert value is not None
    assert value not in SECRET
    assert value != hmac.digest(SECRET, b"disk", "sha512")[:32]

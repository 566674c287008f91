"""Narrowing never widens: whatever is delisted or revoked, no "no" becomes a "yes"."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId
from kms.measurement.images import Binding
from kms.policy.decision import Allowed, Ask, Denied
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Product
from tests.unit.policy.samples import (
    APP_ID,
    ASK,
    BOOT_INFO,
    CHIP,
    COMPOSE,
    HASH_ALONE,
    IMAGE_HASH,
    Case,
    documents,
)

# What a guest may show: the allowed value most of the time, so that both answers are met.
GUESTS = st.fixed_dictionaries(
    {},
    optional={
        "app_id": st.sampled_from([APP_ID, AppId(b"\x02" * 20), None]),
        "compose_hash": st.sampled_from([COMPOSE, ComposeHash(b"\x02" * 32), None]),
        "instance_id": st.sampled_from([BOOT_INFO.instance_id, InstanceId(b"\x02" * 16), None]),
        "chip_id": st.sampled_from([CHIP, ChipId(b"\x02" * 64), None]),
        "os_image_hash": st.sampled_from([IMAGE_HASH, HASH_ALONE]),
        "binding": st.sampled_from([*Binding, None]),
        "signer": st.sampled_from(list(Signer)),
        "product": st.sampled_from(list(Product)),
        "vmpl": st.integers(0, 3),
        "guest_policy": st.integers(0, 2**26 - 1).map(GuestPolicy.decode),
        "platform_info": st.integers(0, 255).map(PlatformInfo),
        "advisories": st.sampled_from([None, (), ("AMD-SB-3015",)]),
    },
)
# Lists whose items allow something, as (kind, member).
ALLOWLISTS = [
    ("app", "compose"),
    ("app", "images"),
    ("app", "chips"),
    ("app", "binding"),
    ("app", "keys"),
    ("chips", "chips"),
    ("image", "enforces"),
    ("guest", "vmpl"),
    ("guest", "report_versions"),
    ("guest", "signers"),
    ("tcb", "products"),
]
REVOCATIONS: dict[str, list[str]] = {
    "chips": [CHIP.hex(), "02" * 64],
    "measurements": ["33" * 48, "02" * 48],
    "images": ["demo-os-1", IMAGE_HASH.hex(), HASH_ALONE.hex()],
    "apps": [APP_ID.hex(), "02" * 20],
    "compose": [COMPOSE.hex(), "02" * 32],
    "products": ["genoa", "milan"],
}


def without(values: dict[str, Any], kind: str, member: str, index: int) -> dict[str, Any]:
    listed = values[kind][member]
    if isinstance(listed, dict):
        name = sorted(listed)[index % len(listed)]
        narrower: Any = {key: value for key, value in listed.items() if key != name}
    else:
        position = index % len(listed)
        narrower = [item for at, item in enumerate(listed) if at != position]
    changed = {**values[kind], member: narrower}
    if member == "keys" and "tls" not in narrower:
        changed.pop("tls")
    return {**values, kind: changed}


@settings(max_examples=60, deadline=None)
@given(GUESTS, st.sampled_from(ALLOWLISTS), st.integers(0, 9), st.sets(st.sampled_from(ASK.keys), min_size=1))
def test_removing_from_an_allowlist_never_allows(
    shown: dict[str, Any], where: tuple[str, str], index: int, keys: set[Any]
) -> None:
    case = replace(Case(documents()).guest(**shown), ask=Ask(tuple(keys)))
    narrower = replace(case, documents=without(case.documents, *where, index))
    if where == ("guest", "signers"):
        narrower.documents["guest"].pop("csp")
    before, after = case.decide(), narrower.decide()
    # A model's own entry may be gone, and its product line's higher one apply; never a lower one.
    assert not (isinstance(before, Denied) and isinstance(after, Allowed))


@settings(max_examples=60, deadline=None)
@given(GUESTS, st.sampled_from(sorted(REVOCATIONS)), st.data())
def test_revoking_never_allows(shown: dict[str, Any], what: str, data: st.DataObject) -> None:
    case = Case(documents()).guest(**shown)
    value = data.draw(st.sampled_from(REVOCATIONS[what]))
    narrower = replace(case, more=({"kind": "revoked", "name": "now", what: [value]},))
    before, after = case.decide(), narrower.decide()
    assert not (isinstance(before, Denied) and isinstance(after, Allowed))
    if isinstance(before, Denied):
        assert set(before.reasons) <= set(after.reasons if isinstance(after, Denied) else ())


@settings(max_examples=60, deadline=None)
@given(GUESTS)
def test_a_decision_is_a_value(shown: dict[str, Any]) -> None:
    decision = Case(documents()).guest(**shown).decide()
    if isinstance(decision, Denied):
        assert decision.reasons
    else:
        assert all(check.passed for check in decision.checks)

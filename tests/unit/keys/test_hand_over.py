"""Hand-overs: a guest follows its KMS to a new identity, and nobody else (field lesson 29)."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kms.encoding import b64url
from kms.keys.envelope import EnvelopeRejected
from kms.keys.hand_over import MAX_HAND_OVERS, follow, hand_overs, leads
from kms.keys.identity import Identity
from kms.keys.signed import Signed
from kms.labels import HAND_OVER, SIGNING_STATEMENT

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GENERATIONS = [Identity.from_prf(bytes([number]) * 64) for number in range(1, 5)]
FIRST, SECOND, THIRD, FOURTH = (each.public_key for each in GENERATIONS)
IMPOSTOR = Identity.from_prf(b"\xee" * 64)
DATES = [NOW + timedelta(days=day) for day in range(3)]
CHAIN = hand_overs(GENERATIONS, DATES)

Change = Callable[[dict[str, object]], dict[str, object]]


def signed_anew(signed: Signed, by: Identity, **changes: object) -> Signed:
    """Give a hand-over with other members, signed by whoever."""
    document = json.loads(signed.payload) | changes
    return Signed.by(by, HAND_OVER, json.dumps(document).encode())


def refused(chain: tuple[Signed, ...], pinned: bytes = FIRST, claimed: bytes = FOURTH) -> str:
    with pytest.raises(EnvelopeRejected) as error:
        follow(pinned, chain, claimed)
    assert error.value.reason == "identity-mismatch"
    assert not leads(pinned, chain, claimed)
    return error.value.detail


def test_the_old_identity_signs_what_the_page_says() -> None:
    first = CHAIN[0]
    assert first.identity == FIRST
    assert json.loads(first.payload) == {
        "generation": 2,
        "identity": b64url(SECOND),
        "previous": b64url(FIRST),
        "made_at": "2026-11-22T12:00:00Z",
    }
    first.verify(HAND_OVER)


def test_every_server_signs_the_same_bytes() -> None:
    assert hand_overs(GENERATIONS, DATES) == CHAIN


def test_a_kms_of_one_identity_has_none() -> None:
    assert hand_overs(GENERATIONS[:1], []) == ()


@pytest.mark.parametrize("dates", [[], DATES[:2], [*DATES, NOW]], ids=len)
def test_each_hand_over_has_its_date(dates: list[datetime]) -> None:
    with pytest.raises(ValueError, match="zip"):
        hand_overs(GENERATIONS, dates)


@pytest.mark.parametrize("pinned", [FIRST, SECOND, THIRD])
@pytest.mark.parametrize("claimed", [SECOND, THIRD, FOURTH])
def test_they_lead_forward_only(pinned: bytes, claimed: bytes) -> None:
    order = [FIRST, SECOND, THIRD, FOURTH]
    assert leads(pinned, CHAIN, claimed) is (order.index(pinned) <= order.index(claimed))


def test_the_pinned_identity_itself_needs_none() -> None:
    follow(FIRST, (), FIRST)


def test_without_hand_overs_another_identity_is_an_impostor() -> None:
    refused(())


def test_nobody_signs_themselves_in() -> None:
    own = hand_overs([IMPOSTOR, GENERATIONS[3]], [NOW])
    refused(own)
    refused(own + CHAIN[1:])
    refused((signed_anew(CHAIN[0], IMPOSTOR), *CHAIN[1:]))


def test_the_identity_beside_a_signature_does_not_say_who_signed() -> None:
    forged = signed_anew(CHAIN[0], IMPOSTOR, identity=b64url(IMPOSTOR.public_key))
    refused((replace(forged, identity=FIRST),), claimed=IMPOSTOR.public_key)


def test_a_statement_of_another_kind_is_no_hand_over() -> None:
    other = Signed.by(GENERATIONS[0], SIGNING_STATEMENT, CHAIN[0].payload)
    assert "not one" in refused((other, *CHAIN[1:]))


def test_one_that_was_changed() -> None:
    payload = CHAIN[0].payload.replace(b64url(SECOND).encode(), b64url(IMPOSTOR.public_key).encode())
    refused((replace(CHAIN[0], payload=payload),), claimed=IMPOSTOR.public_key)


def test_a_gap() -> None:
    assert "follow one another" in refused((CHAIN[0], CHAIN[2]))


def test_another_order() -> None:
    refused((CHAIN[1], CHAIN[0], CHAIN[2]))


def test_a_generation_twice_or_left_out() -> None:
    for generation in (2, 4, 5):
        chain = (CHAIN[0], signed_anew(CHAIN[1], GENERATIONS[1], generation=generation), CHAIN[2])
        assert "generations" in refused(chain)


def test_a_circle() -> None:
    for back in (GENERATIONS[0], GENERATIONS[1]):
        chain = (
            CHAIN[0],
            signed_anew(CHAIN[1], GENERATIONS[1], identity=b64url(back.public_key)),
            *CHAIN[1:],
        )
        assert "circle" in refused(chain)


def test_one_about_another_identity_than_its_signer() -> None:
    chain = (signed_anew(CHAIN[0], GENERATIONS[0], previous=b64url(THIRD)), *CHAIN[1:])
    assert "previous" in refused(chain)


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 1},
        {"generation": "2"},
        {"generation": True},
        {"identity": b64url(SECOND[:31])},
        {"identity": None},
        {"made_at": "yesterday"},
        {"made_at": "2026-11-22T12:00:00+00:00"},
        {"more": 1},
    ],
    ids=str,
)
def test_one_that_is_not_of_its_form(changes: dict[str, object]) -> None:
    refused((signed_anew(CHAIN[0], GENERATIONS[0], **changes),), claimed=SECOND)


def test_a_text_that_is_no_json() -> None:
    refused((Signed.by(GENERATIONS[0], HAND_OVER, b"{"),), claimed=SECOND)


def test_what_comes_after_the_claimed_one_does_not_matter() -> None:
    follow(FIRST, (CHAIN[0], signed_anew(CHAIN[1], IMPOSTOR)), SECOND)


def test_more_than_any_kms_has() -> None:
    assert "more" in refused(CHAIN[:1] * (MAX_HAND_OVERS + 1))

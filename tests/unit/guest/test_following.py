"""A KMS with a new identity: guests that pin an old one follow its hand-overs, and nothing else."""

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256

import httpx2
import pytest

from kms.encoding import b64url
from kms.guest.errors import AnswerRejected, AppDocumentRefused, ServerUnreachable
from kms.keys.hand_over import hand_overs
from kms.keys.identity import Identity
from kms.simulator.machine import SimulatedMachine
from tests.unit.guest.conftest import (
    DISK,
    FakeKms,
    FakeTime,
    answer_then,
    app_document,
    make_client,
    problem,
    value_of,
    with_host_data,
)

OLD, NEW, NEWEST = (Identity.from_prf(bytes([number]) * 64) for number in (1, 2, 3))
MADE_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
CHAIN = hand_overs([OLD, NEW, NEWEST], [MADE_AT, MADE_AT])
Handler = Callable[[httpx2.Request], httpx2.Response]
IMPOSTOR = Identity.from_prf(b"\x22" * 64)


def first_two(kms: FakeKms) -> list[Handler]:
    """Answer challenge and release as the server does."""
    return [lambda request: answer_then(kms, request)] * 2


@pytest.fixture
def kms() -> FakeKms:
    """A KMS in its third generation."""
    return FakeKms(identity=NEWEST, hand_overs=CHAIN)


@pytest.mark.parametrize("pin", [OLD, NEW], ids=["first", "second"])
def test_an_image_that_pins_an_old_identity_gets_its_keys(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime, pin: Identity
) -> None:
    payload = make_client(kms, machine, time, identity=pin.public_key).fetch([DISK])
    assert payload.keys[0].value == value_of(DISK)
    assert payload.identity == NEWEST.public_key


def test_who_pins_the_one_in_use_asks_for_no_hand_over(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    kms.hand_overs = ()
    make_client(kms, machine, time).fetch([DISK])


def test_an_impostor_with_the_genuine_hand_overs(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    kms.signer = IMPOSTOR
    with pytest.raises(AnswerRejected) as error:
        make_client(kms, machine, time, identity=OLD.public_key).fetch([DISK])
    assert error.value.reason == "identity-mismatch"


def test_an_impostor_with_hand_overs_of_its_own(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    kms.signer, kms.hand_overs = IMPOSTOR, hand_overs([NEW, IMPOSTOR], [MADE_AT])
    with pytest.raises(AnswerRejected):
        make_client(kms, machine, time, identity=OLD.public_key).fetch([DISK])


def test_the_new_pin_does_not_lead_back_to_the_old_identity(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    """After a leak of the old key, an image with the new pin is safe from whoever has it."""
    kms.signer = OLD
    with pytest.raises(AnswerRejected) as error:
        make_client(kms, machine, time, identity=NEW.public_key).fetch([DISK])
    assert error.value.reason == "identity-mismatch"


@pytest.mark.parametrize(
    "answer",
    [
        problem(404, "not-found"),
        lambda _: httpx2.Response(200, json={"previous": []}),
        lambda _: httpx2.Response(200, json={"previous": [{}]}),
        lambda _: httpx2.Response(200, json={"previous": [CHAIN[0].to_json()] * 101}),
        lambda _: httpx2.Response(200, json={"previous": None}),
        lambda _: httpx2.Response(200, content=b"{"),
    ],
)
def test_an_identity_route_that_gives_none(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime, answer: Handler
) -> None:
    kms.script = [*first_two(kms), answer]
    with pytest.raises(AnswerRejected):
        make_client(kms, machine, time, identity=OLD.public_key).fetch([DISK])


def test_hand_overs_that_cannot_be_had_now_are_asked_for_again(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    kms.script = [*first_two(kms), problem(503, "ledger-unavailable")]
    payload = make_client(kms, machine, time, identity=OLD.public_key).fetch([DISK])
    assert payload.identity == NEWEST.public_key
    assert kms.challenges == 2
    kms.script = [problem(503, "ledger-unavailable")] * 100
    with pytest.raises(ServerUnreachable):
        make_client(kms, machine, time, identity=OLD.public_key).fetch([DISK])


@pytest.mark.parametrize(("pin", "named"), [(OLD, NEW), (OLD, NEWEST), (NEW, OLD), (NEWEST, OLD)])
def test_a_document_may_name_another_generation_than_the_pin(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime, pin: Identity, named: Identity
) -> None:
    document = app_document(kms_identity=b64url(named.public_key))
    bound = with_host_data(machine, sha256(document).digest())
    client = make_client(kms, bound, time, identity=pin.public_key)
    assert client.fetch([DISK], app_document=document).identity == NEWEST.public_key


def test_a_document_for_another_kms_is_refused_whatever_hand_overs_there_are(
    kms: FakeKms, machine: SimulatedMachine, time: FakeTime
) -> None:
    document = app_document(kms_identity=b64url(IMPOSTOR.public_key))
    bound = with_host_data(machine, sha256(document).digest())
    with pytest.raises(AppDocumentRefused) as error:
        make_client(kms, bound, time, identity=OLD.public_key).fetch([DISK], app_document=document)
    assert error.value.reason == "kms-identity-differs"
    assert not kms.requests

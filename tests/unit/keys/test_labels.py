"""Labels and framing: no two uses, and no two lists of fields, may ever give the same bytes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms import labels
from kms.identifiers import AppId
from kms.keys import root_messages
from kms.keys.root_messages import Mode
from kms.labels import frame, labelled

LABELS = {name: value for name, value in vars(labels).items() if name.isupper()}


def unframe(data: bytes) -> tuple[bytes, ...]:
    fields = []
    while data:
        length = int.from_bytes(data[:4], "big")
        fields.append(data[4 : 4 + length])
        data = data[4 + length :]
    return tuple(fields)


def test_labels_are_distinct() -> None:
    assert len(LABELS) >= 11
    assert len(set(LABELS.values())) == len(LABELS)


@pytest.mark.parametrize("label", LABELS.values())
def test_labels_have_the_one_form(label: str) -> None:
    assert re.fullmatch(r"attested-kms/v1/[a-z-]+", label)


def test_no_terminated_label_begins_another() -> None:
    terminated = [labelled(label, b"") for label in LABELS.values()]
    for one in terminated:
        assert sum(other.startswith(one) for other in terminated) == 1


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_framing_is_injective(fields: list[bytes]) -> None:
    assert unframe(frame(*fields)) == tuple(fields)


def test_app_id_bytes_do_not_slide_into_the_next_field() -> None:
    """Field lesson 27."""
    assert frame(b"ab", b"c") != frame(b"a", b"bc")
    assert frame(b"a", b"") != frame(b"a")


def test_root_messages_never_collide() -> None:
    messages = [
        *(root_messages.app_message(AppId(app)) for app in (b"\1" * 20, b"\1" * 32, b"\2" * 20)),
        *(root_messages.identity_message(generation) for generation in (1, 2)),
        root_messages.challenge_message(),
        *(root_messages.check_message(mode, epoch) for mode in Mode for epoch in (1, 2)),
    ]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("number", [0, -1, 2**53])
def test_epochs_out_of_range_have_no_encoding(number: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        root_messages.integer(number)
    with pytest.raises(ValueError, match="epoch"):
        root_messages.check_message(Mode.PRODUCTION, number)


def test_an_unknown_mode_is_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"^a mode is") as caught:
        Mode.parse("canary")
    assert "canary" not in str(caught.value)

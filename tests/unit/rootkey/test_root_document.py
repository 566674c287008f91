import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kms.keys.root_messages import MAX_EPOCHS, Mode
from kms.rootkey.root_document import RootDocument, RootDocumentError, read, write

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRETS = {1: bytes(range(1, 33)), 2: bytes(range(33, 65))}
DOCUMENT = RootDocument(Mode.PRODUCTION, NOW, SECRETS)
CONTENT = write(DOCUMENT)

Edit = Callable[[dict[str, Any]], object]


def resealed(edit: Edit) -> bytes:
    """Give an edited document with a checksum that fits: only the strict reading can refuse it."""
    body = json.loads(CONTENT)
    del body["checksum"]
    edit(body)
    return json.dumps(body | {"checksum": hashlib.sha256(rfc8785.dumps(body)).hexdigest()}).encode()


def refused(content: bytes) -> str:
    with pytest.raises(RootDocumentError) as caught:
        read(content)
    for secret in json.loads(CONTENT)["epochs"]:
        assert secret["secret"] not in str(caught.value)
    assert "canary" not in str(caught.value)
    return str(caught.value)


@given(
    st.sampled_from(Mode),
    st.lists(st.binary(min_size=32, max_size=32).filter(any), min_size=1, max_size=5),
    st.datetimes(min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_what_is_written_is_read(mode: Mode, secrets: list[bytes], moment: datetime) -> None:
    document = RootDocument(mode, moment.replace(microsecond=0), dict(enumerate(secrets, start=1)))
    assert read(write(document)) == document


def test_a_file_of_the_first_version_is_read_for_ever() -> None:
    content = b"""{
 "format": "attested-kms/root-key",
 "version": 1,
 "mode": "production",
 "created_at": "2026-01-02T03:04:05Z",
 "epochs": [
  {
   "epoch": 1,
   "secret": "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA"
  }
 ],
 "checksum": "c2bd99a6fcc7bbc1f06630dd677493cc4e46aa63cba7f936772a360bd85c7bac"
}
"""
    assert read(content) == RootDocument(Mode.PRODUCTION, NOW, {1: SECRETS[1]})
    assert write(read(content)) == content


def test_the_most_epochs_that_can_be_written_can_be_read() -> None:
    secrets = {epoch: epoch.to_bytes(32, "big") for epoch in range(1, MAX_EPOCHS + 1)}
    most = RootDocument(Mode.PRODUCTION, NOW, secrets)
    assert read(write(most)) == most
    with pytest.raises(ValueError, match="more than"):
        RootDocument(Mode.PRODUCTION, NOW, {**secrets, MAX_EPOCHS + 1: SECRETS[1]})


def test_the_checksum_is_over_the_canonical_form() -> None:
    assert read(resealed(lambda _: None)) == DOCUMENT
    assert read(json.dumps(json.loads(CONTENT), sort_keys=True).encode()) == DOCUMENT


@given(st.integers(min_value=0, max_value=len(CONTENT) * 8 - 1))
def test_no_flipped_bit_changes_what_is_read(bit: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        assert read(bytes(damaged)) == DOCUMENT  # white space into other white space
    except RootDocumentError:
        return


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"production"', b'"development"'),
        (b"2026", b"2027"),
        (b'"epoch": 2', b'"epoch": 3'),
        (b'"secret": "AQ', b'"secret": "Ag'),
    ],
)
def test_a_change_without_its_checksum_is_damage(old: bytes, new: bytes) -> None:
    assert CONTENT.count(old) == 1
    assert "checksum" in refused(CONTENT.replace(old, new))


EDITS: dict[str, Edit] = {
    "unknown member": lambda d: d.update(canary=1),
    "no mode": lambda d: d.pop("mode"),
    "unknown mode": lambda d: d.update(mode="canary"),
    "other format": lambda d: d.update(format="canary"),
    "later version": lambda d: d.update(version=2),
    "version true": lambda d: d.update(version=True),
    "time of another form": lambda d: d.update(created_at="2026-01-02 canary"),
    "time without its zeros": lambda d: d.update(created_at="2026-1-2T3:4:5Z"),
    "no epochs": lambda d: d.update(epochs=[]),
    "first epoch missing": lambda d: d["epochs"].pop(0),
    "epochs in another order": lambda d: d["epochs"].reverse(),
    "an epoch twice": lambda d: d["epochs"].append(d["epochs"][1]),
    "one number for two secrets": lambda d: d["epochs"][1].update(epoch=1),
    "a gap": lambda d: d["epochs"][1].update(epoch=3),
    "epoch zero": lambda d: d["epochs"][0].update(epoch=0),
    "unknown member of an epoch": lambda d: d["epochs"][0].update(canary=1),
    "epochs of another type": lambda d: d.update(epochs={"1": "canary"}),
    "short secret": lambda d: d["epochs"][0].update(secret="AQID"),
    "long secret": lambda d: d["epochs"][0].update(secret="AQID" * 11),
    "zero secret": lambda d: d["epochs"][0].update(secret="A" * 43),
    "secret that is not base64": lambda d: d["epochs"][0].update(secret="canary!"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_fitting_checksum_excuses_nothing(edit: Edit) -> None:
    assert "checksum" not in refused(resealed(edit))


@pytest.mark.parametrize(
    "content", [b"", b"canary", b"[]", b"null", b"{}", b"\xff\xfe", CONTENT + b"canary", CONTENT[:-20]]
)
def test_other_texts_are_damage(content: bytes) -> None:
    refused(content)


def test_a_document_cannot_be_built_wrongly() -> None:
    for secrets in ({}, {2: SECRETS[1]}, {1: bytes(32)}, {1: b"\1" * 31}):
        with pytest.raises(ValueError, match="epoch"):
            RootDocument(Mode.PRODUCTION, NOW, secrets)


def test_the_repr_holds_no_secret() -> None:
    assert "secrets" not in repr(DOCUMENT)

"""A receipt, the proof that it was kept, and the ledger's key: each accepted only as it should be."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import rfc8785

from kms.encoding import b64url
from kms.keys.identity import Identity, SignatureInvalid
from kms.keys.signed import Signed
from kms.labels import LEDGER_KEY, RECEIPT
from kms.ledger.checkpoint import CheckpointKey
from kms.ledger.ledger_key import LedgerKey, derive_checkpoint_key
from kms.ledger.merkle import inclusion_proof
from kms.ledger.proofs import InclusionProof, ProofInvalid, Receipt
from kms.ledger.tiles import DATA_LEVEL, hashes_from_tiles
from kms.strict_json import JsonError
from tests.unit.ledger.recorded_ledger import KEY, ORIGIN, RecordedLedger, sealed

IDENTITY = Identity.from_prf(b"\x11" * 64)
OTHER = Identity.from_prf(b"\x22" * 64)
RELEASE = "0" * 31 + "7"
SIZE, INDEX = 300, 257
LEDGER = RecordedLedger.of(SIZE)
ENTRY = sealed(INDEX + 1)


def proof(index: int = INDEX) -> InclusionProof:
    hashes = hashes_from_tiles(lambda level, number: LEDGER.tiles[level, number])
    return InclusionProof(
        release_id=RELEASE,
        digest=LEDGER.tiles[DATA_LEVEL, index // 256][index % 256 * 32 :][:32],
        index=index,
        size=SIZE,
        hashes=inclusion_proof(index, SIZE, hashes),
        checkpoint=LEDGER.notes[SIZE],
    )


# Signed by another key, of the same name.
ANOTHERS = CheckpointKey(b"x" * 32, ORIGIN).sign(proof().verify(KEY.verifier_key))


def receipt(identity: Identity = IDENTITY, label: str = RECEIPT, **changes: Any) -> dict[str, Any]:
    promise: dict[str, Any] = {
        "release_id": RELEASE,
        "decided_at": "2026-11-22T12:00:00.000000Z",
        "entry_sha256": ENTRY.digest.hex(),
        "salt": b64url(ENTRY.salt),
        **changes,
    }
    return dict(Signed.by(identity, label, rfc8785.dumps(promise)).to_json())


def test_a_proof_goes_there_and_back_and_proves() -> None:
    there = InclusionProof.read(proof().to_json())
    assert there == proof()
    checkpoint = there.verify(KEY.verifier_key)
    assert (checkpoint.size, checkpoint.origin) == (SIZE, ORIGIN)
    Receipt.verify(receipt(), pinned=IDENTITY.public_key).require_kept_by(there)


@pytest.mark.parametrize("index", [0, 1, 255, 256, SIZE - 1])
def test_every_leaf_has_one(index: int) -> None:
    proof(index).verify(KEY.verifier_key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": bytes(32)}, "not-included"),
        ({"index": INDEX - 1}, "not-included"),
        ({"hashes": proof().hashes[:-1]}, "not-included"),
        ({"hashes": (*proof().hashes, bytes(32))}, "not-included"),
        ({"size": SIZE - 1}, "size-differs"),
        ({"checkpoint": LEDGER.notes[SIZE].replace("300", "301")}, "checkpoint-invalid"),
        ({"checkpoint": ""}, "checkpoint-invalid"),
        ({"checkpoint": ANOTHERS}, "checkpoint-invalid"),
    ],
)
def test_one_that_proves_nothing(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProofInvalid) as refused:
        replace(proof(), **change).verify(KEY.verifier_key)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": True},
        {"size": 0},
        {"entry_sha256": "00" * 31},
        {"entry_sha256": "AB" * 32},
        {"inclusion": [b64url(bytes(31))]},
        {"inclusion": [7]},
        {"inclusion": [b64url(bytes(32))] * 65},
        {"more": 1},
    ],
)
def test_what_is_no_proof(change: dict[str, Any]) -> None:
    with pytest.raises(ProofInvalid) as refused:
        InclusionProof.read({**proof().to_json(), **change})
    assert refused.value.reason == "proof-malformed"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (receipt(OTHER), "receipt-identity"),
        ({**receipt(), "identity": receipt(OTHER)["identity"]}, "receipt-signature"),
        (receipt(label=LEDGER_KEY), "receipt-signature"),
        (receipt(more=1), "receipt-malformed"),
        (receipt(salt="AA"), "receipt-malformed"),
        ([], "receipt-malformed"),
        (None, "receipt-malformed"),
    ],
)
def test_what_is_no_receipt_of_this_kms(value: Any, reason: str) -> None:
    with pytest.raises(ProofInvalid) as refused:
        Receipt.verify(value, pinned=IDENTITY.public_key)
    assert refused.value.reason == reason


@pytest.mark.parametrize("changes", [{"release_id": "f" * 32}, {"entry_sha256": "00" * 32}])
def test_a_promise_that_was_not_kept(changes: dict[str, Any]) -> None:
    promised = Receipt.verify(receipt(**changes), pinned=None)
    with pytest.raises(ProofInvalid) as refused:
        promised.require_kept_by(proof())
    assert refused.value.reason == "receipt-differs"


class TestLedgerKey:
    def test_every_generation_says_the_same(self) -> None:
        key = LedgerKey.of(KEY)
        one, other = key.signed_by(IDENTITY), key.signed_by(OTHER)
        assert one.payload == other.payload == rfc8785.dumps({"key": KEY.verifier_key, "origin": ORIGIN})
        assert LedgerKey.verify(one) == LedgerKey.verify(other) == key

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda signed: replace(signed, identity=OTHER.public_key), SignatureInvalid),
            (lambda _: Signed.by(IDENTITY, RECEIPT, b"{}"), SignatureInvalid),
            (lambda _: Signed.by(IDENTITY, LEDGER_KEY, b"{}"), JsonError),
        ],
    )
    def test_nobody_else_says_it(self, change: Callable[[Signed], Signed], error: type[Exception]) -> None:
        with pytest.raises(error):
            LedgerKey.verify(change(LedgerKey.of(KEY).signed_by(IDENTITY)))

    def test_its_name_is_that_of_the_first_identity(self) -> None:
        key = derive_checkpoint_key(bytes(range(64)), IDENTITY.public_key)
        digest = sha256(IDENTITY.public_key).hexdigest()
        assert key.origin == f"attested-kms/v1/ledger/{digest[:16]}"
        assert key.verifier_key == CheckpointKey(bytes(range(32)), key.origin).verifier_key

    def test_a_root_that_answers_otherwise_gives_none(self) -> None:
        with pytest.raises(ValueError, match="64"):
            derive_checkpoint_key(bytes(32), IDENTITY.public_key)

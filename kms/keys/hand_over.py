"""Hand-overs: an identity's signed word for the one that follows it, so that images need not be built anew.

Guests have the identity in their measured images. When a KMS takes a new one, the old one signs, under the
label ``attested-kms/v1/hand-over``, the text
``{"generation":2,"identity":"<new>","previous":"<old>","made_at":"2026-11-22T12:00:00Z"}``, and a guest that
pins the old one follows it. That gives nobody anything: whoever has the old private key could sign keys for
such a guest without a hand-over. A guest that must not trust the old key any more needs the new one as its
pin; hand-overs lead forward only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile, pairwise
from typing import Final, NoReturn, Self

from kms.encoding import b64url, from_whole_seconds, whole_seconds
from kms.keys.envelope import EnvelopeRejected
from kms.keys.identity import Identity, SignatureInvalid
from kms.keys.signed import Signed, read_public_key
from kms.labels import HAND_OVER
from kms.strict_json import Fields, JsonError, compact_json, parse

MAX_HAND_OVERS: Final = 100

_SECOND: Final = 2  # generation; nothing comes before the first


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What an identity says of its successor. Public keys are 32 bytes; `made_at` is UTC."""

    generation: int
    identity: bytes
    previous: bytes
    made_at: datetime

    def to_json(self) -> bytes:
        """Give the JSON text that is signed."""
        document = {
            "generation": self.generation,
            "identity": b64url(self.identity),
            "previous": b64url(self.previous),
            "made_at": whole_seconds(self.made_at),
        }
        return compact_json(document)

    @classmethod
    def verify(cls, signed: Signed) -> Self:
        """Read one that `signed.identity` signed about itself and its successor.

        Raises:
            SignatureInvalid: it is not signed by the identity that it names.
            JsonError: the text is no hand-over of that identity.

        """
        signed.verify(HAND_OVER)
        fields = Fields(parse(signed.payload), "hand-over")
        read = cls(
            generation=fields.integer("generation", minimum=_SECOND),
            identity=read_public_key(fields, "identity"),
            previous=read_public_key(fields, "previous"),
            made_at=fields.convert("made_at", fields.text("made_at", at_most=32), from_whole_seconds),
        )
        fields.end()
        if read.previous != signed.identity:
            fields.fail("`previous` is not the identity that signed")
        return read


@dataclass(frozen=True, slots=True)
class KnownIdentities:
    """The public keys (32 bytes) of every generation, and what each signed of the next, oldest first."""

    public_keys: frozenset[bytes]
    hand_overs: tuple[Signed, ...]


def hand_overs(identities: Sequence[Identity], made_at: Sequence[datetime]) -> tuple[Signed, ...]:
    """Sign every hand-over from generation 1 on: the same bytes on every server and after every start.

    `identities` are all generations, oldest first; `made_at` says when each but the first was made.

    Raises:
        ValueError: not one time for each identity but the first.

    """
    steps = enumerate(zip(pairwise(identities), made_at, strict=True), _SECOND)
    return tuple(_hand_over(old, new, generation, moment) for generation, ((old, new), moment) in steps)


def follow(pinned: bytes, signed: Sequence[Signed], claimed: bytes) -> None:
    """Check that hand-overs lead from the `pinned` identity to the `claimed` one (32 bytes each).

    `signed` are all that the KMS has, oldest first; those from before the pin are not looked at.

    Raises:
        EnvelopeRejected: reason ``identity-mismatch``; they do not lead there.

    """
    if pinned == claimed:
        return
    if len(signed) > MAX_HAND_OVERS:
        _mismatch("more hand-overs than any KMS has")
    if not any(step.identity == claimed for step in _chain(pinned, signed)):
        _mismatch("signed by another KMS than the pinned one, and no hand-over leads there")


def leads(old: bytes, signed: Sequence[Signed], new: bytes) -> bool:
    """Say whether hand-overs lead from an old identity to a new one, as `follow` checks it."""
    try:
        follow(old, signed, new)
    except EnvelopeRejected:
        return False
    return True


def _chain(pinned: bytes, signed: Sequence[Signed]) -> Iterator[HandOver]:
    """Give the hand-overs from the pinned identity on; each is signed by the one that was handed over to."""
    at, generation, seen = pinned, None, {pinned}
    for each in dropwhile(lambda earlier: earlier.identity != pinned, signed):
        if each.identity != at:
            _mismatch("the hand-overs do not follow one another")
        try:
            step = HandOver.verify(each)
        except (SignatureInvalid, JsonError) as error:
            _mismatch(f"a hand-over is not one: {error}")
        if generation is not None and step.generation != generation + 1:
            _mismatch("the generations of the hand-overs do not follow one another")
        if step.identity in seen:
            _mismatch("the hand-overs lead in a circle")
        yield step
        at, generation = step.identity, step.generation
        seen.add(at)


def _hand_over(old: Identity, new: Identity, generation: int, made_at: datetime) -> Signed:
    step = HandOver(generation=generation, identity=new.public_key, previous=old.public_key, made_at=made_at)
    return Signed.by(old, HAND_OVER, step.to_json())


def _mismatch(detail: str) -> NoReturn:
    raise EnvelopeRejected(detail, reason="identity-mismatch")

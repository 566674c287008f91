"""What an anchor holds: one JSON object, whose members go forward.

::

    {"policy": {"revision": "sha256:…", "sequence": 9},
     "keys": {"epochs": 2, "generations": 1, "in_use": 2, "retired": [1]},
     "ledger": {"accepted": 1, "place": 4711, "root": "5c…", "size": 4709}}

Members are missing until there is something to keep in them, but never all of these. Others are kept as they
are. Only the ledger may go back, where an operator accepted that; `accepted` counts how often (none: never),
so that an older state of the anchor is not taken for an acceptance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self, TypeAlias

from kms.errors import LedgerUnavailable
from kms.keys.epochs import KeyProgress
from kms.ledger.merkle import HASH_LENGTH
from kms.ledger_ports import ROLLED_BACK, SeenLedger
from kms.policy.history import Head
from kms.policy_authority import PolicyUntrusted
from kms.strict_json import MAX_VALUES, Fields, JsonValue

Members: TypeAlias = dict[str, JsonValue]

_POLICY: Final = "policy"
_KEYS: Final = "keys"
_LEDGER: Final = "ledger"
_OURS: Final = frozenset({_POLICY, _KEYS, _LEDGER})


class AnchorUnusable(PolicyUntrusted):
    """What was used last cannot be told, so nothing that the database says may be used."""

    def __init__(self, fault: str, *, remedy: str) -> None:
        super().__init__(f"{fault}. {remedy}", reason="anchor-unusable")
        self.fault = fault
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The members, read; None is what was never kept. What gives another one keeps what must not go back."""

    policy: Head | None = None
    keys: KeyProgress | None = None
    ledger: SeenLedger | None = None
    accepted: int = 0
    others: Mapping[str, JsonValue] = field(default_factory=dict)

    def with_policy(self, head: Head) -> Self:
        """Use another policy. Raises `PolicyUntrusted`: a newer one was used, or another of this number."""
        if self.policy is not None and head != self.policy and head.sequence <= self.policy.sequence:
            raise PolicyUntrusted(f"{head} cannot be used: this server has used {self.policy}")
        return replace(self, policy=head)

    def with_keys(self, progress: KeyProgress) -> Self:
        """Unite it with what is kept."""
        kept = self.keys or KeyProgress()
        return self if kept.includes(progress) else replace(self, keys=kept.united(progress))

    def with_ledger(self, seen: SeenLedger) -> Self:
        """Take the ledger that is larger. Raises `LedgerUnavailable`: another one of this size was seen."""
        kept = self.ledger
        if kept is not None and kept.size == seen.size and kept != seen:
            raise LedgerUnavailable(
                f"two ledgers of {seen.size} entries: this server has seen the root {kept.root.hex()} at"
                f" place {kept.place}, and the database has {seen.root.hex()} at place {seen.place}",
                reason=ROLLED_BACK,
            )
        # Another process of ours may be ahead.
        return self if kept is not None and kept.size >= seen.size else replace(self, ledger=seen)

    @classmethod
    def from_json(cls, members: Members) -> Self:
        """Read what was kept.

        Raises:
            JsonError: it is not of its form, or nothing was.

        """
        if _OURS.isdisjoint(members):
            Fields(members, "the object").fail("it has none of the members of an anchor")
        ledger, accepted = None, 0
        if _LEDGER in members:
            ledger, accepted = _ledger(Fields(members[_LEDGER], f"`{_LEDGER}`"))
        return cls(
            policy=_policy(Fields(members[_POLICY], f"`{_POLICY}`")) if _POLICY in members else None,
            keys=_keys(Fields(members[_KEYS], f"`{_KEYS}`")) if _KEYS in members else None,
            ledger=ledger,
            accepted=accepted,
            others={name: value for name, value in members.items() if name not in _OURS},
        )

    def to_json(self) -> Members:
        """Give the object; what was never kept is no member of it."""
        members = dict(self.others)
        if self.policy is not None:
            members[_POLICY] = {"revision": self.policy.revision, "sequence": self.policy.sequence}
        if self.keys is not None:
            members[_KEYS] = {
                "epochs": self.keys.epochs,
                "in_use": self.keys.in_use,
                "retired": [*sorted(self.keys.retired)],
                "generations": self.keys.generations,
            }
        if self.ledger is not None:
            members[_LEDGER] = {
                "size": self.ledger.size,
                "root": self.ledger.root.hex(),
                "place": self.ledger.place,
                **({"accepted": self.accepted} if self.accepted else {}),
            }
        return members


def _policy(fields: Fields) -> Head:
    head = Head(fields.integer("sequence", minimum=1), fields.text("revision", at_most=80))
    fields.end()
    return head


def _keys(fields: Fields) -> KeyProgress:
    retired = fields.array("retired", at_most=MAX_VALUES)
    progress = KeyProgress(
        epochs=fields.integer("epochs"),
        in_use=fields.integer("in_use"),
        retired=frozenset(
            each if type(each) is int else fields.fail("`retired` must be integers") for each in retired
        ),
        generations=fields.integer("generations", minimum=1),
    )
    fields.end()
    return progress


def _ledger(fields: Fields) -> tuple[SeenLedger, int]:
    seen = SeenLedger(
        size=fields.integer("size"),
        root=fields.hex("root", bytes),
        place=fields.integer("place"),
    )
    if len(seen.root) != HASH_LENGTH:
        fields.fail(f"`root` must have {HASH_LENGTH} bytes")
    accepted = fields.integer("accepted") if fields.has("accepted") else 0
    fields.end()
    return seen, accepted

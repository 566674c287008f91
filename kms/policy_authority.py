"""May the policy that the database names be used? Decided by every server for itself.

The attacker owns the database: he reads and writes every row, and keeps copies of old ones. He has neither
the root key nor enough operators' keys, and does not reach the servers' disks. What holds against him:

- **A change counts only with its MAC**, under a key that the root derives (`kms.keys.row_seal`). He can
  delete and bring back rows that a server once wrote; he can write none. A revision's body hashes to its
  name.
- **What was once used is remembered outside the database** (`seen`). A lower sequence number is refused,
  and so is the same number with another revision. Sequence numbers only grow, so an old state can never
  come back under a new number without somebody who makes a new change.
- **With a trust file, a change counts only with its signatures**, over its revision, number, predecessor,
  intent and this KMS. The statement is made again from the row and our own identity, so a signature for
  another change or another KMS proves nothing here, and nothing that was edited keeps its signatures.

With a trust file, `verify` goes back from the change that the database names. Each change must name the
revision of the authentic change before it, until the walk meets what this server has used last; or a change
that begins anew, which follows nothing and needs the widening quorum whatever it does; or, on a server that
has never used any, the first grant. On the way:

1. Down to the first change that says *widen*, the grant, each must have the quorum for what it says, and one
   that says *narrow* must really narrow the revision that it follows.
2. Below the grant nothing more is judged: the operators granted exactly that revision, under that number, on
   this KMS. The walk still goes on to `seen`, because a grant that was signed and never applied stays signed:
   shown after a revocation, it would take that back. But it does not follow what this server has used.

So whatever is accepted is no wider than a revision that a widening quorum granted as the next after what
this server knew, or than what the server was using by right. Deleting the rows between a change and the one
that it follows gives the attacker nothing: what he reaches is no wider than the older one, which he could
have shown alone. Narrowings are compared step by step and not end to end: else one signer could take a
revocation back as "no wider than long ago". A widening quorum's signatures under the word *narrow* are not
a grant: who agrees that something is taken away has not agreed to what is left, and the owner of the
database may have shown them a predecessor that was never in force.

What this cannot do: a server that has never used a policy believes the newest state that it is shown, so a
new replica is given the anchor of another. And `seen` is believed: a KMS that ran without a trust file and
gets one goes on from what it used, once that has been signed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from kms.errors import LedgerUnavailable
from kms.operator_ports import PolicyPast
from kms.policy.diff import Difference, Effect, differences, intent_of
from kms.policy.findings import PolicyInvalid
from kms.policy.history import Head, Intent, PolicyChange
from kms.policy.revision import Revision
from kms.policy.statement import Statement
from kms.policy.trust import PolicyTrust

Compare: TypeAlias = Callable[[Revision | None, Revision], Awaitable[tuple[Difference, ...]]]

_MOST_CHANGES: Final = 10_000  # that are looked at for one; to begin anew ends any chain
_AT_ONCE: Final = 100  # changes read from the database


class PolicyUntrusted(LedgerUnavailable):
    """What the database says of the policy does not follow from what operators did: it must not be used.

    `detail` says exactly what is wrong. Guests are told to come back later.
    """

    def __init__(self, detail: str, *, reason: str = "policy-untrusted") -> None:
        super().__init__(detail, reason=reason)


async def _compare_here(old: Revision | None, new: Revision) -> tuple[Difference, ...]:
    return differences(old, new)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAuthority:
    """The rule, for one KMS: `kms_identity` is its public key (32 bytes).

    Without `trust` no signatures are asked for. `compare` gives `kms.policy.diff.differences`; a server
    computes them beside its event loop.
    """

    trust: PolicyTrust | None
    kms_identity: bytes
    compare: Compare = _compare_here

    def needed(self, change: PolicyChange) -> int | None:
        """Give how many must sign a change for what it says that it does; None without a trust file."""
        if self.trust is None:
            return None
        # The first change has nothing to narrow: it says where everything begins.
        return self.trust.needed(Intent.WIDEN if change.previous is None else change.intent)

    def has_quorum(self, change: PolicyChange) -> bool:
        """Say whether enough operators signed a change for what it says that it does."""
        return self._lacking(change) is None

    async def verify(self, head: Head, seen: Head | None, history: PolicyPast) -> PolicyChange:
        """Decide whether `head`, what the database names, may be used; give its change.

        `seen` is what this server has used last, kept outside the database; None if it never used any.

        Raises:
            PolicyUntrusted: it must not be used.
            LedgerUnavailable: the database did not answer.

        """
        # 1. Not older than what was used, and not another under its number.
        if seen is not None and head.sequence < seen.sequence:
            raise PolicyUntrusted(
                f"the database names change {head.sequence}, and this server has used change "
                f"{seen.sequence}: an older database was put in its place"
            )
        if seen is not None and head.sequence == seen.sequence and head.revision != seen.revision:
            raise PolicyUntrusted(
                f"the database names {head.revision} as change {head.sequence}, and this server has used "
                f"{seen.revision} as that: another history was put in its place"
            )
        # 2. A change that a holder of the root key wrote down.
        change = await history.change(head.sequence)
        if change is None or change.sequence != head.sequence:
            raise PolicyUntrusted(f"change {head.sequence} has no authentic row")
        if change.revision != head.revision:
            raise PolicyUntrusted(
                f"the database names {head.revision} as change {head.sequence}, which put {change.revision} "
                "in force"
            )
        # 3. The newest of them. Whoever only sets the pointer back is noticed by a new server too.
        newest = next(iter(await history.changes(before=None, limit=1)), change)
        # A change that came into force since `head` was read moved the pointer along with its row.
        if newest.sequence > head.sequence and await history.head() == head:
            raise PolicyUntrusted(
                f"the database names change {head.sequence} and holds change {newest.sequence}: "
                "the pointer was set back"
            )
        # 4. Signed, and following what was used.
        if self.trust is not None:
            await self._require_narrowing(await self._narrowings(change, seen, history), history)
        return change

    async def _narrowings(
        self, change: PolicyChange, seen: Head | None, history: PolicyPast
    ) -> list[PolicyChange]:
        """Go back as the module says; give the changes that have to prove that they narrow, newest first."""
        found: list[PolicyChange] = []
        page: list[PolicyChange] = []
        granted = False
        for _ in range(_MOST_CHANGES):
            if not granted or change.previous is None:
                self._require_quorum(change)
            granted = granted or change.intent is Intent.WIDEN
            if change.head == seen:
                return found
            if not granted:
                found.append(change)
            if change.previous is None or (granted and seen is None):
                return found
            page = page or list(await history.changes(before=change.sequence, limit=_AT_ONCE))
            before = page.pop(0) if page else None
            if seen is not None and (before is None or before.sequence <= seen.sequence):
                # What this server has used needs no row: the server knows.
                _require_follows(change, seen)
                return found
            if before is None:
                raise PolicyUntrusted(
                    f"change {change.sequence} narrows, and there is no authentic change before it"
                )
            _require_follows(change, before.head)
            change = before
        raise PolicyUntrusted(f"more than {_MOST_CHANGES} changes lead to what the database names")

    async def _require_narrowing(self, changes: list[PolicyChange], history: PolicyPast) -> None:
        """Refuse unless each of the changes, newest first and without a gap, narrows what it follows."""
        old: Revision | None = None
        for change in reversed(changes):
            if old is None and change.previous is not None:
                old = await load_revision(change.previous, history)
            new = await load_revision(change.revision, history)
            refusal = _misnamed(change, old, new) or _understated(change, await self.compare(old, new))
            if refusal is not None:
                raise PolicyUntrusted(refusal)
            old = new

    def _require_quorum(self, change: PolicyChange) -> None:
        if (lacking := self._lacking(change)) is not None:
            raise PolicyUntrusted(lacking)

    def _lacking(self, change: PolicyChange) -> str | None:
        needed = self.needed(change)
        if self.trust is None or needed is None:
            return None
        signers = self.trust.signers(Statement.of(change, self.kms_identity), change.signatures)
        if len(signers) >= needed:
            return None
        return (
            f"change {change.sequence} ({change.intent}) needs the signatures of {needed} of the trust file, "
            f"and has those of {', '.join(signers) or 'nobody'}"
        )


async def load_revision(digest: str, history: PolicyPast) -> Revision:
    """Load a revision that something relies on.

    Raises:
        PolicyUntrusted: it is not there, or damaged.
        LedgerUnavailable: the database did not answer.

    """
    try:
        revision = await history.load(digest)
    except PolicyInvalid as error:
        raise PolicyUntrusted(f"the stored policy {digest} is damaged: {error}") from error
    if revision is None:
        raise PolicyUntrusted(f"the policy {digest} is not in the database")
    return revision


def _require_follows(change: PolicyChange, before: Head) -> None:
    if change.previous != before.revision:
        raise PolicyUntrusted(
            f"change {change.sequence} follows {change.previous}, and what came before it is {before}: "
            "another history was put in its place"
        )


def _misnamed(change: PolicyChange, old: Revision | None, new: Revision) -> str | None:
    """Say if these are not the revisions that the change names: a judgement of others proves nothing."""
    if (None if old is None else old.digest, new.digest) == (change.previous, change.revision):
        return None
    return f"change {change.sequence} is from another policy to another than were compared"


def _understated(change: PolicyChange, found: tuple[Difference, ...]) -> str | None:
    """Say if a change widens that says it narrows. One that says it widens has the larger quorum anyway."""
    if change.intent is Intent.WIDEN or intent_of(found) is Intent.NARROW:
        return None
    widening = next(each for each in found if each.effect is Effect.WIDENS)
    return (
        f"change {change.sequence} says that it narrows, and it widens {widening.document}: {widening.text}"
    )

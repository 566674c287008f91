"""Sequencing: what was recorded becomes leaves of the ledger's tree, and a checkpoint says so.

Servers take turns, and only save work by it: what decides is that a checkpoint is added to the very tree that
it was computed from. Nothing is computed while a lock of the database is held.

Only what carries the MAC of a server of this KMS is ever taken. What does not, and places at which something
was recorded and nothing stands, are passed over, and told once.

Entries of before the ledger are sealed when it is founded, whatever stands there. They are the beginning of
the tree, taken in its first round with nothing before them, or never: so a MAC that was made in another
founding, which the database's owner staged, is worth nothing in a ledger that has begun.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from kms.errors import LedgerUnavailable
from kms.ledger.checkpoint import Checkpoint, CheckpointKey
from kms.ledger.findings import Finding, FindingKind
from kms.ledger.sealed_entry import NO_SERVER, EntrySeal
from kms.ledger.tiles import Edge
from kms.ledger_memory import LedgerMemory, load_edge
from kms.ledger_ports import (
    UNTRUSTED,
    Growth,
    LedgerAnchor,
    LedgerHead,
    LedgerState,
    LedgerWriter,
    Recorded,
    SeenLedger,
)
from kms.ports import Clock

PAGE: Final = 256  # entries of up to ten kilobytes each
MOST_AT_ONCE: Final = 2048  # in one round: some tenths of a second
_PAUSE_AFTER: Final = 16  # entries: half a millisecond
# Whoever has the turn so long and adds nothing may be no server at all: who may connect to the database can
# take it.
_TURN_AT_MOST: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round found: `state` after it, how many entries it took, and what it passed over, told once.

    `accepted`: an operator accepted since the last round that the ledger went back. `more`: there is more to
    take at once.
    """

    state: LedgerState
    taken: int = 0
    passed_over: tuple[Finding, ...] = ()
    accepted: bool = False
    more: bool = False


@dataclass(slots=True)
class _Taking:
    """A round in the making: from the tree as it is, on. `founding`: nothing is in it but of before."""

    edge: Edge
    place: int
    founding: bool
    looked_at: int = 0
    last: Recorded | None = None
    places: list[int] = field(default_factory=list)
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)
    passed_over: list[Finding] = field(default_factory=list)


class Sequencer:
    """Sequences the ledger when it is its turn, and follows it when it is another's.

    `pause` gives the event loop a moment between entries: releases go on beside.
    """

    def __init__(
        self,
        ledger: LedgerWriter,
        seal: EntrySeal,
        key: CheckpointKey,
        anchor: LedgerAnchor,
        clock: Clock,
        *,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._seal = seal
        self._key = key
        self._memory = LedgerMemory(ledger, key.verifier_key, anchor)
        self._clock = clock
        self._pause = pause
        self._followed: LedgerState | None = None
        self._accepted = False
        self._edge: Edge | None = None
        self._passed: Recorded | None = None  # the last one, where nothing was sequenced after it
        # Where others have the turn: the newest checkpoint, and since when it is that.
        self._waits: tuple[LedgerHead | None, datetime] | None = None

    async def round(self) -> Round:
        """Verify how far the ledger has come, and take what waits. One small query where nothing is new.

        Raises:
            LedgerUnavailable: `ROLLED_BACK`, `UNTRUSTED`: nothing may be recorded here until that is mended;
                or the database, or the anchor, does not do what it should.

        """
        state = await self._follow()
        done = Round(state=state)
        if state.end > state.place:
            async with self._ledger.turn() as ours:
                if ours or self._waited_long(state.head):
                    done = await self._sequence()
                if ours:
                    self._waits = None
        accepted, self._accepted = self._accepted, False
        return replace(done, accepted=accepted)

    async def _follow(self) -> LedgerState:
        """Give the state, its checkpoint verified by what was seen before."""
        state = await self._ledger.state()
        if self._followed is None or self._followed.head != state.head:
            self._accepted = await self._memory.look() or self._accepted
            state = await self._ledger.state()
            await self._memory.keep(await self._memory.verify(state.head))
        self._followed = state
        return state

    def _waited_long(self, head: LedgerHead | None) -> bool:
        """Say whether another has the turn for long, and nothing comes of it. `append` decides anyhow."""
        now = self._clock()
        if self._waits is None or self._waits[0] != head or self._waits[1] > now:
            self._waits = head, now
        return now - self._waits[1] >= _TURN_AT_MOST

    async def _sequence(self) -> Round:
        state = await self._follow()  # another server may just have had its turn
        seen = self._memory.seen
        if self._edge is None or (self._edge.size, self._edge.root()) != (seen.size, seen.root):
            self._edge = await load_edge(self._ledger, seen)
        place = await self._passed_place(state.place)
        taking = _Taking(self._edge, place, founding=self._edge.size == 0)
        more = True
        # What is of before is taken at once, however much: in the next round it would be too late.
        while more and (taking.looked_at < MOST_AT_ONCE or (taking.founding and taking.places)):
            page = await self._ledger.after(taking.place, limit=PAGE)
            await self._take(taking, page)
            more = len(page) == PAGE
        passed_over = tuple(taking.passed_over)
        if not taking.places:
            self._passed = taking.last or self._passed
            return Round(state=state, passed_over=passed_over, more=more)
        head = self._signed(taking)
        first = state.head.size if state.head else 0
        growth = Growth(first=first, places=taking.places, tiles=taking.tiles, head=head)
        if not await self._ledger.append(growth):
            # We stood still, and another server went on. What we passed over, it has told.
            return Round(state=state, more=True)
        self._edge, self._passed = taking.edge, None
        # Not before the commit: the anchor never says more than the database had.
        await self._memory.keep(
            SeenLedger(size=taking.edge.size, root=taking.edge.root(), place=taking.place)
        )
        self._followed = LedgerState(head=head, end=max(state.end, head.place))
        return Round(state=self._followed, taken=len(taking.places), passed_over=passed_over, more=more)

    async def _passed_place(self, place: int) -> int:
        """Give the place to go on from: what was passed over and told is not read again and again.

        Only while it stands there as it did: where it is gone, its place may be given to another one.
        """
        passed = self._passed
        if passed is not None and passed.place > place:
            found = await self._ledger.after(passed.place - 1, limit=1)
            if found == (passed,):
                return passed.place
        self._passed = None
        return place

    async def _take(self, taking: _Taking, page: tuple[Recorded, ...]) -> None:
        digests = []
        taking.looked_at += len(page)
        for number, each in enumerate(page):
            if number % _PAUSE_AFTER == 0:
                await self._pause()
            if each.place <= taking.place:
                raise LedgerUnavailable("the record's places are not in order", reason=UNTRUSTED)
            if each.place > taking.place + 1:
                taking.passed_over.append(_gap(taking.place + 1, each.place - 1))
            taking.place, taking.last = each.place, each
            sealed = each.sealed
            if sealed is None or not self._seal.verifies(sealed):
                taking.passed_over.append(_not_authentic(each))
                continue
            taking.founding = taking.founding and sealed.server == NO_SERVER
            if sealed.server == NO_SERVER and not taking.founding:
                taking.passed_over.append(_too_late(each))
                continue
            digests.append(sealed.digest)
            taking.places.append(each.place)
        if digests:
            grown = taking.edge.append(digests)
            taking.edge = grown.edge
            taking.tiles.update(grown.tiles)

    def _signed(self, taking: _Taking) -> LedgerHead:
        edge = taking.edge
        checkpoint = Checkpoint(origin=self._key.origin, size=edge.size, root=edge.root())
        return LedgerHead(
            size=edge.size, place=taking.place, note=self._key.sign(checkpoint), made_at=self._clock()
        )


def _gap(first: int, last: int) -> Finding:
    places = f"place {first}" if first == last else f"places {first} to {last}"
    return Finding(
        kind=FindingKind.ENTRY_REMOVED,
        index=None,
        id=None,
        sentence=f"at {places} something was recorded, and removed before it was sequenced",
    )


def _too_late(recorded: Recorded) -> Finding:
    return Finding(
        kind=FindingKind.ENTRY_ADDED,
        index=None,
        id=None if recorded.sealed is None else recorded.sealed.id,
        sentence=f"what stands at place {recorded.place} is of before the ledger, which had begun already",
    )


def _not_authentic(recorded: Recorded) -> Finding:
    return Finding(
        kind=FindingKind.ENTRY_NOT_AUTHENTIC,
        index=None,
        id=None if recorded.sealed is None else recorded.sealed.id,
        sentence=f"no server of this KMS recorded what stands at place {recorded.place} as it stands there",
    )

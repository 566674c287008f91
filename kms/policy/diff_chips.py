"""Differences of sets of chips, and of the chips that an app allows by whatever set."""

from collections.abc import Iterator, Set
from operator import eq
from typing import Final, TypeAlias

from kms.policy.chip_set import ChipSet
from kms.policy.diff_side import Side
from kms.policy.difference import Difference, Effect, Member, header, outlasts, short
from kms.policy.documents import AppDocument, ChipsDocument

_FEW: Final = 64  # chips that are sooner found in a set one by one than by reading all of it

_SidesApp: TypeAlias = tuple[Side, AppDocument]  # an app, and the revision that it is of


def chips_differences(document: str, old: ChipsDocument, new: ChipsDocument) -> Iterator[Difference]:
    """Compare two sets of one name. What is added widens, though another set may have had it."""
    yield from header(document, old, new)
    # Fleets are large, and hardly any changes from one revision to the next.
    if len(old.chips) != len(new.chips) or not all(map(eq, old.chips.plain(), new.chips.plain())):
        before, after = set(old.chips.plain()), set(new.chips.plain())
        yield from Member(document, "chips").items("chip", before, after, show=short)


class ChipComparer:
    """Compares the chips of apps: ids and sets, each for as long as it is good."""

    def __init__(self, before: Side, after: Side) -> None:
        self._before = before
        self._after = after
        self._known: dict[object, bool] = {}

    def differences(self, member: Member, old: AppDocument, new: AppDocument) -> Iterator[Difference]:
        """Compare what an app's list allows.

        What the app had by another id or set is NEITHER; a set that both list is compared by itself.
        """
        if old.chips.anything or new.chips.anything:
            yield from member.extents("chips", old.chips, new.chips)
            return
        yield from self._listed(member, "added", (self._after, new), (self._before, old))
        yield from self._listed(member, "removed", (self._before, old), (self._after, new))

    def _listed(self, member: Member, done: str, one: _SidesApp, other: _SidesApp) -> Iterator[Difference]:
        """Tell what the app lists on one side and not on the other."""
        (side, app), (_, other_app) = one, other
        effect = Effect.WIDENS if side is self._after else Effect.NARROWS
        chips = set[bytes](app.chips.items - other_app.chips.items)
        known = _allowed(chips, None, other)
        effects = {chip: Effect.NEITHER if chip in known else effect for chip in chips}
        yield from member.graded("chip", effects, done, show=short)
        sets = {
            name: Effect.NEITHER if self._allows_set(side.chips[name], other) else effect
            for name in app.chip_sets - other_app.chip_sets
        }
        yield from member.graded("set of chips", sets, done, plural="sets of chips")

    def _allows_set(self, chips: ChipsDocument, other: _SidesApp) -> bool:
        side, app = other
        key = chips.name, side is self._before, app.chips.items, app.chip_sets
        if key not in self._known:
            every = set(chips.chips.plain())
            self._known[key] = len(_allowed(every, chips, other)) == len(every)
        return self._known[key]


def _allowed(chips: Set[bytes], lasting: ChipsDocument | None, by: _SidesApp) -> set[bytes]:
    """Give those of the chips that an app allows for as long as a set is good; for ever without one."""
    side, app = by
    found = set(chips & app.chips.items)
    for name in app.chip_sets:
        document = side.chips[name]
        if document.expires_at is None or (lasting is not None and not outlasts(lasting, document)):
            found |= _held(chips - found, document.chips)
    return found


def _held(chips: Set[bytes], held: ChipSet) -> set[bytes]:
    if len(chips) < _FEW:
        return {chip for chip in chips if chip in held}
    return set(chips).intersection(held.plain())

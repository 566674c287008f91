"""One difference between two policy revisions, and the phrases that differences of all kinds are made of."""

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

from kms.policy.documents import Allowlist, Document
from kms.strict_json import JsonValue

_MOST_LINES: Final = 5  # of one list; beyond, one line counts them
_NAMED: Final = 3  # of those that are counted
_DIGITS: Final = 16  # hex digits that name a chip or a hash to a reader

B = TypeVar("B", bound=bytes)
T = TypeVar("T", bytes, str, int)


class Effect(StrEnum):
    """What a difference does to what guests may have."""

    WIDENS = "widens"
    NARROWS = "narrows"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: of which document (``app payments``), of which of its members, and in words.

    `member` is None where the whole document is meant.
    """

    document: str
    member: str | None
    effect: Effect
    text: str

    def to_json(self) -> dict[str, JsonValue]:
        """Give the JSON form."""
        return {
            "document": self.document,
            "member": self.member,
            "effect": self.effect.value,
            "text": self.text,
        }


def short(value: bytes) -> str:
    """Name a chip or a hash by its first digits."""
    return f"{value.hex()[:_DIGITS]}…"


def names_of(apps: Collection[str]) -> str:
    """Name the apps that a difference of a shared document is about: at least one."""
    first, *others = sorted(apps)
    return f"app {first}" + (f" and {len(others):,} more" if others else "")


def moment(time: datetime | None) -> str:
    """Write a time as policies do; None is ``never``."""
    if time is None:
        return "never"
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def outlasts(one: Document, other: Document) -> bool:
    """Say whether a document is good at any time at which the other is not any more."""
    if other.expires_at is None:
        return False
    return one.expires_at is None or one.expires_at > other.expires_at


def effect_of(*, widens: bool, narrows: bool = True) -> Effect:
    """Name the effect: what does both, widens."""
    if widens:
        return Effect.WIDENS
    return Effect.NARROWS if narrows else Effect.NEITHER


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a document, and how to tell of its differences."""

    document: str
    name: str

    def tells(self, effect: Effect, text: str) -> Difference:
        """Tell of one difference."""
        return Difference(self.document, self.name, effect, text)

    def turned(self, effect: Effect, what: str, old: object, new: object) -> Difference:
        """Tell of a value that took another's place."""
        return self.tells(effect, f"{what} {old} → {new}")

    def lines(
        self,
        effect: Effect,
        noun: str,
        values: Collection[T],
        done: str,
        *,
        show: Callable[[T], str] = str,
        plural: str | None = None,
    ) -> Iterator[Difference]:
        """Tell what happened to values of a list: a line for each, or one that counts them where many are."""
        ordered = sorted(values)
        if len(ordered) <= _MOST_LINES:
            for value in ordered:
                yield self.tells(effect, f"{noun} {show(value)} {done}")
            return
        named = ", ".join(show(value) for value in ordered[:_NAMED])
        more = len(ordered) - _NAMED
        yield self.tells(effect, f"{len(ordered):,} {plural or noun + 's'} {done}: {named} and {more:,} more")

    def graded(
        self,
        noun: str,
        values: Mapping[T, Effect],
        done: str,
        *,
        show: Callable[[T], str] = str,
        plural: str | None = None,
    ) -> Iterator[Difference]:
        """Tell what happened to values of a list, each with its own effect."""
        for effect in Effect:
            of_this = [value for value, its_effect in values.items() if its_effect is effect]
            yield from self.lines(effect, noun, of_this, done, show=show, plural=plural)

    def items(
        self,
        noun: str,
        old: Set[T],
        new: Set[T],
        *,
        show: Callable[[T], str] = str,
        plural: str | None = None,
        demands: bool = False,
    ) -> Iterator[Difference]:
        """Compare lists of what is allowed; with `demands`, of what a guest must show."""
        more, fewer = (Effect.NARROWS, Effect.WIDENS) if demands else (Effect.WIDENS, Effect.NARROWS)
        yield from self.lines(more, noun, new - old, "added", show=show, plural=plural)
        yield from self.lines(fewer, noun, old - new, "removed", show=show, plural=plural)

    def allowlists(
        self, noun: str, old: Allowlist[B], new: Allowlist[B], *, plural: str
    ) -> Iterator[Difference]:
        """Compare lists of hashes in whose place ``any`` may stand."""
        if old.anything or new.anything:
            yield from self.extents(plural, old, new)
            return
        yield from self.items(noun, set[bytes](old.items), set[bytes](new.items), show=short, plural=plural)

    def extents(self, plural: str, old: Allowlist[B], new: Allowlist[B]) -> Iterator[Difference]:
        """Tell that ``any`` was written in place of a list, or a list in place of ``any``."""
        if old.anything != new.anything:
            words = ["any" if each.anything else "listed only" for each in (old, new)]
            yield self.turned(effect_of(widens=new.anything), f"{plural}:", *words)


def header(document: str, old: Document, new: Document) -> Iterator[Difference]:
    """Compare what every document may carry."""
    if old.name != new.name:
        yield Member(document, "name").turned(Effect.NEITHER, "name", old.name, new.name)
    if old.description != new.description:
        yield Member(document, "description").tells(Effect.NEITHER, "description changed")
    if old.owner != new.owner:
        owners = old.owner or "nobody", new.owner or "nobody"
        yield Member(document, "owner").turned(Effect.NEITHER, "owner", *owners)
    if old.expires_at != new.expires_at:
        times = moment(old.expires_at), moment(new.expires_at)
        effect = effect_of(widens=outlasts(new, old))
        yield Member(document, "expires_at").turned(effect, "expires", *times)

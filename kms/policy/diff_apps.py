"""Differences of an app: in its document, and in what the documents that it names allow it."""

from collections.abc import Callable, Iterator, Set
from typing import Final, TypeVar

from kms.keys.names import KeyPattern
from kms.policy.diff_chips import ChipComparer
from kms.policy.diff_images import ImageComparer
from kms.policy.diff_platform import guest_differences, tcb_differences
from kms.policy.diff_side import Side
from kms.policy.difference import Difference, Effect, Member, effect_of, header, short
from kms.policy.documents import AppDocument, Document, TlsNames

D = TypeVar("D", bound=Document)

_MOST_DETAILS: Final = 3  # of a document that took another's place


class AppComparer:
    """Compares the apps of two revisions."""

    def __init__(self, before: Side, after: Side) -> None:
        self._before = before
        self._after = after
        self._images = ImageComparer(before, after)
        self._chips = ChipComparer(before, after)
        self._known: dict[tuple[str, str, str], tuple[Effect, str]] = {}

    def image_reasons(self, old: AppDocument, new: AppDocument) -> Set[tuple[str, str]]:
        """Give what widens by image documents together: the name of one, and why."""
        return self._images.compare(old, new).reasons if self._images.concerns(old, new) else frozenset()

    def differences(self, old: AppDocument, new: AppDocument) -> Iterator[Difference]:
        """Compare the documents of one app, and what takes the place of documents that they name."""
        if old == new:
            return
        document = f"app {new.name}"
        yield from header(document, old, new)
        yield from Member(document, "compose").allowlists(
            "compose", old.compose, new.compose, plural="compose hashes"
        )
        if (old.images, old.image_hashes) != (new.images, new.image_hashes):
            yield from self._image_differences(Member(document, "images"), old, new)
        yield from self._chips.differences(Member(document, "chips"), old, new)
        if old.tcb != new.tcb:
            documents = self._before.tcbs[old.tcb], self._after.tcbs[new.tcb]
            yield self._replaced(Member(document, "tcb"), *documents, tcb_differences)
        if old.guest != new.guest:
            guests = self._before.guests[old.guest], self._after.guests[new.guest]
            yield self._replaced(Member(document, "guest"), *guests, guest_differences)
        binding, new_binding = set[str](old.binding), set[str](new.binding)
        yield from Member(document, "binding").items("binding", binding, new_binding)
        yield from _key_differences(Member(document, "keys"), old.keys, new.keys)
        yield from Member(document, "forbid_advisories").items(
            "forbidden bulletin", old.forbid_advisories, new.forbid_advisories, demands=True
        )
        if old.epoch != new.epoch:
            # Neither way narrows: guests that ask for no epoch get other keys than before.
            epochs = ["the newest" if each is None else each for each in (old.epoch, new.epoch)]
            yield Member(document, "epoch").turned(Effect.WIDENS, "epoch", *epochs)
        yield from _tls_differences(Member(document, "tls"), old.tls, new.tls)
        if old.compat != new.compat:
            compat = [each or "none" for each in (old.compat, new.compat)]
            effect = effect_of(widens=new.compat is not None)
            yield Member(document, "compat").turned(effect, "compatibility", *compat)

    def _image_differences(self, member: Member, old: AppDocument, new: AppDocument) -> Iterator[Difference]:
        images = self._images.compare(old, new)
        for side, app, other, done, changed, effect in (
            (self._after, new, old, "added", images.added, Effect.WIDENS),
            (self._before, old, new, "removed", images.dropped, Effect.NARROWS),
        ):
            launches = {name: side.images[name].image.os_image_hash for name in app.images - other.images}
            names = {
                name: effect if launch in changed else Effect.NEITHER for name, launch in launches.items()
            }
            yield from member.graded("image", names, done)
            hashes: dict[bytes, Effect] = {
                launch: effect if launch in changed else Effect.NEITHER
                for launch in app.image_hashes - other.image_hashes
            }
            yield from member.graded("image", hashes, done, show=short)

    def _replaced(
        self, member: Member, old: D, new: D, compare: Callable[[str, D, D], Iterator[Difference]]
    ) -> Difference:
        """Tell of a document that the app names in place of another, each as its revision has it."""
        key = member.name, old.name, new.name
        if key not in self._known:
            found = [each for each in compare("", old, new) if each.effect is not Effect.NEITHER]
            # What widens first: it must not be among those that are only counted.
            found.sort(key=lambda each: each.effect is not Effect.WIDENS)
            widens = any(each.effect is Effect.WIDENS for each in found)
            shown = "; ".join(each.text for each in found[:_MOST_DETAILS])
            if len(found) > _MOST_DETAILS:
                shown += f"; and {len(found) - _MOST_DETAILS} more"
            text = f"{member.name} document {old.name} → {new.name}" + (f": {shown}" if shown else "")
            self._known[key] = effect_of(widens=widens, narrows=bool(found)), text
        return member.tells(*self._known[key])


def _key_differences(
    member: Member, old: tuple[KeyPattern, ...], new: tuple[KeyPattern, ...]
) -> Iterator[Difference]:
    """Compare patterns by the keys that they allow: one that another covers changes nothing."""
    for patterns, others, done, effect in (
        (new, old, "added", Effect.WIDENS),
        (old, new, "removed", Effect.NARROWS),
    ):
        keys = {
            str(pattern): Effect.NEITHER if any(_covers(each, pattern) for each in others) else effect
            for pattern in patterns
            if pattern not in others
        }
        yield from member.graded("key", keys, done)


def _covers(one: KeyPattern, other: KeyPattern) -> bool:
    """Say whether one pattern allows every key of the other."""
    if (one.kind, one.scope) != (other.kind, other.scope):
        return False
    if one.wildcard:
        return other.path.startswith(one.path)
    return not other.wildcard and one.path == other.path


def _tls_differences(member: Member, old: TlsNames | None, new: TlsNames | None) -> Iterator[Difference]:
    names, new_names = (set[str]() if each is None else set(each.names) for each in (old, new))
    yield from member.items("TLS name", names, new_names)
    days, new_days = (0 if each is None else each.days for each in (old, new))
    if days != new_days:
        effect = effect_of(widens=new_days > days)
        yield member.turned(effect, "days of TLS certificates", days, new_days)

"""What one policy revision changes of another, in the domain's words, each difference widening or narrowing.

A change that only narrows needs fewer operators' signatures, so this is where an attacker would look for a
change that widens and does not seem to. The rule: whatever is not shown here to be only narrowing, widens.
Every difference of a document is marked by what that document allows, whoever relies on it; and where
documents together allow an app more than any of them shows by itself, that is a difference of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from kms.policy.diff_apps import AppComparer
from kms.policy.diff_chips import chips_differences
from kms.policy.diff_images import image_differences
from kms.policy.diff_platform import guest_differences, tcb_differences
from kms.policy.diff_revoked import revocation_differences
from kms.policy.diff_side import Side
from kms.policy.difference import Difference, Effect, header, names_of
from kms.policy.documents import Document
from kms.policy.history import Intent
from kms.policy.revision import Revision

__all__ = ["Difference", "Effect", "differences", "intent_of"]

D = TypeVar("D", bound=Document)


def differences(old: Revision | None, new: Revision) -> tuple[Difference, ...]:
    """Compare two revisions; None is before the first one, when nothing is allowed.

    Sorted by document, member and text, and nothing where both say the same.
    """
    before, after = Side.of(old), Side.of(new)
    found = [
        *_document_differences("tcb", before.tcbs, after.tcbs, tcb_differences),
        *_document_differences("guest", before.guests, after.guests, guest_differences),
        *_document_differences("image", before.images, after.images, image_differences),
        *_document_differences("chips", before.chips, after.chips, chips_differences),
        *_document_differences("revoked", before.revoked, after.revoked, header),
        *revocation_differences(before, after),
        *_app_differences(before, after),
    ]
    return tuple(sorted(found, key=lambda each: (each.document, each.member or "", each.text)))


def intent_of(differences: Iterable[Difference]) -> Intent:
    """Name a change's intent: it widens if any of its differences does, and narrows otherwise."""
    widens = any(each.effect is Effect.WIDENS for each in differences)
    return Intent.WIDEN if widens else Intent.NARROW


def _document_differences(
    kind: str,
    before: Mapping[str, D],
    after: Mapping[str, D],
    compare: Callable[[str, D, D], Iterator[Difference]],
) -> Iterator[Difference]:
    """Compare documents of one name. One alone does nothing: whoever names it is compared too."""
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None:
            yield from compare(f"{kind} {name}", old, new)
        else:
            text = "added" if old is None else "removed"
            yield Difference(f"{kind} {name}", None, Effect.NEITHER, text)


def _app_differences(before: Side, after: Side) -> Iterator[Difference]:
    """Compare apps by their ids."""
    comparer = AppComparer(before, after)
    reasons: dict[tuple[str, str], list[str]] = {}
    for app_id in before.apps.keys() | after.apps.keys():
        old, new = before.apps.get(app_id), after.apps.get(app_id)
        if old is not None and new is not None:
            yield from comparer.differences(old, new)
            for reason in comparer.image_reasons(old, new):
                reasons.setdefault(reason, []).append(new.name)
        elif new is not None:
            yield Difference(f"app {new.name}", None, Effect.WIDENS, f"added, id {app_id.hex()}")
        elif old is not None:
            yield Difference(f"app {old.name}", None, Effect.NARROWS, f"removed, id {app_id.hex()}")
    for (image, why), apps in reasons.items():
        yield Difference(f"image {image}", None, Effect.WIDENS, f"{why} ({names_of(apps)})")

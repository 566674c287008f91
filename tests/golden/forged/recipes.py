"""What a case of the corpus is: a name, what is changed in genuine evidence, and what must come of it.

What must come of it is written down by hand beside the forgery. Nothing here asks the verification.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from tests.golden.forged.draft import Draft, Layout
from tests.golden.forged.genuine import Guest, genuine

_Name = TypeVar("_Name")
_Variant = TypeVar("_Variant")


@dataclass(frozen=True, slots=True)
class Expect:
    """The code and all reasons of a refusal, in order. Without a code the evidence verifies.

    `over_http` is what the server answers where that differs: it may look for what was not sent.
    """

    code: str | None = None
    reasons: tuple[str, ...] = ()
    over_http: "Expect | None" = None

    def to_json(self) -> dict[str, Any]:
        if self.code is None:
            return {"verified": True}
        found: dict[str, Any] = {"code": self.code, "reasons": list(self.reasons)}
        return found if self.over_http is None else {**found, "over_http": self.over_http.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Expect":
        if value == {"verified": True}:
            return VERIFIED
        over_http = cls.from_json(value["over_http"]) if "over_http" in value else None
        return cls(value["code"], tuple(value["reasons"]), over_http)


VERIFIED = Expect()
# The leaf or its authority is missing: it may exist, and nobody can be asked in these tests.
UNAVAILABLE = Expect("collateral-unavailable")
# In the order in which they are checked: nothing between the leaf and a root is known.
NO_CHAIN = (
    "root-unknown", "authority-signature", "leaf-signature", "chain-names", "authority-bits", "product",
)  # fmt: skip
NO_ROOT = tuple(reason for reason in NO_CHAIN if reason != "leaf-signature")


def malformed(reason: str) -> Expect:
    """Not of its format: 400, and always one reason."""
    return Expect("malformed-evidence", (reason,))


def untrusted(*reasons: str, over_http: Expect | None = None) -> Expect:
    """Well-formed, and no proof: 403."""
    return Expect("evidence-untrusted", reasons, over_http)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One case. `change` makes the forgery of genuine evidence of the layout."""

    layout: Layout
    title: str
    expect: Expect
    change: Callable[[Draft], Draft]

    @property
    def name(self) -> str:
        return f"{self.layout.name}/{self.title}"

    def draft(self, guest: Guest) -> Draft:
        """Give the evidence for this guest, ready to be signed."""
        return self.change(genuine(self.layout, guest))


class Book:
    """Collects the recipes of a layout: ``book.untrusted("name", change, "reason")``.

    Where a forgery has many variants, a `thorough` book has all of them, others have the first of `some`.
    """

    def __init__(self, layout: Layout, *, thorough: bool = True) -> None:
        self.layout = layout
        self.thorough = thorough
        self.recipes: list[Recipe] = []

    def some(self, variants: Mapping[_Name, _Variant]) -> Mapping[_Name, _Variant]:
        """Give all variants, or the first."""
        return variants if self.thorough else dict(list(variants.items())[:1])

    def some_of(self, *variants: _Variant) -> tuple[_Variant, ...]:
        """Give all variants, or the first."""
        return variants if self.thorough else variants[:1]

    def add(self, title: str, change: Callable[[Draft], Draft], expect: Expect) -> None:
        """Add a case."""
        self.recipes.append(Recipe(layout=self.layout, title=title, expect=expect, change=change))

    def malformed(self, title: str, change: Callable[[Draft], Draft], reason: str) -> None:
        """Add evidence that is not of its format."""
        self.add(title, change, malformed(reason))

    def untrusted(self, title: str, change: Callable[[Draft], Draft], *reasons: str) -> None:
        """Add evidence that proves nothing, for all of these reasons."""
        self.add(title, change, untrusted(*reasons))

    def verified(self, title: str, change: Callable[[Draft], Draft] = lambda draft: draft) -> None:
        """Add evidence that must verify."""
        self.add(title, change, VERIFIED)


def saying(**fields: Any) -> Callable[[Draft], Draft]:
    """Change what the chip signs."""
    return partial(Draft.saying, **fields)


def flagged(bits: int) -> Callable[[Draft], Draft]:
    """Set bits of the flags at 0x048 before the report is signed."""
    return lambda draft: draft.saying(flags=draft.fields.flags | bits)


def written(write: Callable[[int, int], bytes]) -> Callable[[Draft], Draft]:
    """Write the report's signature (r, s) in another way."""
    return lambda draft: replace(draft, write_signature=write)


def writing(offset: int, data: bytes = b"\x01") -> Callable[[Draft], Draft]:
    """Write bytes into the report before it is signed, where no field stands."""
    return lambda draft: draft.writing(offset, data)


def replacing(offset: int, data: bytes = b"\x01") -> Callable[[Draft], Draft]:
    """Replace bytes of the signed report."""
    return lambda draft: draft.replacing(offset, data)


def flipping(offset: int, mask: int = 1) -> Callable[[Draft], Draft]:
    """Flip bits of a byte of the signed report."""
    return lambda draft: draft.flipping(offset, mask)


def certificate(label: str, **changes: Any) -> Callable[[Draft], Draft]:
    """Change what a certificate says, or whose key signs it."""
    return lambda draft: draft.certificate(label, **changes)


def extension(label: str, oid: str, *values: bytes) -> Callable[[Draft], Draft]:
    """Give an extension these values: none removes it, two double it; one that is new is added."""
    return lambda draft: draft.extension(label, oid, *values)


def both(*changes: Callable[[Draft], Draft]) -> Callable[[Draft], Draft]:
    """Make several changes, one after the other."""

    def change(draft: Draft) -> Draft:
        for each in changes:
            draft = each(draft)
        return draft

    return change

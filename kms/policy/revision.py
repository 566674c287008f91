"""A revision: one set of documents, named by the digest of what was written.

The digest is ``sha256:<hex>`` of the RFC 8785 form of the JSON array of all documents as written, without
defaults, sorted by kind, then id (apps) or name: layout, comments, order and file names do not change it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import rfc8785

from kms.policy.documents import AnyDocument
from kms.policy.findings import Finding, PolicyInvalid, Severity, errors
from kms.policy.lint import LintResult, lint, lint_values
from kms.policy.nodes import to_json
from kms.strict_json import JsonValue

_PREFIX: Final = "sha256:"
_STORED: Final = "(stored revision)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A valid policy as it was written (`canonical`, RFC 8785 bytes) and as it was read (`documents`)."""

    digest: str
    canonical: bytes = field(repr=False)
    documents: tuple[AnyDocument, ...] = field(repr=False)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, development: bool) -> "Revision":
        """Read a policy folder: file names (for findings only) to contents.

        Raises:
            PolicyInvalid: with every finding.

        """
        return cls.from_lint(lint(files, development=development))

    @classmethod
    def from_lint(cls, result: LintResult) -> "Revision":
        """Make a revision of what `lint` read. Raises `PolicyInvalid` if there is an error among it."""
        if errors(result.findings):
            raise PolicyInvalid(result.findings)
        values = [to_json(source.root) for source in result.sources]
        values.sort(key=_sort_key)
        canonical = rfc8785.dumps(values)
        return cls(digest=digest_of(canonical), canonical=canonical, documents=result.documents)

    @classmethod
    def from_canonical(cls, canonical: bytes, *, digest: str | None = None) -> "Revision":
        """Load what `canonical` was stored as; `digest` is the name that it must have, where one is known.

        A revision that was made in development mode loads everywhere: its decisions deny what only that mode
        allows.

        Raises:
            PolicyInvalid: other bytes than the name says, not the canonical form, or not a valid policy.

        """
        seen = digest_of(canonical)
        if digest is not None and seen != digest:
            raise _not_stored("its bytes are not those that its digest names")
        result = lint_values(_stored_documents(canonical), file=_STORED)
        if errors(result.findings):
            raise PolicyInvalid(result.findings)
        return cls(digest=seen, canonical=canonical, documents=result.documents)


def with_documents(revision: Revision, added: Iterable[dict[str, JsonValue]]) -> Revision:
    """Give a revision with further documents.

    Raises:
        PolicyInvalid: they do not fit, or are none.

    """
    united = [*_stored_documents(revision.canonical), *added]
    united.sort(key=_sort_key)
    return Revision.from_canonical(rfc8785.dumps(united))


def documents_of(revision: Revision) -> list[dict[str, JsonValue]]:
    """Give the documents as they were written, sorted as in the digest."""
    return list(_stored_documents(revision.canonical))


def written(documents: Iterable[dict[str, JsonValue]]) -> bytes:
    """Write documents as YAML, in the part of it that is JSON."""
    return "".join(f"---\n{json.dumps(each, indent=2, ensure_ascii=False)}\n" for each in documents).encode()


def digest_of(canonical: bytes) -> str:
    """Give the name of a revision: ``sha256:`` and the hex digest of its canonical bytes."""
    return _PREFIX + sha256(canonical).hexdigest()


def _stored_documents(canonical: bytes) -> Iterator[dict[str, JsonValue]]:
    """Parse one document after the other: all at once they would take as much memory again as the policy."""
    try:
        text = canonical.decode("utf-8")
        if text == "[]":
            return
        if not text.startswith("["):
            raise _not_stored("it is not an array")
        position, before = 0, ("", "")
        while position == 0 or text[position] == ",":
            value, position = _DECODER.raw_decode(text, position + 1)
            # A digest is unique only if the order is: the same documents in another order are another text.
            if not isinstance(value, dict) or _sort_key(value) < before:
                raise _not_stored("its documents are not sorted by kind and id or name")
            before = _sort_key(value)
            yield value
        if text[position:] != "]":
            raise ValueError("not the end")
    except (ValueError, IndexError, RecursionError):
        raise _not_stored("it is not JSON in RFC 8785 form") from None


def _sorted_members(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Refuse members twice or out of order: two texts of one policy would have two digests."""
    # RFC 8785 section 3.2.3 sorts by UTF-16 units; member names that a reader accepts are ASCII.
    names = [name for name, _ in pairs]
    if sorted(set(names)) != names:
        raise ValueError("members are not sorted and unique")
    return dict(pairs)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_sorted_members)


def _sort_key(value: JsonValue) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", ""
    kind = value.get("kind")
    name = value.get("id" if kind == "app" else "name")
    return str(kind), str(name)


def _not_stored(message: str) -> PolicyInvalid:
    return PolicyInvalid((Finding(_STORED, 1, 1, Severity.ERROR, message),))

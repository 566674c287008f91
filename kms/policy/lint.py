"""Lint: everything that is wrong with a policy, each finding with its place and what was probably meant.

Nothing comes into force that was not read here, so lint and the server can never disagree.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

from kms.policy.app_reader import read_app
from kms.policy.documents import AnyDocument
from kms.policy.findings import Finding, Notes, PolicyInvalid, Severity, in_order
from kms.policy.forbidden_advisories import warn_of_advisories
from kms.policy.guest_reader import read_guest
from kms.policy.nodes import Members, Scalar, Source, from_json
from kms.policy.parser import Unread, closest
from kms.policy.reader import Reader
from kms.policy.references import Read, check_references
from kms.policy.set_readers import read_chips, read_image, read_revoked
from kms.policy.tcb_reader import read_tcb
from kms.policy.tcb_warnings import warn_of_low_minimums
from kms.policy.yaml_documents import parse_documents
from kms.snp.advisories import Advisories
from kms.strict_json import JsonValue

__all__ = ["Finding", "LintResult", "PolicyInvalid", "Severity", "lint", "lint_values", "readers_of_kinds"]

_Readers: TypeAlias = Mapping[str, Callable[[Reader], AnyDocument]]

_NOWHERE: Final = Members({}, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LintResult:
    """What was found and what was read. `documents` is complete only if no finding is an error."""

    findings: tuple[Finding, ...]
    documents: tuple[AnyDocument, ...] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)


def readers_of_kinds(*, development: bool) -> _Readers:
    """Give the reader of each kind of document."""
    return {
        "app": read_app,
        "image": read_image,
        "tcb": read_tcb,
        "guest": partial(read_guest, development=development),
        "chips": read_chips,
        "revoked": read_revoked,
    }


MOST_FINDINGS: Final = 1000


def lint(
    files: Mapping[str, bytes],
    *,
    development: bool,
    now: datetime | None = None,
    advisories: Advisories | None = None,
) -> LintResult:
    """Lint a policy folder: file names to contents. Never raises for what is in the files.

    `development` is the server's mode, `now` its clock for warnings of documents past their date.
    `advisories` are for warnings: of minimums that are below a bulletin's figures, and of forbidden bulletins
    that no report can show.
    """
    parsed = parse_documents(files)
    sources, findings = parsed.sources, parsed.findings
    if not sources and not findings:
        # Often a copy that failed halfway, and in force it would deny everybody.
        findings = (Finding(".", 1, 1, Severity.ERROR, "no documents at all: is this the right folder?"),)
    read, found = _read(sources, findings, development=development)
    if len(found) > MOST_FINDINGS:
        # Whoever sends so many mistakes shall not make us think about each of them.
        more = f"more than {MOST_FINDINGS} findings: the rest is not read"
        found.append(Finding(found[0].file, 1, 1, Severity.ERROR, more))
        return LintResult(findings=in_order(found), documents=(), sources=sources)
    found += check_references(read, now=now, whole=parsed.whole)
    if advisories is not None:
        found += warn_of_advisories(read, advisories)
        found += warn_of_low_minimums(read, advisories)
    return LintResult(findings=in_order(found), documents=_documents(read), sources=sources)


def lint_values(values: Iterable[JsonValue], *, file: str) -> LintResult:
    """Lint documents of a stored revision. What only development mode allows is left to the decision.

    Nothing is kept of how they were written: at a hundred thousand chips that would be most of the memory.
    """
    notes = Notes(file)
    read, found = _read(_stored(values, notes), (), development=True, keep=False)
    found += notes.findings
    found += check_references(read, now=None, warn=False)
    return LintResult(findings=in_order(found), documents=_documents(read), sources=())


def _stored(values: Iterable[JsonValue], notes: Notes) -> Iterator[Source]:
    for value in values:
        node = from_json(value)
        if isinstance(node, Members):
            yield Source(notes.file, node)
        else:
            notes.error(node, "a document is an object")


def _read(
    sources: Iterable[Source], findings: Iterable[Finding], *, development: bool, keep: bool = True
) -> tuple[list[Read], list[Finding]]:
    readers = readers_of_kinds(development=development)
    found = list(findings)
    faulty: dict[str, set[tuple[int, int]]] = {}
    for finding in found:
        faulty.setdefault(finding.file, set()).add((finding.line, finding.column))
    read: list[Read] = []
    for source in sources:
        notes = Notes(source.file, faulty=faulty.get(source.file, ()), with_warnings=keep)
        document = _document(source.root, notes, readers)
        read.append(Read.of(source, document, root=source.root if keep else _NOWHERE))
        found.extend(notes.findings)
        if len(found) > MOST_FINDINGS:
            break
    return read, found


def _documents(read: Iterable[Read]) -> tuple[AnyDocument, ...]:
    return tuple(each.document for each in read if each.document is not None)


def _document(root: Members, notes: Notes, readers: _Readers) -> AnyDocument | None:
    kind = root.value("kind")
    if kind is None:
        notes.error(root, f"`kind` is missing: {_likely_kind(root, readers)}")
        return None
    if not isinstance(kind, Scalar) or not isinstance(kind.value, str) or kind.value not in readers:
        shown = f"`{kind.text}` is not a kind: " if isinstance(kind, Scalar) else "`kind` is a word: "
        notes.error(kind, shown + closest(kind.text if isinstance(kind, Scalar) else "", sorted(readers)))
        return None
    return _read_as(kind.value, root, notes, readers)


def _read_as(kind: str, root: Members, notes: Notes, readers: _Readers) -> AnyDocument | None:
    try:
        return readers[kind](Reader(root, notes, f"kind `{kind}`", besides=("kind",)))
    except Unread:
        return None


def _likely_kind(root: Members, readers: _Readers) -> str:
    """Name the kind as which the document has the fewest faults, or all where several have."""
    faults: dict[int, list[str]] = {}
    for kind in sorted(readers):
        notes = Notes("", with_warnings=False)
        _read_as(kind, root, notes, readers)
        faults.setdefault(len(notes.findings), []).append(kind)
    least = faults[min(faults)]
    return f"did you mean `kind: {least[0]}`?" if len(least) == 1 else f"one of {', '.join(sorted(readers))}"

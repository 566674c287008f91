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
from kms.policy.reader import Reader, Unread, closest
from kms.policy.references import Read, check_references
from kms.policy.set_readers import read_chips, read_image, read_revoked
from kms.policy.tcb_reader import read_tcb
from kms.policy.yaml_documents import parse_documents
from kms.snp.advisories import Advisories
from kms.strict_json import JsonValue

__all__ = ["Finding", "LintResult", "PolicyInvalid", "Severity", "lint", "lint_values"]

_Readers: TypeAlias = Mapping[str, Callable[[Reader], AnyDocument]]

_READERS: Final[_Readers] = {
    "app": read_app,
    "image": read_image,
    "tcb": read_tcb,
    "chips": read_chips,
    "revoked": read_revoked,
}

_NOWHERE: Final = Members({}, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LintResult:
    """What was found and what was read. `documents` is complete only if no finding is an error."""

    findings: tuple[Finding, ...]
    documents: tuple[AnyDocument, ...] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)


def lint(
    files: Mapping[str, bytes],
    *,
    development: bool,
    now: datetime | None = None,
    advisories: Advisories | None = None,
) -> LintResult:
    """Lint a policy folder: file names to contents. Never raises for what is in the files.

    `development` is the server's mode, `now` its clock for warnings of documents past their date.
    `advisories` are for warnings of forbidden bulletins that no report can show.
    """
    sources, findings = parse_documents(files)
    if not sources and not findings:
        # Often a copy that failed halfway, and in force it would deny everybody.
        findings = (Finding(".", 1, 1, Severity.ERROR, "no documents at all: is this the right folder?"),)
    read, found = _read(sources, findings, development=development)
    found += check_references(read, now=now)
    if advisories is not None:
        found += warn_of_advisories(read, advisories)
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
    readers: _Readers = {**_READERS, "guest": partial(read_guest, development=development)}
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
    return read, found


def _documents(read: Iterable[Read]) -> tuple[AnyDocument, ...]:
    return tuple(each.document for each in read if each.document is not None)


def _document(root: Members, notes: Notes, readers: _Readers) -> AnyDocument | None:
    kind = root.value("kind")
    if kind is None:
        notes.error(root, f"`kind` is missing: one of {', '.join(sorted(readers))}")
        return None
    if not isinstance(kind, Scalar) or not isinstance(kind.value, str) or kind.value not in readers:
        shown = f"`{kind.text}` is not a kind: " if isinstance(kind, Scalar) else "`kind` is a word: "
        notes.error(kind, shown + closest(kind.text if isinstance(kind, Scalar) else "", sorted(readers)))
        return None
    reader = Reader(root, notes, f"kind `{kind.value}`", besides=("kind",))
    try:
        return readers[kind.value](reader)
    except Unread:
        return None

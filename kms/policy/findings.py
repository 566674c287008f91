"""What is wrong with a policy, and where: every finding, in words for the operator who wrote it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from typing_extensions import override


class Severity(StrEnum):
    """An error keeps a policy out of force; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding at `file`:`line`:`column` (both from 1, the column in characters).

    `message` is for operators and repeats what they wrote: policies hold no secrets.
    """

    file: str
    line: int
    column: int
    severity: Severity
    message: str

    @override
    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"


class Place(Protocol):
    """Anything that knows its line and column, both from 1."""

    @property
    def line(self) -> int:
        """Line, from 1."""
        ...

    @property
    def column(self) -> int:
        """Column in characters, from 1."""
        ...


class PolicyInvalid(Exception):
    """A policy that cannot come into force. `findings` holds all errors and warnings, never empty."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("; ".join(str(finding) for finding in errors(findings)) or "not a policy")
        self.findings = findings


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Give the findings that keep a policy out of force."""
    return tuple(finding for finding in findings if finding.severity is Severity.ERROR)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by place, each finding once."""
    return tuple(sorted(set(findings), key=lambda each: (each.file, each.line, each.column, each.message)))


class Notes:
    """Collects the findings of one file. `faulty` are places that were found faulty before."""

    __slots__ = ("_faulty", "file", "findings", "with_warnings")

    def __init__(
        self, file: str, *, faulty: Iterable[tuple[int, int]] = (), with_warnings: bool = True
    ) -> None:
        self.file = file
        self.with_warnings = with_warnings
        self.findings: list[Finding] = []
        self._faulty = set(faulty)

    def error(self, place: Place, message: str) -> None:
        """Add an error, unless the value at this place was already found faulty."""
        if (place.line, place.column) not in self._faulty:
            self._add(place, Severity.ERROR, message)

    def fault(self, place: Place, message: str) -> None:
        """Add an error and keep others from complaining about the same value again."""
        self.error(place, message)
        self._faulty.add((place.line, place.column))

    def warning(self, place: Place, message: str) -> None:
        """Add a warning, where they are wanted."""
        if self.with_warnings:
            self._add(place, Severity.WARNING, message)

    def _add(self, place: Place, severity: Severity, message: str) -> None:
        self.findings.append(Finding(self.file, place.line, place.column, severity, message))

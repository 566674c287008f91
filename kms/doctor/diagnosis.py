"""What the doctor says of one thing."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from kms.errors import ConfigurationError, KmsError

_LONGEST: Final = 500  # characters of what somebody else said


class Status(StrEnum):
    """`WARNING`: it works, and somebody should know. `UNKNOWN`: from here it cannot be told."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One named thing that was looked at: what was seen, and what to do about it (empty: nothing)."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        """Whether it keeps the server from doing its work."""
        return self.status is Status.FAILED


Diagnoses: TypeAlias = list[Diagnosis]


def ok(name: str, detail: str) -> Diagnosis:
    """Say that something is as it must be."""
    return Diagnosis(name=name, status=Status.OK, detail=detail)


def warning(name: str, detail: str, remedy: str) -> Diagnosis:
    """Say what somebody should know."""
    return Diagnosis(name=name, status=Status.WARNING, detail=detail, remedy=remedy)


def failed(name: str, detail: str, remedy: str) -> Diagnosis:
    """Say what is wrong."""
    return Diagnosis(name=name, status=Status.FAILED, detail=detail, remedy=remedy)


def unknown(name: str, detail: str, remedy: str = "") -> Diagnosis:
    """Say what cannot be told."""
    return Diagnosis(name=name, status=Status.UNKNOWN, detail=detail, remedy=remedy)


def refused(name: str, error: KmsError, remedy: str = "") -> Diagnosis:
    """Say what a part of the server refuses, in its own words and with its own remedy where it has one."""
    own = error.remedy if isinstance(error, ConfigurationError) else ""
    reason = "" if error.reason in {error.code, "configuration"} else f" ({error.reason})"
    return failed(name, f"{error.detail[:_LONGEST]}{reason}", own or remedy)


async def examined(
    name: str, look: Callable[[], Awaitable[Iterable[Diagnosis]]], *, remedy: str = ""
) -> Diagnoses:
    """Look, whatever happens: a doctor who falls over the first broken part never sees the second.

    `remedy` is what to do about what was refused without one.
    """
    try:
        return [*await look()]
    except KmsError as error:
        return [refused(name, error, remedy)]
    except Exception as error:  # noqa: BLE001 -- what is broken may break in any way
        fault = f"it cannot be looked at: {type(error).__name__}: {str(error)[:_LONGEST]}"
        return [failed(name, fault, remedy)]

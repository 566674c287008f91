"""What `kms doctor` and `kms guest doctor` say of one thing that was looked at."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kms.errors import ConfigurationError, KmsError

_LONGEST: Final = 500  # characters of what somebody else said


class Status(StrEnum):
    """`WARNING`: it works, and somebody should know. `UNKNOWN`: from here it cannot be told."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One named thing: what was seen, and what to do about it (empty: nothing). Names are stable."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        """Whether it keeps the server from its work, or the guest from its keys."""
        return self.status is Status.FAILED


def ok(name: str, detail: str) -> Finding:
    """Say that something is as it must be."""
    return Finding(name=name, status=Status.OK, detail=detail)


def warning(name: str, detail: str, remedy: str) -> Finding:
    """Say what somebody should know."""
    return Finding(name=name, status=Status.WARNING, detail=detail, remedy=remedy)


def failed(name: str, detail: str, remedy: str) -> Finding:
    """Say what is wrong."""
    return Finding(name=name, status=Status.FAILED, detail=detail, remedy=remedy)


def unknown(name: str, detail: str, remedy: str = "") -> Finding:
    """Say what cannot be told."""
    return Finding(name=name, status=Status.UNKNOWN, detail=detail, remedy=remedy)


def refused(name: str, error: KmsError, remedy: str = "") -> Finding:
    """Say what our own code refuses, in its own words and with its own remedy where it has one."""
    own = error.remedy if isinstance(error, ConfigurationError) else ""
    reason = "" if error.reason in {error.code, "configuration"} else f" ({error.reason})"
    return failed(name, f"{error.detail[:_LONGEST]}{reason}", own or remedy)


def unlookable(name: str, error: Exception) -> Finding:
    """Say over what, that nobody foresaw, a look at something fell."""
    return unknown(name, f"it cannot be looked at: {type(error).__name__}: {str(error)[:_LONGEST]}")

"""What the SIMULATED key distribution service was asked: for tests that count."""

import threading
import time
from dataclasses import dataclass, replace
from enum import StrEnum

from kms.snp.kds_paths import ChainOf, RevocationListOf, VcekOf, Wanted


class Kind(StrEnum):
    """What was asked for; `other` is what the service has not."""

    VCEK = "vcek"
    CHAIN = "cert_chain"
    REVOCATION_LIST = "crl"
    OTHER = "other"


def kind_of(wanted: Wanted | None) -> Kind:
    """Give the kind of what a path names."""
    match wanted:
        case VcekOf():
            return Kind.VCEK
        case ChainOf():
            return Kind.CHAIN
        case RevocationListOf():
            return Kind.REVOCATION_LIST
        case None:
            return Kind.OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request. `path` has its query; `at` is in seconds since the service began.

    `status` is None while there is no answer, and where the connection was reset instead. `genuine` says
    that the right answer went out whole.
    """

    kind: Kind
    path: str
    at: float
    status: int | None = None
    genuine: bool = False


class RequestLog:
    """Every request in the order of arrival; it may be read while the service runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Asked] = []
        self._begun = time.monotonic()

    def arrived(self, path: str, wanted: Wanted | None) -> int:
        """Note a request, and give its number."""
        with self._lock:
            at = time.monotonic() - self._begun
            self._entries.append(Asked(kind=kind_of(wanted), path=path, at=at))
            return len(self._entries) - 1

    def answered(self, number: int, status: int | None, *, genuine: bool) -> None:
        """Note how a request ended."""
        with self._lock:
            self._entries[number] = replace(self._entries[number], status=status, genuine=genuine)

    def entries(self) -> tuple[Asked, ...]:
        """Give all requests so far."""
        with self._lock:
            return tuple(self._entries)

"""What one fetch is: what is wanted, on whose behalf, how far it is, and how it ends."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from kms.kds.client import Asker
from kms.kds.endpoint import Endpoint
from kms.snp.flags import Signer
from kms.snp.kds_paths import ChainOf, Line, RevocationListOf, VcekOf, Wanted


class Outcome(StrEnum):
    """How a fetch ended."""

    FOUND = "found"
    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Settled:
    """How a fetch ended, why, and for how many seconds it is idle to begin again."""

    outcome: Outcome
    detail: str = ""
    at_least: float = 0.0


FOUND: Final = Settled(Outcome.FOUND)


@dataclass(eq=False, slots=True)
class Job:
    """One fetch. `addresses` are those of the clients that asked for it, the first one first.

    `had` is what was known at its beginning, of a chain or list: only something else ends it.
    """

    wanted: Wanted
    asker: Asker
    addresses: list[str]
    had: object = None
    tries: Counter[Endpoint] = field(default_factory=Counter)
    missing: set[Endpoint] = field(default_factory=set)


def kind_of(wanted: Wanted) -> str:
    """Give a name for logs that has no id of a chip in it: strangers invent them."""
    match wanted:
        case VcekOf():
            return f"VCEK of {wanted.product.certificate_name}"
        case ChainOf():
            return f"chain {wanted.line.folder}"
        case RevocationListOf():
            return f"revocation list {wanted.line.folder}"


def line_of(wanted: Wanted) -> Line:
    """Give the line that something is of."""
    return Line(Signer.VCEK, wanted.product) if isinstance(wanted, VcekOf) else wanted.line

"""The guest's side: evidence from its hardware, a request that the hardware signs, and the keys.

For programs, ``from kms.guest import …`` what ``__all__`` names is the whole of it. A guest must never let
others choose its raw REPORT_DATA: whoever does can ask for its keys (protocol section 1). So nothing here
signs bytes that it was given; the request, and a fresh public key in it, are made here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kms.guest.async_client import AsyncKeyClient
    from kms.guest.client import KeyClient
    from kms.guest.errors import (
        AnswerRejected,
        AppDocumentRefused,
        EvidenceError,
        Problem,
        Refused,
        ServerUnreachable,
        ServerUntrusted,
    )
    from kms.guest.evidence import EvidenceSource
    from kms.guest.hardware import EvidenceOptions, Interface, evidence_source
    from kms.guest.tsm import TsmSource
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.keys.released import ReleasedKey
    from kms.keys.sealing import Suite
    from kms.policy.question import AppClaim

__all__ = [
    "AnswerRejected",
    "AppClaim",
    "AppDocumentRefused",
    "AsyncKeyClient",
    "EvidenceError",
    "EvidenceOptions",
    "EvidenceSource",
    "Interface",
    "KeyClient",
    "KeyRequest",
    "Payload",
    "Problem",
    "Refused",
    "ReleasedKey",
    "ServerUnreachable",
    "ServerUntrusted",
    "Suite",
    "TsmSource",
    "evidence_source",
]

# Imported when asked for: who needs one module of this package need not wait for all of them.
_PLACES: Final = {
    "AppClaim": "kms.policy.question",
    "AsyncKeyClient": "kms.guest.async_client",
    "EvidenceOptions": "kms.guest.hardware",
    "EvidenceSource": "kms.guest.evidence",
    "Interface": "kms.guest.hardware",
    "KeyClient": "kms.guest.client",
    "KeyRequest": "kms.keys.names",
    "Payload": "kms.keys.envelope",
    "ReleasedKey": "kms.keys.released",
    "Suite": "kms.keys.sealing",
    "TsmSource": "kms.guest.tsm",
    "evidence_source": "kms.guest.hardware",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_PLACES.get(name, "kms.guest.errors")), name)

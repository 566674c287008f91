"""The guest's side: evidence from its hardware, a request that the hardware signs, and the keys.

For programs, ``from kms.guest import …`` what ``__all__`` names is the whole of it. A guest must never let
others choose its raw REPORT_DATA: whoever does can ask for its keys (protocol section 1). So nothing here
signs bytes that it was given; the request, and a fresh public key in it, are made here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kms.errors import ConfigurationError, KmsError, MalformedRequest
    from kms.guest.async_client import AsyncKeyClient
    from kms.guest.client import KeyClient
    from kms.guest.config import DEFAULT_CONFIG, GuestConfig, read_config
    from kms.guest.errors import (
        AnswerRejected,
        AppDocumentRefused,
        EvidenceError,
        Problem,
        Refused,
        RefusedHere,
        ServerUnreachable,
        ServerUntrusted,
    )
    from kms.guest.evidence import EvidenceSource
    from kms.guest.hardware import EvidenceOptions, Interface, evidence_source
    from kms.guest.key_words import parse_key
    from kms.guest.machine import GuestMachine
    from kms.guest.workload import WorkloadRefused
    from kms.keys.envelope import Payload
    from kms.keys.names import KeyRequest
    from kms.keys.released import ReleasedKey
    from kms.keys.sealing import Suite
    from kms.policy.question import AppClaim

__all__ = [
    "DEFAULT_CONFIG",
    "AnswerRejected",
    "AppClaim",
    "AppDocumentRefused",
    "AsyncKeyClient",
    "ConfigurationError",
    "EvidenceError",
    "EvidenceOptions",
    "EvidenceSource",
    "GuestConfig",
    "GuestMachine",
    "Interface",
    "KeyClient",
    "KeyRequest",
    "KmsError",
    "MalformedRequest",
    "Payload",
    "Problem",
    "Refused",
    "RefusedHere",
    "ReleasedKey",
    "ServerUnreachable",
    "ServerUntrusted",
    "Suite",
    "WorkloadRefused",
    "evidence_source",
    "parse_key",
    "read_config",
]

# Imported when asked for: who needs one module of this package need not wait for all of them.
_PLACES: Final = {
    "AppClaim": "kms.policy.question",
    "AsyncKeyClient": "kms.guest.async_client",
    "ConfigurationError": "kms.errors",
    "DEFAULT_CONFIG": "kms.guest.config",
    "EvidenceOptions": "kms.guest.hardware",
    "EvidenceSource": "kms.guest.evidence",
    "GuestConfig": "kms.guest.config",
    "GuestMachine": "kms.guest.machine",
    "Interface": "kms.guest.hardware",
    "KeyClient": "kms.guest.client",
    "KeyRequest": "kms.keys.names",
    "KmsError": "kms.errors",
    "MalformedRequest": "kms.errors",
    "Payload": "kms.keys.envelope",
    "ReleasedKey": "kms.keys.released",
    "Suite": "kms.keys.sealing",
    "WorkloadRefused": "kms.guest.workload",
    "evidence_source": "kms.guest.hardware",
    "parse_key": "kms.guest.key_words",
    "read_config": "kms.guest.config",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_PLACES.get(name, "kms.guest.errors")), name)

"""Certificates whose signature is of another kind, spelled in another way or broken, and certificates out of
their time."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kms.simulator import der
from kms.simulator.certificates import PSS_SHA384, SignatureScheme
from tests.golden.forged.draft import AT, DAY, Draft
from tests.golden.forged.recipes import Book, certificate
from tests.golden.forged.signing import elements

_PSS = "1.2.840.113549.1.1.10"  # RFC 4055
_MGF1 = "1.2.840.113549.1.1.8"
_HASHES: dict[str, tuple[str, HashAlgorithm]] = {
    "sha-256": ("2.16.840.1.101.3.4.2.1", SHA256()),
    "sha-384": ("2.16.840.1.101.3.4.2.2", SHA384()),
    "sha-512": ("2.16.840.1.101.3.4.2.3", SHA512()),
}
_SECOND = timedelta(seconds=1)
# Which check says so, for a signature of each certificate.
_SIGNATURES = {"leaf": "leaf-signature", "authority": "authority-signature", "ark": "root-signature"}
_TITLES = {"leaf": "leaf", "authority": "authority", "ark": "root"}


def forged_signatures(book: Book) -> None:
    """Add them."""
    for label, reason in _SIGNATURES.items():
        title = _TITLES[label]
        book.untrusted(f"{title}-signed-with-pkcs1", certificate(label, scheme=PKCS1_SHA384), reason)
        for name in book.some_of("sha-256", "sha-512"):
            scheme = pss(name)
            book.untrusted(f"{title}-signed-with-{name}", certificate(label, scheme=scheme), reason)
        # The signature is good, and said to be of another kind.
        said = {
            "pkcs1": replace(PSS_SHA384, algorithm=PKCS1_SHA384.algorithm),
            "sha-256": replace(PSS_SHA384, algorithm=pss("sha-256").algorithm),
            "a-mask-of-sha-256": replace(PSS_SHA384, algorithm=pss("sha-384", mask="sha-256").algorithm),
        }
        for name, scheme in book.some(said).items():
            book.untrusted(
                f"{title}-said-to-be-signed-with-{name}", certificate(label, scheme=scheme), reason
            )
        edits: dict[str, Callable[[bytes], bytes]] = {
            "signature-changed": partial(flipped, position=-1),
            "content-changed": _valid_for_longer,
            "algorithm-spelled-otherwise": other_algorithm,
        }
        for name, edit in book.some(edits).items():
            book.untrusted(f"{title}-{name}", _edited(label, edit), reason)
        times = {
            "expired": {"not_before": AT - 9 * DAY, "not_after": AT - _SECOND},
            "not-yet-valid": {"not_before": AT + _SECOND, "not_after": AT + 9 * DAY},
        }
        for name, dates in times.items():
            book.untrusted(f"{title}-{name}", certificate(label, **dates), "certificate-validity")


def _edited(label: str, edit: Callable[[bytes], bytes]) -> Callable[[Draft], Draft]:
    return lambda draft: draft.edited(label, edit)


def pss(name: str, *, mask: str | None = None, trailer: bool = False) -> SignatureScheme:
    """Give RSASSA-PSS with another hash, or one that says another for its `mask`, which nobody signs with.

    `trailer` spells the default trailer field out, as older AMD certificates do (RFC 4055, section 3.1).
    """
    oid, algorithm = _HASHES[name]
    hashed = der.tlv(der.SEQUENCE, der.object_identifier(oid), der.tlv(der.NULL))
    of_mask = der.tlv(der.SEQUENCE, der.object_identifier(_HASHES[mask or name][0]), der.tlv(der.NULL))
    masked = der.tlv(der.SEQUENCE, der.object_identifier(_MGF1), of_mask)
    salt = min(48, algorithm.digest_size)
    parameters = [der.context(0, hashed), der.context(1, masked), der.context(2, der.integer(salt))]
    if trailer:
        parameters.append(der.context(3, der.integer(1)))
    named = der.tlv(der.SEQUENCE, der.object_identifier(_PSS), der.tlv(der.SEQUENCE, *parameters))
    return SignatureScheme(
        algorithm=named, padding=padding.PSS(padding.MGF1(algorithm), salt), hash=algorithm
    )


PKCS1_SHA384 = SignatureScheme(
    # sha384WithRSAEncryption, RFC 4055
    algorithm=der.tlv(der.SEQUENCE, der.object_identifier("1.2.840.113549.1.1.12"), der.tlv(der.NULL)),
    padding=padding.PKCS1v15(),
    hash=SHA384(),
)


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def _valid_for_longer(data: bytes) -> bytes:
    """Let it be valid for a second longer than what was signed."""
    _, not_after = re.finditer(rb"(?:\x17\x0d|\x18\x0f\d\d)\d{12}Z", data)
    return flipped(data, not_after.end() - 2)


def other_algorithm(data: bytes) -> bytes:
    """Spell the algorithm beside the signature in another way than the signed one (RFC 5280, 4.1.1.2)."""
    to_be_signed, algorithm, signature = elements(data)
    other = pss("sha-384", trailer=True).algorithm
    if other == algorithm:
        raise ValueError("the two spellings are one")
    return der.tlv(der.SEQUENCE, to_be_signed, other, signature)

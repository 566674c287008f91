"""RSA-PSS signatures of AMD's authorities, over certificates and revocation lists alike.

A good signature is remembered, so that a chain that is known costs no RSA. What is remembered is keyed by the
exact bytes that were verified (key, signed part, signature), and a failure is never remembered: a stranger
can crowd a memory, which costs time, and cannot make it say anything that is not so.
"""

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import SignatureAlgorithmOID

from kms.snp import der

# AMD's keys have 4096 bits and this exponent; a stranger's larger ones would only cost us time.
_RSA_BITS: Final = (2048, 4096)
_RSA_EXPONENT: Final = 65537
# An entry keeps a signed part (at most 64 KiB, of a list that a pinned ARK signed; else at most 16 KiB; in
# genuine certificates about 1 KiB), a signature and a key: at worst some 16 MiB, usually 2.
_REMEMBERED: Final = 1024


def is_signature(public_key: bytes, signed: bytes, signature: bytes) -> bool:
    """Say whether an RSA key (DER SubjectPublicKeyInfo) signed these bytes with RSA-PSS, SHA-384, MGF1."""
    try:
        _require_signature(public_key, signed, signature)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


@lru_cache(maxsize=_REMEMBERED)
def _require_signature(public_key: bytes, signed: bytes, signature: bytes) -> None:
    """Raise unless the signature is good: what raises is not remembered."""
    key = load_der_public_key(public_key)
    if not isinstance(key, rsa.RSAPublicKey) or not _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
        raise InvalidSignature
    if key.public_numbers().e != _RSA_EXPONENT:
        raise InvalidSignature
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=padding.PSS.AUTO)
    key.verify(signature, signed, scheme, hashes.SHA384())


def names_pss_sha384(algorithm: object, parameters: object, digest: object) -> bool:
    """Say whether a signature algorithm, as `cryptography` reads it, is RSA-PSS with SHA-384 and MGF1."""
    return (
        algorithm == SignatureAlgorithmOID.RSASSA_PSS
        and isinstance(digest, hashes.SHA384)
        and isinstance(parameters, padding.PSS)
        and parameters.mgf == padding.MGF1(hashes.SHA384())
    )


def has_one_spelling(whole: bytes, signed: bytes) -> bool:
    """Say whether what stands outside the signed part is the only thing that could stand there.

    The algorithm beside the signature must be, byte for byte, the signed one (RFC 5280 sections 4.1.1.2 and
    5.1.1.2), and the signature whole bytes. Otherwise a certificate or list could be changed there and still
    verify: one certificate under many fingerprints.
    """
    try:
        first, algorithm, signature = der.elements(der.only(whole, der.SEQUENCE).content)
        der.whole_bytes(signature)
        inner = der.elements(der.only(signed, der.SEQUENCE).content)
    except ValueError:  # a DerError, or another number of elements
        return False
    # A certificate: [0] version, serialNumber, signature (the algorithm), …
    # A list: version and signature, or, in version 1, signature.
    sequences = (each.whole for each in inner if each.tag == der.SEQUENCE)
    return first.whole == signed and algorithm.whole == next(sequences, None)

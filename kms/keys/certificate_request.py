"""A guest's certificate request for a key of its own (PKCS#10, RFC 2986).

Only its key counts. What names and extensions it asks for is not even read (field lesson 32).
"""

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from kms.keys import p256

MAX_LENGTH: Final = 4096  # bytes of DER

_HASHES: Final = (SHA256, SHA384, SHA512)


def read(der: bytes) -> bytes:
    """Give the P-256 key (65-byte point) that a request asks a certificate for.

    Its signature is verified: whoever made the request has the private key.

    Raises:
        ValueError: anything else than such a request in DER of at most 4096 bytes, signed with SHA-256, 384
            or 512; with no value in the message.

    """
    if len(der) > MAX_LENGTH:
        raise ValueError(f"a certificate request has at most {MAX_LENGTH} bytes")
    try:
        request = x509.load_der_x509_csr(der)
        point = p256.point_of(request.public_key())
        proven = isinstance(request.signature_hash_algorithm, _HASHES) and request.is_signature_valid
    # The last two are no ValueErrors.
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise ValueError("not a certificate request for a P-256 key") from None
    if not proven:
        raise ValueError("the certificate request is not signed by its key")
    return point

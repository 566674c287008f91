"""Certificates and lists signed so that the same content always gives the same bytes.

RSA-PSS signatures hold a random salt; here it is fixed, so that the corpus can be made again and compared.
"""

from functools import cache
from hashlib import new
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.padding import PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from kms.simulator import der
from kms.simulator.certificates import SignatureScheme
from tests.golden.forged.worthless_keys import WorthlessKey

_SALT = b"a fixed salt, so that the corpus does not change"
assert len(_SALT) == 48


class Draft(Protocol):
    """A certificate or revocation list of the simulator, before anybody signs it."""

    @property
    def scheme(self) -> SignatureScheme: ...

    def signed(self, key: RSAPrivateKey) -> bytes: ...


def signed(draft: Draft, key: WorthlessKey) -> bytes:
    """Sign it: DER. Equal drafts give the same bytes."""
    written = draft.signed(key.private)
    if not isinstance(draft.scheme.padding, PSS):
        return written  # PKCS #1 v1.5 has no salt
    to_be_signed, algorithm, _ = elements(written)
    signature = pss_signature(key, to_be_signed, draft.scheme.hash.name)
    return der.tlv(der.SEQUENCE, to_be_signed, algorithm, der.tlv(der.BIT_STRING, b"\x00", signature))


def elements(element: bytes) -> list[bytes]:
    """Give what a DER SEQUENCE holds: of a certificate its signed part, algorithm and signature."""
    found = []
    offset, _ = _content(element, 0)
    while offset < len(element):
        _, end = _content(element, offset)
        found.append(element[offset:end])
        offset = end
    return found


def _content(data: bytes, offset: int) -> tuple[int, int]:
    """Give where the content of the element at `offset` begins and ends."""
    first = data[offset + 1]
    start = offset + 2 + (first & 0x7F if first >= 0x80 else 0)
    length = int.from_bytes(data[offset + 2 : start], "big") if first >= 0x80 else first
    return start, start + length


@cache
def pss_signature(key: WorthlessKey, message: bytes, hash_name: str, salt: bytes = _SALT) -> bytes:
    """Sign with RSASSA-PSS (RFC 8017, section 8.1.1) and this salt, MGF1 with the same hash.

    Hashes shorter than the salt take as much of it as they are long.
    """
    bits = key.modulus.bit_length()
    size = new(hash_name).digest_size
    encoded = _pss_encode(message, hash_name, salt[:size], bits - 1)
    return key.power(int.from_bytes(encoded, "big")).to_bytes((bits + 7) // 8, "big")


def _pss_encode(message: bytes, hash_name: str, salt: bytes, bits: int) -> bytes:
    """EMSA-PSS-ENCODE, RFC 8017, section 9.1.1."""
    length = (bits + 7) // 8
    digest = new(hash_name, bytes(8) + new(hash_name, message).digest() + salt).digest()
    block = (b"\x01" + salt).rjust(length - len(digest) - 1, b"\x00")
    masked = int.from_bytes(block, "big") ^ int.from_bytes(_mgf1(digest, len(block), hash_name), "big")
    # The leftmost bits that do not fit are zero.
    masked &= (1 << bits - 8 * (len(digest) + 1)) - 1
    return masked.to_bytes(len(block), "big") + digest + b"\xbc"


def _mgf1(seed: bytes, length: int, hash_name: str) -> bytes:
    """MGF1, RFC 8017, appendix B.2.1."""
    mask = b""
    while len(mask) < length:
        counter = len(mask) // new(hash_name).digest_size
        mask += new(hash_name, seed + counter.to_bytes(4, "big")).digest()
    return mask[:length]

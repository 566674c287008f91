"""The private keys of the forged corpus. THEY ARE WORTHLESS: published here, and no server trusts them.

The RSA keys are stored as their primes, because making them anew would make every byte of the corpus anew;
``python -m tests.golden.forged.worthless_keys`` did that once. The P-384 keys follow from their names.
"""

import json
from dataclasses import dataclass
from functools import cache
from hashlib import shake_256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa

FILE = Path(__file__).parent / "worthless_keys.json"
_NOTE = "Test data. These private keys are published on purpose and protect nothing."
_EXPONENT = 65537
_SHORT = "short"

PRODUCTS = ("milan", "genoa", "turin")
ROLES = ("ark", "ask", "asvk")
# `impostor`: a forger with a hierarchy of the same names. `short`: a key that is too short to be believed.
NAMES = (*(f"{owner}-{role}" for owner in (*PRODUCTS, "impostor") for role in ROLES), _SHORT)


@dataclass(frozen=True, slots=True)
class WorthlessKey:
    """An RSA private key, its two primes open."""

    name: str
    p: int
    q: int
    e: int = _EXPONENT

    @property
    def modulus(self) -> int:
        return self.p * self.q

    def power(self, message: int) -> int:
        """Give the private operation (RFC 8017, section 5.1.2: with the Chinese remainder theorem)."""
        p, q = self.p, self.q
        at_p = pow(message, pow(self.e, -1, p - 1), p)
        at_q = pow(message, pow(self.e, -1, q - 1), q)
        return at_q + q * (pow(q, -1, p) * (at_p - at_q) % p)

    @property
    def private(self) -> rsa.RSAPrivateKey:
        return _private(self)

    @property
    def public(self) -> rsa.RSAPublicKey:
        return self.private.public_key()


@cache
def _private(key: WorthlessKey) -> rsa.RSAPrivateKey:
    p, q = key.p, key.q
    d = pow(key.e, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e=key.e, n=p * q),
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


@cache
def rsa_key(name: str) -> WorthlessKey:
    """Give a stored key by its name, one of `NAMES`."""
    stored = json.loads(FILE.read_text())["keys"][name]
    return WorthlessKey(name, int(stored["p"], 16), int(stored["q"], 16))


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP384R1) -> ec.EllipticCurvePrivateKey:
    """Give the key that follows from a name: an endorsement key, or a forger's."""
    order = curve().group_order
    scalar = int.from_bytes(shake_256(b"worthless key of the corpus\x00" + name.encode()).digest(64), "big")
    return ec.derive_private_key(scalar % (order - 1) + 1, curve())


def _generate() -> None:
    keys = {}
    for name in NAMES:
        # 2048 bits are the fewest that are believed; AMD's have 4096.
        numbers = rsa.generate_private_key(_EXPONENT, 1024 if name == _SHORT else 2048).private_numbers()
        keys[name] = {"p": f"{numbers.p:x}", "q": f"{numbers.q:x}"}
    FILE.write_text(json.dumps({"note": _NOTE, "keys": keys}, indent=1) + "\n")


if __name__ == "__main__":
    _generate()

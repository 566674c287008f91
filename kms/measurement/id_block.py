"""ID block and ID authentication: what a guest's owner signs about a launch, and the processor checks.

The host hands both to SNP_LAUNCH_FINISH, which fails unless the ID block names the launch digest and policy
of the guest, the ID key signed it, and the author key (if there is one) signed the ID key. The report then
shows family id, image id, SVN and the digests of both keys. Anybody can make keys: only a digest that was
expected proves anything.

Source: SEV-SNP firmware ABI (AMD publication 56860), SNP_LAUNCH_FINISH: the ID block and ID authentication
information structures; its formats of ECDSA keys and signatures. Integers are little-endian.
"""

from dataclasses import dataclass
from hashlib import sha384
from struct import Struct
from typing import Final, Self, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from kms.checks import Check
from kms.identifiers import FixedBytes, KeyDigest, Measurement
from kms.measurement.errors import MeasurementError

DEFAULT_POLICY: Final = 0x3_0000  # SMT allowed, and bit 17: the default of QEMU and sev-snp-measure

_BLOCK: Final = Struct("<48s16s16sIIQ")  # launch digest, family id, image id, version, guest SVN, policy
_VERSION: Final = 1
_AUTH: Final = Struct("<II56x512s1028s60x512s1028s892x")  # algorithms, 0x40 block signature, 0x240 ID key,
#                                                           0x680 ID key signature, 0x880 author key
ID_BLOCK_LENGTH: Final = _BLOCK.size  # 96
ID_AUTH_LENGTH: Final = _AUTH.size  # 4096
_KEY: Final = Struct("<I72s72s880x")  # curve, Qx, Qy
_SIGNATURE: Final = Struct("<72s72s368x")  # r, s
_ECDSA_P384_SHA384: Final = 1
_P384: Final = 2
_NO_KEY, _NO_SIGNATURE = bytes(_KEY.size), bytes(_SIGNATURE.size)

_MUST_BE_ONE: Final = 1 << 17  # publication 56860, guest policy
_POLICY_BITS: Final = 26  # those above are reserved

# RFC 6979: the same block and key give the same bytes, and no bad randomness can give the key away.
_ECDSA: Final = ec.ECDSA(SHA384(), deterministic_signing=True)
_VERIFY: Final = ec.ECDSA(SHA384())

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey


class GuestId(FixedBytes):
    """A family or image id, which the owner chooses: 16 bytes."""

    lengths = frozenset({16})


NO_ID: Final = GuestId(bytes(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlock:
    """What the ID key signs. `guest_svn` has 32 bits, `policy` is the guest policy of the launch (64 bits).

    Raises:
        MeasurementError: an SVN out of range, or a policy that no guest can be launched under.

    """

    launch_digest: Measurement
    family_id: GuestId = NO_ID
    image_id: GuestId = NO_ID
    guest_svn: int = 0
    policy: int = DEFAULT_POLICY

    def __post_init__(self) -> None:
        if not 0 <= self.guest_svn < 1 << 32:
            raise MeasurementError("a guest SVN has 32 bits")
        if not self.policy & _MUST_BE_ONE or not 0 <= self.policy < 1 << _POLICY_BITS:
            raise MeasurementError("a guest policy has bit 17 set, and none above bit 25")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the structure (96 bytes). Raises `MeasurementError` for another length or version."""
        if len(data) != ID_BLOCK_LENGTH:
            raise MeasurementError(f"an ID block has {ID_BLOCK_LENGTH} bytes")
        digest, family, image, version, svn, policy = _BLOCK.unpack(data)
        if version != _VERSION:
            raise MeasurementError("an ID block of an unknown version")
        return cls(
            launch_digest=Measurement(digest),
            family_id=GuestId(family),
            image_id=GuestId(image),
            guest_svn=svn,
            policy=policy,
        )

    def encode(self) -> bytes:
        """Give the structure (96 bytes)."""
        parts = (self.launch_digest, self.family_id, self.image_id, _VERSION, self.guest_svn, self.policy)
        return _BLOCK.pack(*parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdBlockVerdict:
    """What came of verifying: every check, and the digests that a report of this launch shows."""

    block: IdBlock
    checks: tuple[Check, ...]
    id_key_digest: KeyDigest
    author_key_digest: KeyDigest | None


def sign_id_block(block: IdBlock, id_key: PrivateKey, author_key: PrivateKey | None = None) -> bytes:
    """Give the ID authentication structure (4096 bytes); the author key vouches for the ID key.

    The same arguments give the same bytes.

    Raises:
        MeasurementError: a key on another curve than P-384.

    """
    public = encode_key(id_key.public_key())
    signature = _sign(id_key, block.encode())
    if author_key is None:
        parts = (_ECDSA_P384_SHA384, 0, signature, public, _NO_SIGNATURE, _NO_KEY)
        return _AUTH.pack(*parts)
    author = encode_key(author_key.public_key())
    algorithms = (_ECDSA_P384_SHA384, _ECDSA_P384_SHA384)
    return _AUTH.pack(*algorithms, signature, public, _sign(author_key, public), author)


def verify_id_block(block: bytes, auth: bytes) -> IdBlockVerdict:
    """Check an ID block (96 bytes) against its ID authentication (4096 bytes), as the processor does.

    Raises:
        MeasurementError: either is not of its format: lengths, reserved bytes, algorithms, keys.

    """
    parsed = IdBlock.parse(block)
    if len(auth) != ID_AUTH_LENGTH:
        raise MeasurementError(f"an ID authentication has {ID_AUTH_LENGTH} bytes")
    parts = _AUTH.unpack(auth)
    if _AUTH.pack(*parts) != auth:
        raise MeasurementError("reserved bytes of the ID authentication are not zero")
    id_algorithm, author_algorithm, signature, id_key, id_key_signature, author_key = parts
    has_author = author_key != _NO_KEY or id_key_signature != _NO_SIGNATURE
    algorithms = {_ECDSA_P384_SHA384} if has_author else {0, _ECDSA_P384_SHA384}
    if id_algorithm != _ECDSA_P384_SHA384 or author_algorithm not in algorithms:
        raise MeasurementError("the ID authentication names another algorithm than ECDSA P-384 with SHA-384")
    signed = _is_signed(decode_key(id_key), signature, block)
    checks = [Check.of("id-block-signature", signed, "the ID key signs the ID block" if signed else _FORGED)]
    if has_author:
        signed = _is_signed(decode_key(author_key), id_key_signature, id_key)
        detail = "the author key signs the ID key" if signed else _FORGED
        checks.append(Check.of("id-key-signature", signed, detail))
    return IdBlockVerdict(
        block=parsed,
        checks=tuple(checks),
        id_key_digest=KeyDigest(sha384(id_key).digest()),
        author_key_digest=KeyDigest(sha384(author_key).digest()) if has_author else None,
    )


_FORGED: Final = "the signature is not of this key over these bytes"


def key_digest(key: PublicKey) -> KeyDigest:
    """Give ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of a report: SHA-384 of the encoded key."""
    return KeyDigest(sha384(encode_key(key)).digest())


def encode_key(key: PublicKey) -> bytes:
    """Give AMD's form of a P-384 key (1028 bytes). Raises `MeasurementError` for another curve."""
    if not isinstance(key.curve, ec.SECP384R1):
        raise MeasurementError("ID and author keys are P-384 keys")
    point = key.public_numbers()
    return _KEY.pack(_P384, point.x.to_bytes(72, "little"), point.y.to_bytes(72, "little"))


def decode_key(data: bytes) -> PublicKey:
    """Read AMD's form of a key. Raises `MeasurementError`: another curve, no point of it, left-over bytes."""
    curve, x, y = _KEY.unpack(data)
    if curve != _P384 or _KEY.pack(curve, x, y) != data:
        raise MeasurementError("a key of the ID authentication is not P-384, or has left-over bytes")
    point = (int.from_bytes(x, "little"), int.from_bytes(y, "little"))
    try:
        return ec.EllipticCurvePublicNumbers(*point, ec.SECP384R1()).public_key()
    except ValueError:
        raise MeasurementError("a key of the ID authentication is no point of P-384") from None


def _sign(key: PrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, _ECDSA))
    return _SIGNATURE.pack(r.to_bytes(72, "little"), s.to_bytes(72, "little"))


def _is_signed(key: PublicKey, signature: bytes, data: bytes) -> bool:
    r, s = _SIGNATURE.unpack(signature)
    if _SIGNATURE.pack(r, s) != signature:
        return False
    der = encode_dss_signature(int.from_bytes(r, "little"), int.from_bytes(s, "little"))
    try:
        key.verify(der, data, _VERIFY)
    except InvalidSignature:
        return False
    return True

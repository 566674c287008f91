"""An independent verifier of a ledger, written from the specifications alone. It imports nothing of `kms`.

RFC 6962 section 2.1 (tree, proofs: by their recursive definitions), https://c2sp.org/signed-note,
https://c2sp.org/tlog-checkpoint, https://c2sp.org/tlog-tiles. That an entry of the log is
SHA-256(salt || entry) is this project's own (docs/reference/protocol.md).

What the product computes row by row and with shifts is here computed from the definitions, from the top, so
that the same mistake is not made twice.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FetchTile = Callable[[str], bytes]


class LedgerLies(Exception):
    """Something is not as the signed checkpoint, or the specification, says."""


def verify_ledger(
    checkpoint_note: str, verifier_key: str, entries: Iterable[tuple[bytes, bytes]], fetch_tile: FetchTile
) -> int:
    """Verify everything that can be: give the size of the tree.

    `entries` are (salt, entry) by index, neither more nor fewer than the tree has.
    `fetch_tile` gives what is served under a path below the log's prefix, such as ``tile/0/000.p/17``.
    """
    _, size, root = open_checkpoint(checkpoint_note, verifier_key)
    digests = [hashlib.sha256(salt + entry).digest() for salt, entry in entries]
    _need(len(digests) == size, f"{len(digests)} entries, and the checkpoint has {size}")
    _need(mth(digests) == root, "the entries do not make the root")
    _verify_tiles(digests, fetch_tile)
    return size


def check_inclusion(digest: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise unless the proof (RFC 6962 section 2.1.1) shows that the log entry `digest` is at `index`."""
    _need(0 <= index < size, "no such index")
    _need(all(len(each) == 32 for each in [*proof, root]), "a hash is not of 32 bytes")
    _need(_root_by_path(_leaf(digest), index, size, list(proof)) == root, "the proof does not give the root")


def check_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise unless the proof (RFC 6962 section 2.1.2) shows that the new tree begins with the old one."""
    _need(0 <= old_size <= new_size, "a tree does not shrink")
    _need(all(len(each) == 32 for each in [*proof, old_root, new_root]), "a hash is not of 32 bytes")
    if old_size == 0:
        _need(not proof and old_root == mth([]), "an empty tree needs no proof")
        _need(new_size > 0 or new_root == mth([]), "an empty tree has one root")
        return
    roots = _roots_by_subproof(old_size, new_size, list(proof), old_root, known=True)
    _need(roots == (old_root, new_root), "the proof does not give both roots")


def open_checkpoint(note: str, verifier_key: str) -> tuple[str, int, bytes]:
    """Give origin, size and root of a checkpoint which the key signed."""
    name, key_id, encoded = verifier_key.split("+", 2)
    kind_and_key = base64.b64decode(encoded, validate=True)
    _need(kind_and_key[0] == 1 and len(kind_and_key) == 33, "not an Ed25519 verifier key")
    identity = hashlib.sha256(name.encode() + b"\n" + kind_and_key).digest()[:4]
    _need(identity.hex() == key_id, "the key id is not that of the key")
    end = note.rindex("\n\n")
    text, lines = note[: end + 1], note[end + 2 :]
    _need(lines.endswith("\n"), "no newline at the end")
    signatures = []
    for line in lines[:-1].split("\n"):
        dash, signer, signature = line.split(" ")
        _need(dash == "—", "no em dash")
        raw = base64.b64decode(signature, validate=True)
        if (signer, raw[:4]) == (name, identity):
            signatures.append(raw[4:])
    _need(len(signatures) == 1, "not exactly one signature of the key")
    try:
        Ed25519PublicKey.from_public_bytes(kind_and_key[1:]).verify(signatures[0], text.encode())
    except InvalidSignature:
        raise LedgerLies("the checkpoint's signature is wrong") from None
    origin, size, root, nothing = text.split("\n")
    _need(origin == name and nothing == "" and str(int(size)) == size, "not a checkpoint of this log")
    return origin, int(size), base64.b64decode(root, validate=True)


def mth(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not entries:
        return hashlib.sha256(b"").digest()
    return _mth(entries, 0, len(entries))


def _mth(entries: Sequence[bytes], first: int, end: int) -> bytes:
    if end - first == 1:
        return _leaf(entries[first])
    k = _k(end - first)
    return _node(_mth(entries, first, first + k), _mth(entries, first + k, end))


def _verify_tiles(digests: Sequence[bytes], fetch_tile: FetchTile) -> None:
    """Compare every tile of every level, and every entry bundle, with what the specification puts there."""
    for first in range(0, len(digests), 256):
        part = digests[first : first + 256]
        bundle = b"".join(b"\x00\x20" + digest for digest in part)
        path = _path("entries", first // 256, len(part))
        _need(fetch_tile(path) == bundle, f"{path} holds other entries")
    level, span = 0, 1  # leaves under each hash of the level
    while span <= len(digests):
        hashes = [_mth(digests, number * span, (number + 1) * span) for number in range(len(digests) // span)]
        for first in range(0, len(hashes), 256):
            part = hashes[first : first + 256]
            path = _path(str(level), first // 256, len(part))
            _need(fetch_tile(path) == b"".join(part), f"{path} holds other hashes")
        level, span = level + 1, span * 256


def _path(level: str, number: int, width: int) -> str:
    digits = str(number)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    last = groups.pop()
    return "/".join(["tile", level, *(f"x{group}" for group in groups), last]) + (
        f".p/{width}" if width < 256 else ""
    )


def _root_by_path(leaf: bytes, m: int, n: int, path: list[bytes]) -> bytes:
    """Undo PATH(m, D[n]): its last hash is that of the half without the leaf."""
    if n == 1:
        _need(not path, "the proof is too long")
        return leaf
    _need(bool(path), "the proof is too short")
    k, other = _k(n), path[-1]
    if m < k:
        return _node(_root_by_path(leaf, m, k, path[:-1]), other)
    return _node(other, _root_by_path(leaf, m - k, n - k, path[:-1]))


def _roots_by_subproof(
    m: int, n: int, proof: list[bytes], old_root: bytes, *, known: bool
) -> tuple[bytes, bytes]:
    """Undo SUBPROOF(m, D[n], known): the old root (of the first m leaves) and the new one (of n)."""
    if m == n:
        _need(len(proof) == (0 if known else 1), "the proof is of a wrong length")
        return (old_root, old_root) if known else (proof[0], proof[0])
    _need(bool(proof), "the proof is too short")
    k, other = _k(n), proof[-1]
    if m <= k:
        old, new = _roots_by_subproof(m, k, proof[:-1], old_root, known=known)
        return old, _node(new, other)
    old, new = _roots_by_subproof(m - k, n - k, proof[:-1], old_root, known=False)
    return _node(other, old), _node(other, new)


def _k(n: int) -> int:
    """Give the largest power of two smaller than n."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def _leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise LedgerLies(otherwise)

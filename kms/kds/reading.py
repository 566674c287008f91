"""What operators' files hold: PEM, DER, bundles and other tar archives in any layout, parsed and not judged.

Of a large fleet only bytes are held, not parsed certificates.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from kms.errors import MalformedEvidence
from kms.kds.bundle import is_bundle, read_bundle
from kms.kds.pieces import LARGEST_BUNDLE, LARGEST_FILE, OpenFile, Piece, Unread, files_of, why
from kms.snp.certificate import Certificate
from kms.snp.chain import signer_of
from kms.snp.endorsement import load_der
from kms.snp.pem import PemError, pem_blocks
from kms.snp.revocation import RevocationList
from kms.snp.revocation_list import load_revocation_list

_MOST_BLOCKS: Final = 10_000  # in one PEM file
_BEGIN: Final = b"-----BEGIN "
_CERTIFICATE: Final = "CERTIFICATE"
_LIST: Final = "X509 CRL"  # RFC 7468, section 6
_BEGINNING: Final = 512  # bytes


@dataclass(slots=True)
class Found:
    """What was read, each with the name of its file. Leaves are certificates in DER."""

    files: int = 0
    authorities: list[tuple[str, Certificate]] = field(default_factory=list)
    lists: list[tuple[str, RevocationList]] = field(default_factory=list)
    leaves: list[tuple[str, bytes]] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)


def read_all(paths: Iterable[Path]) -> Found:
    """Read files, and folders to the bottom; what occurs twice is taken once."""
    found = Found()
    for path in paths:
        for each in files_of(path):
            for piece in _pieces(each) if isinstance(each, OpenFile) else (each,):
                found.files += 1
                if isinstance(piece, Unread):
                    found.unread.append(piece)
                else:
                    _sort(piece, found)
    return found


def _pieces(each: OpenFile) -> Iterator[Piece | Unread]:
    try:
        with os.fdopen(each.open(), "rb") as file:
            archive = is_bundle(file.read(_BEGINNING))
            most = LARGEST_BUNDLE if archive else LARGEST_FILE
            if os.fstat(file.fileno()).st_size > most:
                yield Unread(each.name, f"longer than {most} bytes", refused=True)
                return
            file.seek(0)
            if archive:
                yield from read_bundle(file, each.name)
            else:
                yield Piece(each.name, file.read(LARGEST_FILE))
    except OSError as error:
        yield Unread(each.name, why(error))


def _sort(piece: Piece, found: Found) -> None:
    """Parse a file, and put what it holds where it belongs; broken blocks do not spoil their neighbours."""
    try:
        blocks = _blocks(piece.data)
    except PemError as error:
        found.unread.append(Unread(piece.name, str(error), refused=True))
        return
    for number, (label, der) in enumerate(blocks, 1):
        name = piece.name if len(blocks) == 1 else f"{piece.name}, block {number}"
        parsed = _parse(label, der)
        if parsed is None:
            what = {_LIST: "no revocation list", _CERTIFICATE: "no certificate"}
            reason = what.get(label or "", "neither a certificate nor a revocation list")
            found.unread.append(Unread(name, reason, refused=True))
            continue
        digest = sha256(der).digest()
        if digest in found.seen:
            continue
        found.seen.add(digest)
        if isinstance(parsed, RevocationList):
            found.lists.append((name, parsed))
        elif signer_of(parsed) is None:
            found.authorities.append((name, parsed))
        else:
            found.leaves.append((name, der))


def _blocks(data: bytes) -> list[tuple[str | None, bytes]]:
    """Give the certificates and lists of a file with their PEM labels; what is not PEM may be either."""
    if _BEGIN not in data:
        return [(None, data)]
    parts = data.split(_BEGIN, _MOST_BLOCKS + 1)[1:]
    if len(parts) > _MOST_BLOCKS:
        raise PemError(f"more than {_MOST_BLOCKS} blocks")
    # Keys and requests beside a certificate are none of our business.
    blocks = [
        (label, _block(part, label))
        for part in parts
        for label in (_CERTIFICATE, _LIST)
        if part.startswith(f"{label}-----".encode("ascii"))
    ]
    if not blocks:
        raise PemError("PEM without a certificate or revocation list")
    return [*blocks]


def _block(part: bytes, label: str) -> bytes:
    try:
        return pem_blocks(_BEGIN + part, label)[0]
    except PemError:
        return b""  # which is no certificate: this block is refused, and no other


def _parse(label: str | None, der: bytes) -> Certificate | RevocationList | None:
    if label != _LIST:
        try:
            return load_der(der)
        except MalformedEvidence:
            pass
    if label != _CERTIFICATE:
        try:
            return load_revocation_list(der)
        except MalformedEvidence:
            pass
    return None

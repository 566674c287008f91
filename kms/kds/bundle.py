"""A bundle: everything stored in one file, for a site without a network.

A plain tar archive of AMD's key distribution service paths, so that any `tar` and `openssl` can look into
it and any web server can serve it. The names of VCEKs inside a chip's folder are those of Trustee's offline
store (confidential-containers/trustee, deps/verifier/src/snp):

::

    vcek/v1/Milan/cert_chain                                    PEM: ASK, ARK
    vcek/v1/Milan/crl                                           DER
    vcek/v1/Milan/<hwID>/bl04_tee00_snp24_ucode219_vcek.der     Turin: …_ucode81_fmc01_vcek.der
    vlek/v1/Milan/cert/bl04_tee00_snp24_ucode219_<sha256>_vlek.der

Authorities and lists beyond those that the service would give (`authorities/`, `crls/`) have a SHA-256 in
their names. The same store gives the same bytes. Nothing is trusted because it is in a bundle.
"""

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO, Final

from typing_extensions import override

from kms.kds.answers import chain_of, chain_pem, longest_valid_first, newest_first
from kms.kds.pieces import LARGEST_FILE, MOST_FILES, Piece, Unread, shown
from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line, hwid_of
from kms.snp.product import Product
from kms.snp.tcb import TcbVersion

_MAGIC: Final = (257, b"ustar")  # POSIX.1-2017, pax: the header block of ustar
_BLOCK: Final = 512
_LONGEST_HEADERS: Final = 1 << 16  # bytes, of one member
_DIGITS: Final = 16  # of a SHA-256, in names
_LINES: Final = tuple(Line(signer, product) for signer in Signer for product in Product)
_DAMAGED: Final = (tarfile.TarError, EOFError, OverflowError, RecursionError, UnicodeError, ValueError)


def write_bundle(
    file: IO[bytes], certificates: Iterable[StoredCertificate], lists: Iterable[StoredRevocationList]
) -> int:
    """Write everything into an open file, and say how many members that are. Raises `OSError`."""
    members = dict(_members(tuple(certificates), tuple(lists)))
    # A stream ("w|"), so that it can go into a pipe.
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(members[name]))
    return len(members)


def is_bundle(beginning: bytes) -> bool:
    """Say whether a file that begins so (512 bytes) is a tar archive."""
    offset, magic = _MAGIC
    return beginning[offset : offset + len(magic)] == magic


def read_bundle(file: IO[bytes], name: str) -> Iterator[Piece | Unread]:
    """Read the members of an archive, a bundle or any other, from its beginning.

    Links, devices, members that lead out of the archive and oversized ones are not read, and said. An archive
    that is damaged or cut off is unreadable from there.
    """
    try:
        file.seek(0)
        careful = _Careful(file)
        with tarfile.open(fileobj=careful, mode="r:") as archive:
            number = 0
            while (member := archive.next()) is not None:
                if number == MOST_FILES:
                    yield Unread(name, f"more than {MOST_FILES} members: the rest was left out")
                    return
                number += 1
                if member.size < 0:
                    raise tarfile.ReadError("a negative size")  # the way back, and round again
                archive.members.clear()  # type: ignore[attr-defined] # it would remember each
                careful.left = LARGEST_FILE
                yield from _member(archive, member, f"{name}: {shown(member.name)}")
                careful.left = _LONGEST_HEADERS
            if not _ends_well(file, archive):
                # `tarfile` takes a header that makes no sense for the end.
                yield Unread(name, "the archive is damaged or cut off")
    except _DAMAGED as error:
        yield Unread(name, f"the archive is damaged: {shown(str(error))}")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> Iterator[Piece | Unread]:
    path = PurePosixPath(member.name)
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        yield Unread(name, "neither a file nor a folder", refused=True)
    elif path.is_absolute() or ".." in path.parts:
        yield Unread(name, "a path that leads out of the archive", refused=True)
    elif member.size > LARGEST_FILE:
        yield Unread(name, f"longer than {LARGEST_FILE} bytes", refused=True)
    else:
        content = archive.extractfile(member)
        data = b"" if content is None else content.read(LARGEST_FILE)
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        yield Piece(name, data)


def _ends_well(file: IO[bytes], archive: tarfile.TarFile) -> bool:
    file.seek(archive.offset)
    return file.read(_BLOCK) == bytes(_BLOCK)


class _Careful(io.RawIOBase):
    """A file of which nobody reads more than `left` bytes until that is set again.

    `tarfile` reads the names and attributes of GNU and pax headers whole, however long these say they are.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = _LONGEST_HEADERS

    @override
    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("headers too long")
        self.left -= size
        return self._file.read(size)

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    @override
    def tell(self) -> int:
        return self._file.tell()


def _members(
    certificates: tuple[StoredCertificate, ...], lists: tuple[StoredRevocationList, ...]
) -> Iterator[tuple[str, bytes]]:
    authorities = tuple(each for each in certificates if each.role is not Role.LEAF)
    told: set[bytes] = set()
    for line in _LINES:
        chain = chain_of(line, authorities)
        if chain is not None:
            yield f"{_folder(line)}/cert_chain", chain_pem(chain)
            told |= {each.fingerprint for each in chain}
        for number, each in enumerate(newest_first(each for each in lists if each.line == line)):
            yield f"{_folder(line)}/{f'crls/{_short(each.ark)}.crl' if number else 'crl'}", each.list.der
    for stored in authorities:
        if stored.certificate.fingerprint not in told:
            name = f"authorities/{_short(stored.certificate.fingerprint)}.der"
            yield f"{_folder(stored.line)}/{name}", stored.certificate.der
    yield from _leaves(each for each in certificates if each.role is Role.LEAF)


def _leaves(leaves: Iterable[StoredCertificate]) -> Iterator[tuple[str, bytes]]:
    of_one_question: dict[tuple[str, str], list[StoredCertificate]] = defaultdict(list)
    for leaf in leaves:
        if leaf.tcb is not None:
            of_one_question[_folder_of_leaf(leaf), _levels(leaf.tcb)].append(leaf)
    for (folder, levels), found in of_one_question.items():
        if found[0].line.signer is Signer.VCEK:
            # A chip has one key for a TCB: certificates beside the longest one are of no use to anybody.
            yield f"{folder}/{levels}_vcek.der", longest_valid_first(found)[0].certificate.der
            continue
        # Of VLEKs there is one for each provider and region, and no question that names one.
        for leaf in found:
            mark = _short(leaf.certificate.fingerprint)
            yield f"{folder}/{levels}_{mark}_vlek.der", leaf.certificate.der


def _folder_of_leaf(leaf: StoredCertificate) -> str:
    if leaf.chip_id is None:
        return f"{_folder(leaf.line)}/cert"
    return f"{_folder(leaf.line)}/{hwid_of(leaf.line.product, leaf.chip_id).hex()}"


def _levels(tcb: TcbVersion) -> str:
    levels = f"bl{tcb.bootloader:02}_tee{tcb.tee:02}_snp{tcb.snp:02}_ucode{tcb.microcode:02}"
    return levels if tcb.fmc is None else f"{levels}_fmc{tcb.fmc:02}"


def _folder(line: Line) -> str:
    return line.folder.removeprefix("/")


def _short(digest: bytes) -> str:
    return digest.hex()[:_DIGITS]

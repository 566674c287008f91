"""Bringing certificates and revocation lists into the store, from files in any layout.

Layouts matter in one thing only: where a list lies says whether it is kept for VCEKs or VLEKs. Everything
else is read from what AMD signed. Files come in any order, so authorities are sorted out first.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from kms.kds.judging import Judge, No
from kms.kds.pieces import Unread
from kms.kds.reading import Found, read_all
from kms.ports import CollateralStore, StoredCertificate, StoredRevocationList
from kms.snp.certificate import Certificate
from kms.snp.endorsement import load_der
from kms.snp.flags import Signer
from kms.snp.revocation import RevocationList
from kms.snp.roots import TrustedRoots

_log = structlog.get_logger("kms.collateral")

_KIND: Final = re.compile(r"vcek|vlek")
_PORTION: Final = 200  # written in one transaction: the server writes meanwhile
_MOST_LOGGED: Final = 20

_Named: TypeAlias = tuple[str, Certificate | RevocationList | bytes]
_Kept: TypeAlias = StoredCertificate | StoredRevocationList


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What came of an import.

    `certificates` and `lists` verified, each counted once; `new` of them were not in the store yet. `refused`
    was read and is nothing that may be kept; `unreadable` could not be read.
    """

    files: int
    certificates: int
    lists: int
    new: int
    refused: tuple[Unread, ...]
    unreadable: tuple[Unread, ...]


async def import_paths(
    paths: Sequence[Path],
    store: CollateralStore,
    roots: TrustedRoots,
    now: datetime,
    *,
    source: str = "import",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> ImportReport:
    """Read files and folders, and store what verifies, with the store's own authorities to help.

    `progress` is told how many of how many certificates and lists were judged.

    Raises:
        LedgerUnavailable: the store cannot be used.

    """
    found = await asyncio.to_thread(read_all, paths)
    known = [each.certificate for each in await store.authorities()]
    # Candidates: what is no ARK, or signed by none, comes out when it is judged.
    offered = [certificate for _, certificate in found.authorities]
    judge = Judge(roots=roots, now=now, source=source).knowing([*known, *offered])
    certificates = lists = new = done = 0
    refused = [each for each in found.unread if each.refused]
    total = len(found.authorities) + len(found.lists) + len(found.leaves)
    for portion in _portions(found):
        taken, not_taken = await asyncio.to_thread(_judged, judge, portion)
        new += await store.keep(*taken)
        refused += not_taken
        lists += sum(isinstance(each, StoredRevocationList) for each in taken)
        certificates += sum(isinstance(each, StoredCertificate) for each in taken)
        done += len(portion)
        progress(done, total)
    return ImportReport(
        files=found.files,
        certificates=certificates,
        lists=lists,
        new=new,
        refused=tuple(refused),
        unreadable=tuple(each for each in found.unread if not each.refused),
    )


async def import_folder(
    folder: Path, store: CollateralStore, roots: TrustedRoots, now: datetime
) -> ImportReport:
    """Import a server's own folder when it starts; a folder that is not there is an empty one.

    What is not taken is a warning in the log, and stops nothing.

    Raises:
        LedgerUnavailable: the store cannot be used.

    """
    paths = [folder] if await asyncio.to_thread(_is_there, folder) else []
    report = await import_paths(paths, store, roots, now, source="folder")
    left_out = (*report.refused, *report.unreadable)
    for each in left_out[:_MOST_LOGGED]:
        _log.warning("collateral-file-not-taken", file=each.name, cause=each.reason)
    if left_out[_MOST_LOGGED:]:
        _log.warning("collateral-files-not-taken", folder=str(folder), count=len(left_out))
    if report.files:
        _log.info(
            "collateral-folder-imported",
            folder=str(folder),
            certificates=report.certificates,
            lists=report.lists,
            new=report.new,
        )
    return report


def _is_there(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # and unreadable, which is said
    return True


def _portions(found: Found) -> Iterator[tuple[_Named, ...]]:
    everything: Iterator[_Named] = iter((*found.authorities, *found.lists, *found.leaves))
    while portion := tuple(islice(everything, _PORTION)):
        yield portion


def _judged(judge: Judge, portion: tuple[_Named, ...]) -> tuple[list[_Kept], list[Unread]]:
    taken: list[_Kept] = []
    refused: list[Unread] = []
    for name, each in portion:
        judged: _Kept | No
        if isinstance(each, RevocationList):
            judged = judge.revocation_list(each, _kind_of_place(name))
        else:
            judged = judge.certificate(load_der(each) if isinstance(each, bytes) else each)
        if isinstance(judged, No):
            refused.append(Unread(name, judged.reason, refused=True))
        else:
            taken.append(judged)
    return taken, refused


def _kind_of_place(name: str) -> Signer:
    """Say for which keys a list is kept: the last `vcek` or `vlek` in its name, VCEKs by default."""
    words = _KIND.findall(name.lower())
    return Signer(words[-1]) if words else Signer.VCEK

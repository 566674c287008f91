"""Certificates from a local folder: any PEM or DER files, in any layout, AMD's KDS paths included.

What is in the folder is not trusted: a certificate is used only where it chains to a pinned root. So a file
that does not fit anything is of no consequence, and one that cannot be read is said in the log.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from kms.errors import CollateralUnavailable, MalformedEvidence
from kms.snp.certificate import Certificate, ExtensionInvalid
from kms.snp.chain import signer_of
from kms.snp.endorsement import load_any
from kms.snp.report import Report

_log = structlog.get_logger("kms.collateral")

_LARGEST_FILE: Final = 256 * 1024
_MOST_FILES: Final = 100_000
_RETRY_AFTER: Final = 30
_HWID_ON_TURIN: Final = 8


class CertificateFolder:
    """Implements `kms.ports.Collateral` over certificates that were read once, at start."""

    def __init__(self, certificates: Iterable[Certificate]) -> None:
        self._authorities: list[Certificate] = []
        # By the first 8 bytes of hwID: all of it on Turin, enough to find the few of a chip elsewhere.
        self._leaves: dict[bytes, list[Certificate]] = defaultdict(list)
        for certificate in certificates:
            if signer_of(certificate) is None:
                self._authorities.append(certificate)
                continue
            try:
                self._leaves[certificate.hwid()[:_HWID_ON_TURIN]].append(certificate)
            except ExtensionInvalid:
                continue

    async def authorities(self) -> tuple[Certificate, ...]:
        """Give the ASKs, ASVKs and ARKs of the folder."""
        return tuple(self._authorities)

    async def leaves(self, report: Report) -> tuple[Certificate, ...]:
        """Give the certificates of the report's chip.

        Raises:
            CollateralUnavailable: the folder has none for it.

        """
        found = self._leaves.get(report.chip_id[:_HWID_ON_TURIN], []) if report.chip_id else []
        if not found:
            raise CollateralUnavailable(
                "no endorsement certificate of this chip was sent, and none is in the local folder",
                retry_after=_RETRY_AFTER,
            )
        return tuple(found)


def read_certificates(folder: Path) -> tuple[Certificate, ...]:
    """Read every file below `folder`; a folder that does not exist is an empty one."""
    certificates: list[Certificate] = []
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(paths) > _MOST_FILES:
        _log.warning("certificate-files-left-out", count=len(paths) - _MOST_FILES, most=_MOST_FILES)
    for path in paths[:_MOST_FILES]:
        try:
            if path.stat().st_size > _LARGEST_FILE:
                _log.warning("certificate-file-too-large", file=str(path), most=_LARGEST_FILE)
                continue
            certificates.extend(load_any(path.read_bytes()))
        except (OSError, MalformedEvidence):
            _log.warning("certificate-file-unreadable", file=str(path))
    return tuple(certificates)

"""``kms collateral import`` and ``export``: certificates from files, and everything in one file."""

import argparse
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kms.cli.collateral_store import add_config, with_stores
from kms.cli.output import OK, REFUSED, WRONG_USE, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.progress import tell_progress
from kms.cli.reading import read_settings

if TYPE_CHECKING:
    from kms.kds.importing import ImportReport
    from kms.kds.pieces import Unread
    from kms.ports import StoredCertificate, StoredRevocationList
    from kms.wiring import Stores

_MODE = 0o644  # certificates are public


def add_import(group: Group) -> None:
    """Add ``kms collateral import``."""
    command = group.add(
        "import",
        summary="store certificates and revocation lists from files",
        description="Store certificates and revocation lists from files, and from folders to the bottom: PEM,"
        " DER, our bundles and other tar archives, Trustee's offline store, in any layout. Only what chains"
        " to a pinned root is taken, whatever it is called. Exit status: 0 everything taken, 1 something"
        " refused, 2 something unreadable.",
        example="kms collateral import collateral.tar certificates/",
    )
    command.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="a file or folder")
    add_config(command)
    command.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from kms.kds.importing import import_paths
    from kms.trust import load_roots

    settings = read_settings(arguments.config)
    roots = load_roots(settings.development_roots)

    async def work(stores: "Stores") -> "ImportReport":
        now = datetime.now(UTC)
        progress = tell_progress("kms collateral import")
        return await import_paths(arguments.paths, stores.collateral, roots, now, progress=progress)

    report = with_stores(settings, work)
    if arguments.json:
        print_json(_import_document(report))
    else:
        for each in (*report.refused, *report.unreadable):
            print(f"{'refused' if each.refused else 'unreadable'}: {each.name}: {each.reason}")
        print(
            f"{report.files} file(s): {report.certificates} certificate(s) and {report.lists} revocation"
            f" list(s) verified, {report.new} of them new; {len(report.refused)} refused,"
            f" {len(report.unreadable)} unreadable"
        )
    if report.unreadable:
        return WRONG_USE
    return REFUSED if report.refused else OK


def _import_document(report: "ImportReport") -> dict[str, Any]:
    def listed(left_out: "tuple[Unread, ...]") -> list[dict[str, str]]:
        return [{"name": each.name, "reason": each.reason} for each in left_out]

    return {
        "files": report.files,
        "certificates": report.certificates,
        "revocation_lists": report.lists,
        "new": report.new,
        "refused": listed(report.refused),
        "unreadable": listed(report.unreadable),
    }


def add_export(group: Group) -> None:
    """Add ``kms collateral export``."""
    command = group.add(
        "export",
        summary="write everything that is stored into one file",
        description="Write everything that is stored into one tar archive, in the layout of AMD's key"
        " distribution service, for `kms collateral import` at a site without a network. Exit status: 0"
        " written, 1 nothing is stored.",
        example="kms collateral export collateral.tar",
    )
    command.add_argument("file", metavar="FILE", help="the file to make or replace; - for standard output")
    add_config(command)
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments.config)
    to_stdout = arguments.file == "-"
    if to_stdout and (arguments.json or sys.stdout.isatty()):
        raise WrongUse("an archive on standard output goes with neither --json nor a terminal")

    async def work(
        stores: "Stores",
    ) -> "tuple[tuple[StoredCertificate, ...], tuple[StoredRevocationList, ...]]":
        return await stores.collateral.all_certificates(), await stores.collateral.revocation_lists()

    certificates, lists = with_stores(settings, work)
    said: dict[str, Any] = {"file": arguments.file, "certificates": 0, "revocation_lists": 0, "files": 0}
    if certificates or lists:
        from kms.kds.bundle import write_bundle

        def write(file: IO[bytes]) -> int:
            return write_bundle(file, certificates, lists)

        said["files"] = _to_stdout(write) if to_stdout else _replaced(Path(arguments.file), write)
        said |= {"certificates": len(certificates), "revocation_lists": len(lists)}
    if arguments.json:
        print_json(said)
    else:
        words = f"{said['certificates']} certificate(s) and {said['revocation_lists']} revocation list(s)"
        print(
            f"{words} in {said['files']} file(s)"
            if said["files"]
            else "nothing is stored: nothing was written",
            file=sys.stderr if to_stdout else sys.stdout,
        )
    return OK if said["files"] else REFUSED


def _to_stdout(write: Callable[[IO[bytes]], int]) -> int:
    written = write(sys.stdout.buffer)
    # Here, and not at the end: a part of an archive must not read as one.
    sys.stdout.buffer.flush()
    return written


def _replaced(path: Path, write: Callable[[IO[bytes]], int]) -> int:
    """Write a file whole or not at all: whoever reads it meanwhile has the old one."""
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable(f"{path}: not a file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
            try:
                written = write(draft)
                draft.flush()
                os.fsync(draft.fileno())
                os.fchmod(draft.fileno(), _MODE)
                Path(draft.name).replace(path)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    return written

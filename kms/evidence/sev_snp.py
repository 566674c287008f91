"""The `"tee": "sev-snp"` adapter: wire form in, parsed report, certificates, hint and document out.

Nothing here is trusted: the certificates are candidates, the launch is a hint, the document is bytes until
HOST_DATA binds it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from kms.encoding import from_base64
from kms.errors import MalformedEvidence, TooLarge
from kms.measurement.errors import MeasurementError
from kms.measurement.images import LaunchHint
from kms.measurement.launch import LaunchDescription
from kms.snp import report as snp_report
from kms.snp.certificate import Certificate
from kms.snp.certificate_table import CERTIFICATES, REVOCATION_LIST, parse_table
from kms.snp.endorsement import load_any
from kms.snp.report import Report
from kms.snp.revocation_list import RevocationList, load_revocation_list
from kms.strict_json import Fields, JsonValue

TEE: Final = "sev-snp"
MAX_APP_DOCUMENT: Final = 64 * 1024
MAX_CERTIFICATES: Final = 16
_MAX_CERTIFICATE_TEXT: Final = 64 * 1024
_MAX_TABLE: Final = 256 * 1024
# Tables are remembered by their exact text: the guests of a chip all send the same. A stranger who crowds
# this memory costs time only; long ones are not kept, so that it stays within some 16 MiB whatever is sent.
_LONGEST_REMEMBERED_TABLE: Final = 16 * 1024
_REMEMBERED_TABLES: Final = 256
_MAX_TEXT: Final = 1 << 20  # a body's size; what is too long for its own limit is told so


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEvidence:
    """Well-formed evidence. `app_document` is the exact bytes as received, not yet looked into.

    `revocation_lists` are those of the host's table: at most one, of any line and signed by anybody.
    """

    report: Report
    certificates: tuple[Certificate, ...]
    revocation_lists: tuple[RevocationList, ...] = ()
    hint: LaunchHint
    app_document: bytes | None


def parse_evidence(value: JsonValue) -> SnpEvidence:
    """Parse the `evidence` member of a release.

    Raises:
        MalformedEvidence: it is not as section 2 of the protocol says.
        TooLarge: the app document is longer than 64 KiB.

    """
    fields = Fields(value, "evidence", _malformed)
    if fields.text("tee", at_most=64) != TEE:
        raise MalformedEvidence("evidence.tee is not one this server knows", reason="tee-unknown")
    report = Report.parse(fields.base64("report", at_most=4 * snp_report.LENGTH))
    certificates: list[Certificate] = []
    lists: tuple[RevocationList, ...] = ()
    if fields.has("certificate_table"):
        text = fields.text("certificate_table")
        read = _read_table_once if len(text) <= _LONGEST_REMEMBERED_TABLE else _read_table
        sent, lists = read(text)
        certificates.extend(sent)
    if fields.has("certificates"):
        for entry in fields.array("certificates", at_most=MAX_CERTIFICATES):
            certificates.extend(_from_entry(entry))
            if len(certificates) > MAX_CERTIFICATES:
                break  # refused below, without parsing what else a stranger put into PEM
    if len(certificates) > MAX_CERTIFICATES:
        raise MalformedEvidence(f"more than {MAX_CERTIFICATES} certificates", reason="certificates-too-many")
    hint = _hint(fields.take("launch")) if fields.has("launch") else LaunchHint()
    document = _app_document(fields) if fields.has("app_document") else None
    fields.end()
    return SnpEvidence(
        report=report,
        certificates=tuple(certificates),
        revocation_lists=lists,
        hint=hint,
        app_document=document,
    )


def _app_document(fields: Fields) -> bytes:
    document = fields.base64("app_document", at_most=_MAX_TEXT)
    if len(document) > MAX_APP_DOCUMENT:
        raise TooLarge(
            f"the app document is longer than {MAX_APP_DOCUMENT} bytes", reason="app-document-too-large"
        )
    return document


def _hint(value: JsonValue) -> LaunchHint:
    hint = LaunchHint.parse(value, _malformed)
    if hint.description is not None:
        try:
            LaunchDescription.parse(hint.description)
        except MeasurementError as error:
            raise MalformedEvidence(
                f"evidence.launch.description: {error.detail}", reason="launch-description"
            ) from error
    return hint


def _read_table(text: str) -> tuple[tuple[Certificate, ...], tuple[RevocationList, ...]]:
    fields = Fields({"certificate_table": text}, "evidence", _malformed)
    table = fields.base64("certificate_table", at_most=_MAX_TABLE)
    certificates: list[Certificate] = []
    lists: list[RevocationList] = []
    for entry in parse_table(table):
        if entry.guid in CERTIFICATES:
            certificates.extend(load_any(entry.data))
        elif entry.guid == REVOCATION_LIST:
            lists.append(load_revocation_list(entry.data))
        # Other entries (a provider's own) play no part here and are not parsed.
    return tuple(certificates), tuple(lists)


_read_table_once = lru_cache(maxsize=_REMEMBERED_TABLES)(_read_table)  # what raises is not remembered


def _from_entry(entry: JsonValue) -> tuple[Certificate, ...]:
    if not isinstance(entry, str) or len(entry) > _MAX_CERTIFICATE_TEXT:
        raise MalformedEvidence("an entry of evidence.certificates is not a text of a certificate's size")
    if "-----BEGIN" in entry:
        return load_any(entry.encode("utf-8"))
    try:
        der = from_base64(entry)
    except ValueError as error:
        raise MalformedEvidence(
            "an entry of evidence.certificates is neither PEM nor base64", reason="certificate-unreadable"
        ) from error
    return load_any(der)


def _malformed(message: str) -> MalformedEvidence:
    return MalformedEvidence(message)

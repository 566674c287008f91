"""Where a guest's evidence comes from, and what the guest itself checks in it before it asks."""

from typing import Protocol

from kms.encoding import from_base64
from kms.errors import MalformedEvidence
from kms.evidence.app_document import AppIdentity, bind_document
from kms.guest.errors import AppDocumentRefused, EvidenceError
from kms.snp.report import Report
from kms.strict_json import JsonValue


class EvidenceSource(Protocol):
    """Hardware that signs 64 bytes of REPORT_DATA."""

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Give evidence over these 64 bytes in the wire form of the protocol, section 2.

        Raises:
            EvidenceError: there is none, and why.

        """
        ...


def read_report(evidence: dict[str, JsonValue], report_data: bytes) -> Report:
    """Read the report out of evidence; it must be over `report_data`.

    Raises:
        EvidenceError: no report, not a report, or one over other bytes: a source that mixes up requests
            would have us send somebody else's.

    """
    text = evidence.get("report")
    try:
        report = Report.parse(from_base64(text if isinstance(text, str) else ""))
    except (ValueError, MalformedEvidence) as error:
        raise EvidenceError(
            f"the hardware's report is not one: {error}", reason="report-malformed"
        ) from error
    if report.report_data != report_data:
        raise EvidenceError("the report is not over what was asked", reason="report-data-mismatch")
    return report


def check_app_document(document: bytes, report: Report) -> AppIdentity:
    """Give the identity that the document states, if this machine was launched for it.

    This is what `enforces: [host-data]` in an image means: the measured image runs nothing but the workload
    of a document that HOST_DATA commits to. The host chooses both, and can pair a report with any document.

    Raises:
        AppDocumentRefused: HOST_DATA does not commit to these bytes, or they cannot be read.

    """
    try:
        identity = bind_document(document, report.host_data)
    except MalformedEvidence as error:
        raise AppDocumentRefused(error.detail, reason="app-document-unreadable") from error
    if identity is None:
        raise AppDocumentRefused(
            "HOST_DATA of this machine does not commit to the app document", reason="host-data-mismatch"
        )
    return identity

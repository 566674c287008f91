"""What the guest says of its app: the document that HOST_DATA commits to, and the workload in it."""

from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.findings import Finding, failed, ok, refused, unknown, warning
from kms.guest.config import GuestConfig
from kms.guest.doctor.hardware import Seen
from kms.guest.errors import AppDocumentRefused
from kms.guest.evidence import check_app_document
from kms.guest.machine import read_document
from kms.guest.workload import check_workload
from kms.identifiers import ComposeHash


def app_document(config: GuestConfig, seen: Seen) -> Finding:
    """Compare the app document with this machine's own report."""
    name, path = "app-document", config.app_document
    if path is None:
        named = "none: the measured command line names the app" if config.app else "none is named"
        return ok(name, named)
    try:
        document = read_document(path)
    except AppDocumentRefused as error:
        return refused(name, error, "it is not an app document")
    except ConfigurationError as error:
        return failed(name, error.detail, "the host delivers it; for a file of fw_cfg: modprobe qemu_fw_cfg")
    if seen.report is None:
        return unknown(name, f"{path} is there; without a report nothing says whether it is ours")
    try:
        seen.app = identity = check_app_document(document, seen.report)
    except AppDocumentRefused as error:
        remedy = "launch with HOST_DATA = SHA-256 of the document's exact bytes (a line break counts)"
        return refused(name, error, remedy)
    wanted, pinned = identity.kms_identity, config.identity
    if wanted is not None and pinned is not None and wanted != pinned:
        detail = f"it names the KMS identity {b64url(wanted)}, this machine pins {b64url(pinned)}"
        return warning(name, detail, "this goes well only if hand-overs lead from one to the other")
    return ok(name, f"HOST_DATA commits to it; app {identity.app_id.hex()}")


def workload(config: GuestConfig, seen: Seen) -> Finding:
    """Compare the workload with the compose hash of the proved document, or of the measured command line.

    Raises:
        WorkloadRefused: it is another one.
        ConfigurationError: it cannot be read.

    """
    name, path = "workload", config.workload
    if path is None:
        return ok(name, "none is named: the image checks it itself, or has none")
    expected: ComposeHash | None = None
    if seen.app is not None:
        expected = seen.app.compose_hash
    elif config.app is not None:
        expected = config.app.compose_hash
    if expected is None:
        return unknown(name, "nothing proved says which one it should be")
    check_workload(path, expected)
    return ok(name, f"{path} is the one with the compose hash {expected.hex()}")

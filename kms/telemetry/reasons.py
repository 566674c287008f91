"""The reasons that may be label values: what is not here is counted as `other`.

A reason is always a code of our own (`kms.checks.Check`), but a metric must not rely on that: a label that a
stranger could choose would let strangers fill the memory of whoever stores metrics. A test compares with the
tables of the documentation.
"""

from typing import Final

OTHER: Final = "other"

_REQUEST: Final = """
suite-unknown public-key-invalid body-too-slow
tee-unknown report-length report-version reserved-bytes reserved-bits tcb-reserved policy-bits
signature-algorithm signature-range certificate-table certificate-unreadable certificates-too-many
revocation-list-unreadable launch-description app-document-unreadable
body-too-large request-too-large app-document-too-large
malformed-request malformed-evidence too-large challenge-invalid challenge-expired challenge-used
"""
_EVIDENCE: Final = """
report-data-mismatch host-data-mismatch app-document-missing
chip-key-masked signer-none requested-by-host
endorsement-certificate certificate-unknown certificate-revoked revocation-list-missing root-unknown
root-signature authority-signature leaf-signature leaf-key chain-names authority-bits certificate-validity
product hwid hwid-mismatch chip-id-zero csp-id certificate-tcb-extensions certificate-tcb
certificate-not-above-current report-signature evidence-untrusted
measurement-unknown
"""
_POLICY: Final = """
app-not-listed app-claim-disagrees app-document-disagrees kms-identity-differs
app-revoked compose-revoked measurement-revoked chip-revoked product-revoked
app-expired compose-not-listed binding-not-allowed
advisory-forbidden advisory-not-attestable advisories-not-assessed
image-not-listed image-expired image-revoked machine-not-allowed binding-not-enforced
chip-not-listed chips-expired tcb-expired product-not-listed
tcb-reported-too-low tcb-committed-too-low tcb-current-too-low tcb-launch-too-low
provisional-firmware platform-required-missing platform-forbidden-set
mitigations-launch-missing mitigations-current-missing
guest-expired vmpl-not-allowed report-version-not-allowed signer-not-allowed csp-not-allowed
debug-enabled debug-allowed
policy-migration-agent policy-smt policy-single-socket policy-cxl policy-ciphertext-hiding policy-aes-256-xts
policy-rapl-disabled policy-page-swap-disabled
firmware-current-too-low firmware-committed-too-low guest-svn-too-low id-key-not-allowed
author-key-not-allowed no-key-asked key-not-allowed dstack-not-enabled instance-unbound chip-unbound
dstack-id-length epoch-unavailable
"""
_ROOT: Final = """
root-key-sealed root-key-forbidden root-key-token-expired root-key-slow root-key-unreachable root-key-standby
root-key-failing root-key-missing root-key-changed root-key-damaged root-key-token-gone root-key-pin-refused
root-epoch-missing root-key-unavailable
"""
_DATABASE: Final = """
database-unreachable database-refused database-read-only database-full database-busy database-damaged
database-disk-failing clock-differs
policy-untrusted policy-not-followed epochs-untrusted anchor-unusable anchor-unavailable
ledger-stopped ledger-rolled-back ledger-untrusted
"""
_SERVER: Final = """
dstack-roots-missing dstack-key-undefined foreign-roots-untrusted
ledger-busy ledger-unavailable policy-moving collateral-unavailable
chip-rate-limited app-rate-limited
internal
"""
_NOT_READY: Final = """
stopping policy-missing policy-folder-invalid policy-folder-unsigned policy-watcher-stopped
policy-follower-stopped collateral-stopped record-stopped record-failing ledger-not-followed
database-unavailable
"""

ROOT_REASONS: Final = frozenset(_ROOT.split())
REFUSAL_REASONS: Final = (
    frozenset(f"{_REQUEST}{_EVIDENCE}{_POLICY}{_DATABASE}{_SERVER}".split()) | ROOT_REASONS
)
NOT_READY_REASONS: Final = frozenset(f"{_DATABASE}{_NOT_READY}".split()) | ROOT_REASONS


def known(reason: str, reasons: frozenset[str]) -> str:
    """Give a reason as a label value: itself, or `other`."""
    return reason if reason in reasons else OTHER

"""`kms doctor`: looks at everything that a server stands on, and changes none of it."""

from kms.doctor.examination import examine
from kms.findings import Finding, Status

__all__ = ["Finding", "Status", "examine"]

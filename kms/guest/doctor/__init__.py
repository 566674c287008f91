"""`kms guest doctor`: looks at everything that a guest's keys depend on, and says what is missing."""

from kms.findings import Finding, Status
from kms.guest.doctor.examination import examine
from kms.guest.doctor.system import System

__all__ = ["Finding", "Status", "System", "examine"]

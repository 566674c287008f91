"""`kms doctor`: looks at everything that a server stands on, and changes none of it."""

from kms.doctor.diagnosis import Diagnosis, Status
from kms.doctor.examination import examine

__all__ = ["Diagnosis", "Status", "examine"]

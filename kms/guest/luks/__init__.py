"""LUKS2 volumes on a disk that the host owns: judged, opened from a copy, and moved to newer keys.

Nothing authenticates a LUKS2 header (docs/decisions/0017).
"""

from kms.guest.luks.errors import DiskFailed, DiskRefused
from kms.guest.luks.header import CheckedHeader, read_header

__all__ = ["CheckedHeader", "DiskFailed", "DiskRefused", "read_header"]

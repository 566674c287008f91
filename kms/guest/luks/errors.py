"""What can go wrong with a disk, as types. None of them holds a key."""

from kms.errors import KmsError
from kms.guest.errors import RefusedHere


class DiskRefused(RefusedHere):
    """The disk must not be opened as it is. `reason` is stable; asking again changes nothing."""

    code = "disk-refused"


class DiskFailed(KmsError):
    """The disk cannot be read or written, or ``cryptsetup`` failed: the detail has its own first line."""

    code = "disk-failed"

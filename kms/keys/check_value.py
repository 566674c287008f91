"""Key-check values: how a database recognises the root that made it, without knowing anything of it.

For each epoch the database keeps one. A root that disagrees (another file, a Vault key that was deleted
and made again, a development root under a production database) is noticed before a key leaves, instead
of handing guests keys that do not open their disks (field lesson 30).
"""

import hmac
from typing import Final

from kms.keys.root_messages import require_prf_output

CHECK_VALUE_LENGTH: Final = 32


def check_value(output: bytes) -> bytes:
    """Make the value from the root PRF's 64 bytes for `root_messages.check_message`: its first 32.

    It is public: under a PRF, the output for this label tells nothing of the outputs for others.

    Raises:
        ValueError: not 64 bytes.

    """
    return require_prf_output(output)[:CHECK_VALUE_LENGTH]


def agrees(stored: bytes, output: bytes) -> bool:
    """Say whether the PRF output gives the `stored` check value; in constant time."""
    return hmac.compare_digest(stored, check_value(output))

"""Where the root secret lives: one module a provider, chosen by the scheme of ``KMS_ROOT_KEY``.

Opening and making are apart, because only the caller knows whether a root may be made: where the
database already holds a key-check value, a missing root is an accident to be repaired from a backup, and
a new one in its place would be the loss of every key (field lesson 30).
"""

from kms.rootkey.checked import open_checked_root
from kms.rootkey.file import FileRootKey, RootKeyMissing
from kms.rootkey.registry import check_uri, create_root_key, open_root_key

__all__ = [
    "FileRootKey",
    "RootKeyMissing",
    "check_uri",
    "create_root_key",
    "open_checked_root",
    "open_root_key",
]

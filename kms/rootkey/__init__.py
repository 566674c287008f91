"""Where the root secret lives: one module a provider, chosen by the scheme of ``KMS_ROOT_KEY``.

Opening and making are apart, because only the caller knows whether a root may be made: where the
database already holds a key-check value, a missing root is an accident to be repaired from a backup, and
a new one in its place would be the loss of every key (field lesson 30).
"""

from kms.rootkey.checked import CheckedRoot, open_checked_root
from kms.rootkey.provider import NotExportable, RootAccess, RootKeyMissing, RootProvider
from kms.rootkey.registry import check_uri, create_provider, open_provider, restore_provider

__all__ = [
    "CheckedRoot",
    "NotExportable",
    "RootAccess",
    "RootKeyMissing",
    "RootProvider",
    "check_uri",
    "create_provider",
    "open_checked_root",
    "open_provider",
    "restore_provider",
]

"""The anchor: what this server has used and seen last, kept where the owner of the database cannot reach it.

By it an older database that was put in the place of a newer one is noticed (`kms.policy_authority`,
`kms.database.keys`, `kms.sequencing`).
"""

from kms.anchor.anchor import Anchor
from kms.anchor.file import FileAnchor
from kms.anchor.members import AnchorUnusable, Members, Seen

__all__ = ["Anchor", "AnchorUnusable", "FileAnchor", "Members", "Seen"]

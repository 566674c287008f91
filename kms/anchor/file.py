"""The anchor as a small file, best on another disk than the database."""

import asyncio
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from typing_extensions import override

from kms import private_files
from kms.anchor.anchor import Anchor
from kms.anchor.members import AnchorUnusable, Seen
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.strict_json import JsonError, parse_object

_AT_MOST: Final = 1 << 16  # bytes
_FOREIGN_WRITE: Final = 0o022
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_RESTORE: Final = (
    "Restore it, or copy it from another server of this KMS. Only where there is none: look at the policy in "
    "the database, at its epochs and at its ledger, and remove the file; the server then takes what the "
    "database says."
)


@dataclass(frozen=True, slots=True)
class FileAnchor(Anchor):
    """An anchor that the processes of one server share."""

    path: Path

    @classmethod
    def from_setting(cls, text: str | None, default: Path) -> "FileAnchor":
        """Read `KMS_LEDGER_ANCHOR`: a path or ``file:PATH``; `default` is the path where it is not set.

        Raises:
            ConfigurationError: something else.

        """
        if text is None:
            return cls(default)
        # The rest of another URI may hold a password: it is not repeated.
        match = _SCHEME.fullmatch(text)
        path = text if match is None else match[2]
        if match is not None and match[1] != "file":
            raise ConfigurationError(
                "KMS_LEDGER_ANCHOR names no place that an anchor can be kept in",
                remedy="Set it to a path or file:PATH, best on another disk than the database,"
                " or to vault-kv:MOUNT/PATH.",
            )
        if not path or "\0" in path or (path.startswith("//") and not path.startswith("///")):
            raise ConfigurationError(
                "KMS_LEDGER_ANCHOR needs the path of a file on this machine",
                remedy="Write /var/lib/kms-anchor/anchor.json or file:///var/lib/kms-anchor/anchor.json.",
            )
        return cls(Path(path))

    @property
    @override
    def place(self) -> str:
        return str(self.path)

    @override
    async def require_usable(self, *, made_later: Path) -> None:
        """Look at it before a KMS is founded; see `Anchor.require_usable`."""
        if self.path.parent != made_later or await asyncio.to_thread(made_later.exists):
            await Anchor.require_usable(self, made_later=made_later)

    @override
    async def _seen(self) -> Seen:
        return await asyncio.to_thread(self._read)

    @override
    async def _renew(self, renewed: Callable[[Seen], Seen]) -> None:
        await asyncio.to_thread(self._write, renewed)

    def _write(self, renewed: Callable[[Seen], Seen]) -> None:
        """Write what `renewed` makes of what is there. It is on disk when this returns."""
        try:
            with private_files.locked(self.path):
                seen = self._read()
                new = renewed(seen)
                if new != seen:
                    content = json.dumps(new.to_json(), sort_keys=True).encode() + b"\n"
                    owned = self.path if self.path.exists() else self.path.parent
                    private_files.replace(self.path, content, owner_of=owned)
        except OSError as error:
            raise LedgerUnavailable(f"the anchor {self.path} cannot be written: {error.strerror}") from error

    def _read(self) -> Seen:
        """Read the file; where there is none, nothing was ever kept."""
        try:
            content = self._content()
        except FileNotFoundError:
            if self.path.parent.is_dir():
                return Seen()
            raise AnchorUnusable(
                f"the folder of the anchor {self.path} is not there",
                remedy="Make it, or mount the disk that it is on.",
            ) from None
        except OSError as error:
            raise AnchorUnusable(
                f"the anchor {self.path} cannot be read: {error.strerror}",
                remedy="It must be a regular file (not a link) that the user who runs the server can read.",
            ) from None
        except (private_files.ForeignOwner, private_files.ForeignMode):
            raise AnchorUnusable(
                f"the anchor {self.path} can be written by others than the user who runs the server",
                remedy=f"chown it to that user and chmod 0600 {self.path}, if what it says is still right.",
            ) from None
        except private_files.Unfit as unfit:
            raise self._damaged(f"it {unfit}") from None
        try:
            return Seen.from_json(parse_object(content))
        except JsonError as error:
            raise self._damaged(str(error)) from None

    def _content(self) -> bytearray:
        # Whoever can write it can bring an old policy back. It holds nothing secret. The folder's owner can
        # replace it whatever its mode is: root works for a server that runs as somebody else.
        owners = {os.geteuid(), 0, self.path.parent.stat().st_uid}
        return private_files.read(self.path, at_most=_AT_MOST, owners=owners, foreign=_FOREIGN_WRITE)

    def _damaged(self, why: str) -> AnchorUnusable:
        return AnchorUnusable(f"the anchor {self.path} is damaged: {why}", remedy=_RESTORE)

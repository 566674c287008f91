"""The anchor: what this server has used last, kept where the owner of the database cannot reach it.

One small file, of which every member only ever goes forward::

    {"policy": {"revision": "sha256:…", "sequence": 9},
     "keys": {"epochs": 2, "generations": 1, "in_use": 2, "retired": [1]}}

By it an older database that was put in the place of a newer one is noticed (`kms.policy_authority`,
`kms.database.keys`). Members are missing until there is something to keep in them, but never all of these.
Others are kept as they are.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from kms import private_files
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.keys.epochs import KeyProgress
from kms.policy.history import Head
from kms.policy_authority import PolicyUntrusted
from kms.strict_json import MAX_VALUES, Fields, JsonError, JsonValue, parse_object

_POLICY: Final = "policy"
_KEYS: Final = "keys"
_AT_MOST: Final = 1 << 16  # bytes
_FOREIGN_WRITE: Final = 0o022
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_RESTORE: Final = (
    "Restore it, or copy it from another server of this KMS. Only where there is none: look at the policy in "
    "the database and at its epochs, and remove the file; the server then takes what the database says."
)

Members: TypeAlias = dict[str, JsonValue]


class AnchorUnusable(PolicyUntrusted):
    """What was used last cannot be told, so nothing that the database says may be used."""

    def __init__(self, fault: str, *, remedy: str) -> None:
        super().__init__(f"{fault}. {remedy}", reason="anchor-unusable")
        self.fault = fault
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class FileAnchor:
    """Implements `SeenHead` and `SeenKeys` of `kms.operator_ports` with a file.

    The processes of one server share it.
    """

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
                "KMS_LEDGER_ANCHOR: this version keeps the anchor in a file",
                remedy="Set it to a path or file:PATH, best on another disk than the database.",
            )
        if not path or "\0" in path or (path.startswith("//") and not path.startswith("///")):
            raise ConfigurationError(
                "KMS_LEDGER_ANCHOR needs the path of a file on this machine",
                remedy="Write /var/lib/kms-anchor/anchor.json or file:///var/lib/kms-anchor/anchor.json.",
            )
        return cls(Path(path))

    def require_usable(self, *, made_later: Path) -> None:
        """Look at it before a KMS is founded: no root is made that could not be used.

        Raises:
            ConfigurationError: as `read`; but a folder that is not there may be `made_later`.

        """
        if self.path.parent == made_later and not made_later.exists():
            return
        try:
            members = self._members()
            _head(members, self.path)
            _progress(members, self.path)
        except AnchorUnusable as error:
            raise ConfigurationError(error.fault, remedy=error.remedy) from error

    async def read(self) -> Head | None:
        """Give what was used last; None where there is no file, so that nothing ever was.

        Raises:
            AnchorUnusable: the file is damaged, others can write it, or its folder is not there. That
                never counts as "nothing was used".

        """
        return await asyncio.to_thread(lambda: _head(self._members(), self.path))

    async def remember(self, head: Head) -> None:
        """Keep what is used from now on. It is on disk when this returns, so call it before.

        Raises:
            PolicyUntrusted: something newer was used, or another revision under this number.
            AnchorUnusable: as `read`.
            LedgerUnavailable: it could not be written.

        """
        await asyncio.to_thread(self._remember, head)

    async def read_keys(self) -> KeyProgress:
        """Give how far epochs and generations were seen to come. Raises `AnchorUnusable` as `read`."""
        return await asyncio.to_thread(lambda: _progress(self._members(), self.path))

    async def remember_keys(self, progress: KeyProgress) -> None:
        """Keep it, united with what is kept. It is on disk when this returns; errors as `read`.

        Raises:
            LedgerUnavailable: it could not be written.

        """
        await asyncio.to_thread(self._remember_keys, progress)

    def _remember(self, head: Head) -> None:
        def renewed(members: Members | None) -> Members:
            seen = _head(members, self.path)
            if seen == head:
                return {}
            if seen is not None and head.sequence <= seen.sequence:
                raise PolicyUntrusted(f"{head} cannot be used: this server has used {seen}")
            return {_POLICY: {"revision": head.revision, "sequence": head.sequence}}

        self._renew(renewed)

    def _remember_keys(self, progress: KeyProgress) -> None:
        def renewed(members: Members | None) -> Members:
            seen = _progress(members, self.path)
            return {} if seen.includes(progress) else {_KEYS: _progress_json(seen.united(progress))}

        self._renew(renewed)

    def _renew(self, renewed: Callable[[Members | None], Members]) -> None:
        """Write the members that `renewed` makes of what is there; nothing changes in between."""
        try:
            with private_files.locked(self.path):
                members = self._members()
                new = renewed(members)
                if new:
                    content = json.dumps({**(members or {}), **new}, sort_keys=True).encode() + b"\n"
                    owned = self.path if self.path.exists() else self.path.parent
                    private_files.replace(self.path, content, owner_of=owned)
        except OSError as error:
            raise LedgerUnavailable(f"the anchor {self.path} cannot be written: {error.strerror}") from error

    def _members(self) -> Members | None:
        """Read the file's JSON object; None where there is no file."""
        try:
            content = self._content()
        except FileNotFoundError:
            if self.path.parent.is_dir():
                return None
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
            raise _damaged(self.path, f"it {unfit}") from None
        try:
            return parse_object(content)
        except JsonError as error:
            raise _damaged(self.path, str(error)) from None

    def _content(self) -> bytearray:
        # Whoever can write it can bring an old policy back. It holds nothing secret. The folder's owner can
        # replace it whatever its mode is: root works for a server that runs as somebody else.
        owners = {os.geteuid(), 0, self.path.parent.stat().st_uid}
        return private_files.read(self.path, at_most=_AT_MOST, owners=owners, foreign=_FOREIGN_WRITE)


def _head(members: Members | None, path: Path) -> Head | None:
    try:
        policy = _member(members, _POLICY)
        if policy is None:
            return None
        head = Head(policy.integer("sequence", minimum=1), policy.text("revision", at_most=80))
        policy.end()
    except JsonError as error:
        raise _damaged(path, str(error)) from None
    return head


def _progress(members: Members | None, path: Path) -> KeyProgress:
    try:
        keys = _member(members, _KEYS)
        if keys is None:
            return KeyProgress()
        retired = keys.array("retired", at_most=MAX_VALUES)
        progress = KeyProgress(
            epochs=keys.integer("epochs"),
            in_use=keys.integer("in_use"),
            retired=frozenset(
                each if type(each) is int else keys.fail("`retired` must be integers") for each in retired
            ),
            generations=keys.integer("generations", minimum=1),
        )
        keys.end()
    except JsonError as error:
        raise _damaged(path, str(error)) from None
    return progress


def _progress_json(progress: KeyProgress) -> JsonValue:
    return {
        "epochs": progress.epochs,
        "in_use": progress.in_use,
        "retired": [*sorted(progress.retired)],
        "generations": progress.generations,
    }


def _member(members: Members | None, name: str) -> Fields | None:
    """Give a member, None where nothing was ever kept in it: not in a file that keeps nothing at all."""
    if members is None or (name not in members and not {_POLICY, _KEYS}.isdisjoint(members)):
        return None
    return Fields(members, "the object").object(name)


def _damaged(path: Path, why: str) -> AnchorUnusable:
    return AnchorUnusable(f"the anchor {path} is damaged: {why}", remedy=_RESTORE)

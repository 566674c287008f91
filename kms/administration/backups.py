"""Custody of the root: its backups, what a restore ends with, the passphrase of its file. Each is recorded.

Only commands on the server's own machine do this; no role gives the right to it, and no route leads here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from kms.administration.permission import Journal
from kms.encoding import whole_seconds
from kms.errors import KmsError, LedgerUnavailable, RootKeyUnavailable
from kms.keys.backup import Backup
from kms.keys.check_value import agrees
from kms.keys.dstack import DstackRoots
from kms.keys.key_history import KeyHistory
from kms.keys.recovery_key import RecoveryRecipient
from kms.keys.root_copy import Description, DstackMarks, RootCopy
from kms.keys.root_messages import Mode, check_message
from kms.ledger.actions import OperatorAction
from kms.operator_ports import KeyRegister
from kms.operators import Actor
from kms.ports import Clock, ForeignRoots, Randomness
from kms.strict_json import JsonValue

_EXPORT: Final = "keys-export"
RESTORE: Final = "keys-restore"
_PASSPHRASE: Final = "keys-passphrase"  # noqa: S105 -- a word, not a secret
_ROOT: Final = "root"


class WholeRoot(Protocol):
    """A root at its provider; see `kms.rootkey.provider.RootProvider`, also for errors."""

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give the PRF's 64 bytes for each message."""
        ...

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist there, oldest first."""
        ...

    async def secrets(self) -> Mapping[int, bytes]:
        """Give the secret (32 bytes) of each epoch, if it can be had."""
        ...

    async def close(self) -> None:
        """End its use."""
        ...


class ImportedRoots(ForeignRoots, Protocol):
    """Imported roots that can be brought back."""

    async def import_dstack(self, roots: DstackRoots, *, action: OperatorAction, replace: bool) -> bool:
        """Keep the roots of a dstack KMS, with the record of who did it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCustody:
    """What is done with the whole root of a database, each time with a record of it."""

    root: WholeRoot
    mode: Mode
    register: KeyRegister
    foreign: ImportedRoots
    journal: Journal
    clock: Clock
    randomness: Randomness

    async def export(
        self, actor: Actor, recipients: Sequence[RecoveryRecipient], write: Callable[[bytes], None]
    ) -> Backup:
        """Back the root up: seal it to recipients, record that, and only then `write` the file.

        Raises:
            ConfigurationError: the root cannot be had.
            RootKeyUnavailable: now, or (``root-key-changed``) it is not the one that answers guests.
            LedgerUnavailable: it could not be recorded, or the database says what this KMS did not write;
                nothing was written. Other errors are `write`'s.

        """
        # Before the secrets: an epoch that is made meanwhile is in the backup without being adopted.
        table, later = await self.register.epochs(), await self.register.generations()
        root = await self._copy(at_least=table.newest.number)
        history = KeyHistory.of(table, [each.made_at for each in later])
        backup = Backup.seal(root, recipients, history=history, now=self.clock(), random=self.randomness)
        content = backup.to_json()
        details: dict[str, JsonValue] = {
            "recipients": [each.header() for each in backup.recipients],
            "epochs": [*root.secrets],
            "dstack": root.dstack is not None,
            "backup_sha256": sha256(content).hexdigest(),
        }
        await self._recorded_first(actor, _EXPORT, details, lambda: write(content))
        return backup

    async def finish_restore(
        self, actor: Actor, root: RootCopy, description: Description, *, digest: str, made: bool
    ) -> str | None:
        """Bring imported roots back where the database has none that can be used, and record the restore.

        `digest` is the SHA-256 (hex) of the backup's file, and `made` what `PutBack` says. Say what became
        of imported roots, None where the backup has none.

        Raises:
            LedgerUnavailable: the database did not answer.

        """
        dstack = await self._put_back_dstack(actor, root, description)
        await self.journal.record(
            actor,
            RESTORE,
            _ROOT,
            details={
                "backup_sha256": digest,
                "backup_created_at": whole_seconds(description.created_at),
                "epochs": [*root.secrets],
                "root_made": made,
                "dstack": dstack,
            },
        )
        return dstack

    async def change_passphrase(self, actor: Actor, change: Callable[[], None], *, encrypted: bool) -> None:
        """Record that the root's file will (not) be encrypted, and only then have it changed.

        Raises:
            LedgerUnavailable: it could not be recorded, and nothing was changed. Other errors are `change`'s.

        """
        await self._recorded_first(actor, _PASSPHRASE, {"encrypted": encrypted}, change)

    async def _recorded_first(
        self, actor: Actor, action: str, details: Mapping[str, JsonValue], act: Callable[[], None]
    ) -> None:
        """Record, then act. Where that fails, a second entry has the code of the error."""
        await self.journal.record(actor, action, _ROOT, details=details)
        try:
            act()
        except KmsError as error:
            with suppress(LedgerUnavailable):  # what has to be said is why it was not done
                await self.journal.record(actor, action, _ROOT, outcome=error.code, details=details)
            raise

    async def _copy(self, *, at_least: int) -> RootCopy:
        """Read the root, which has the epochs up to this one, and perhaps more."""
        root = RootCopy(mode=self.mode, secrets=await self.root.secrets(), dstack=await self.foreign.dstack())
        if at_least not in root.secrets:
            raise RootKeyUnavailable(
                f"the root that was read has no epoch {at_least}", reason="root-epoch-missing"
            )
        for epoch, value in root.check_values().items():
            if not await answers(self.root, self.mode, epoch, value):
                raise RootKeyUnavailable(
                    f"epoch {epoch} of the root changed while it was read", reason="root-key-changed"
                )
        return root

    async def _put_back_dstack(self, actor: Actor, root: RootCopy, description: Description) -> str | None:
        if root.dstack is None:
            return None
        untrusted = False
        try:
            kept = await self.foreign.dstack()
        except LedgerUnavailable as error:
            if error.reason != "foreign-roots-untrusted":
                raise
            kept, untrusted = None, True
        if kept is not None:
            same = DstackMarks.of(kept) == description.dstack
            return "here already" if same else "others are here, and stay"
        action = self.journal.entry(actor, RESTORE, "dstack")
        await self.foreign.import_dstack(root.dstack, action=action, replace=untrusted)
        return "restored"


async def answers(root: WholeRoot, mode: Mode, epoch: int, value: bytes) -> bool:
    """Say whether the root's epoch is the one with this key-check value."""
    [output] = await root.outputs(epoch, [check_message(mode, epoch)])
    return agrees(value, output)

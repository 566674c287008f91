"""Custody of the root: what is recorded before anything leaves or changes, and what a restore ends with."""

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import NoReturn, cast

import pytest
from typing_extensions import override

from kms.administration.backups import RootCustody
from kms.errors import ConfigurationError, LedgerUnavailable, RootKeyUnavailable
from kms.keys.backup import Backup
from kms.keys.dstack import DstackRoots
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.key_history import KeyHistory
from kms.keys.recovery_key import RecoveryKey, RecoveryRecipient
from kms.keys.root_copy import RootCopy
from kms.keys.root_messages import Mode
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation, KeyRegister
from kms.operators import Actor, Proof, Role
from tests.unit.operator_samples import MemoryActions, journal
from tests.world import NOW

ADMIN = Actor(name="ada", role=Role.ADMIN, proof=Proof.COMMAND_LINE)
ALICE = RecoveryKey(b"\x01" * 96)
TO_ALICE = [RecoveryRecipient("alice", ALICE.public_key)]
SECRETS = {1: b"1" * 32, 2: b"2" * 32}
DSTACK = DstackRoots(ca=b"\x01" * 32, k256=b"\x02" * 32)
OTHERS = DstackRoots(ca=b"\x03" * 32, k256=b"\x04" * 32)
FIRST = Epoch(
    number=1,
    made_at=NOW,
    made_by="ada",
    active_from=NOW,
    retired_at=NOW + timedelta(days=1),
    retired_by="bea",
)
TABLE = EpochTable((FIRST, Epoch(number=2, made_at=NOW, made_by="ada", active_from=NOW)))
HISTORY = KeyHistory.of(TABLE, [NOW])


@dataclass
class Registered:
    """A register of these epochs, and of two generations of the identity."""

    table: EpochTable = TABLE
    trusted: bool = True

    async def epochs(self) -> EpochTable:
        if not self.trusted:
            raise LedgerUnavailable("an older copy", reason="epochs-untrusted")
        return self.table

    async def generations(self) -> tuple[Generation, ...]:
        return (Generation(number=2, made_at=NOW, made_by="ada"),)


@dataclass
class RootInMemory:
    """A root; `answering` are the secrets by which it answers, where they are others."""

    held: Mapping[int, bytes]
    answering: Mapping[int, bytes] | None = None
    closed: bool = False

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        secret = (self.answering or self.held)[epoch]
        return tuple(hmac.digest(secret, message, "sha512") for message in messages)

    async def versions(self) -> tuple[int, ...]:
        return tuple(self.held)

    async def secrets(self) -> Mapping[int, bytes]:
        return self.held

    async def close(self) -> None:
        self.closed = True


@dataclass
class Imported:
    """Imported roots; `fault` is why they cannot be read."""

    roots: DstackRoots | None = None
    fault: str | None = None
    replaced: bool | None = None

    async def dstack(self) -> DstackRoots | None:
        if self.fault is not None:
            raise LedgerUnavailable("not readable", reason=self.fault)
        return self.roots

    async def import_dstack(self, roots: DstackRoots, *, action: OperatorAction, replace: bool) -> bool:
        assert (action.action, action.target) == ("keys-restore", "dstack")
        self.roots, self.replaced = roots, replace
        return True


@dataclass
class Log(MemoryActions):
    """The record, and beside it what else happened, in order."""

    happened: list[str] = field(default_factory=list)
    full: bool = False

    @override
    async def record(self, action: OperatorAction) -> None:
        if self.full:
            raise LedgerUnavailable("the disk is full")
        self.happened.append(f"{action.action}: {action.outcome}")
        await super().record(action)


def custody(
    log: Log,
    *,
    root: RootInMemory | None = None,
    imported: Imported | None = None,
    registered: Registered | None = None,
) -> RootCustody:
    return RootCustody(
        root=root or RootInMemory(SECRETS),
        mode=Mode.PRODUCTION,
        register=cast("KeyRegister", registered or Registered()),
        foreign=imported or Imported(),
        journal=journal(log),
        clock=lambda: NOW,
        randomness=os.urandom,
    )


def never(_: bytes) -> None:
    pytest.fail("written")


class TestExport:
    async def test_it_is_recorded_before_it_is_written(self) -> None:
        log, written = Log(), list[bytes]()

        def write(content: bytes) -> None:
            log.happened.append("written")
            written.append(content)

        backup = await custody(log, imported=Imported(DSTACK)).export(ADMIN, TO_ALICE, write)
        assert log.happened == ["keys-export: done", "written"]
        assert log.recorded[0].details == {
            "recipients": [{"name": "alice", "public_key_sha256": TO_ALICE[0].fingerprint.hex()}],
            "epochs": [1, 2],
            "dstack": True,
            "backup_sha256": sha256(written[0]).hexdigest(),
        }
        assert Backup.parse(written[0]) == backup
        assert backup.open(ALICE) == RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS, dstack=DSTACK)
        assert backup.description.history == HISTORY

    async def test_a_register_that_cannot_be_believed_is_not_backed_up(self) -> None:
        log = Log()
        with pytest.raises(LedgerUnavailable, match="older copy"):
            await custody(log, registered=Registered(trusted=False)).export(ADMIN, TO_ALICE, never)
        assert log.happened == []

    async def test_a_root_without_an_epoch_that_guests_use_is_not_exported(self) -> None:
        log = Log()
        with pytest.raises(RootKeyUnavailable, match="no epoch 2") as refused:
            await custody(log, root=RootInMemory({1: SECRETS[1]})).export(ADMIN, TO_ALICE, never)
        assert refused.value.reason == "root-epoch-missing"
        assert log.happened == []

    async def test_an_epoch_that_nobody_adopted_is_backed_up_as_that(self) -> None:
        registered = Registered(EpochTable((FIRST,)))
        backup = await custody(Log(), registered=registered).export(ADMIN, TO_ALICE, lambda _: None)
        assert list(backup.description.check_values) == [1, 2]
        assert backup.description.history.epochs.newest.number == 1

    async def test_what_cannot_be_recorded_is_not_written(self) -> None:
        with pytest.raises(LedgerUnavailable):
            await custody(Log(full=True)).export(ADMIN, TO_ALICE, never)

    async def test_what_was_not_written_is_recorded_as_well(self) -> None:
        log = Log()

        def fails(_: bytes) -> NoReturn:
            log.full = "then" in log.happened
            raise ConfigurationError("no space")

        with pytest.raises(ConfigurationError, match="no space"):
            await custody(log).export(ADMIN, TO_ALICE, fails)
        assert log.happened == ["keys-export: done", "keys-export: configuration"]
        log.happened.append("then")
        with pytest.raises(ConfigurationError, match="no space"):
            await custody(log).export(ADMIN, TO_ALICE, fails)

    async def test_a_root_that_does_not_answer_guests_is_not_exported(self) -> None:
        log, other = Log(), RootInMemory(SECRETS, answering={**SECRETS, 2: b"x" * 32})
        with pytest.raises(RootKeyUnavailable, match="epoch 2") as refused:
            await custody(log, root=other).export(ADMIN, TO_ALICE, never)
        assert refused.value.reason == "root-key-changed"
        assert log.happened == []

    async def test_imported_roots_that_cannot_be_read_are_not_left_out_silently(self) -> None:
        imported = Imported(fault="foreign-roots-untrusted")
        with pytest.raises(LedgerUnavailable):
            await custody(Log(), imported=imported).export(ADMIN, TO_ALICE, never)


class TestFinishingARestore:
    async def finish(self, log: Log, imported: Imported, roots: DstackRoots | None = DSTACK) -> str | None:
        root = RootCopy(mode=Mode.PRODUCTION, secrets=SECRETS, dstack=roots)
        done = await custody(log, imported=imported).finish_restore(
            ADMIN, root, root.described(NOW, HISTORY), digest="00" * 32, made=True
        )
        assert log.recorded[-1].details["dstack"] == done
        assert log.recorded[-1].details["root_made"] is True
        return done

    @pytest.mark.parametrize(
        ("imported", "said", "kept", "replaced"),
        [
            (Imported(), "restored", DSTACK, False),
            (Imported(fault="foreign-roots-untrusted"), "restored", DSTACK, True),
            (Imported(DSTACK), "here already", DSTACK, None),
            (Imported(OTHERS), "others are here, and stay", OTHERS, None),
        ],
        ids=["none", "unusable", "the same", "others"],
    )
    async def test_imported_roots_come_back_where_there_are_none_that_can_be_used(
        self, imported: Imported, said: str, kept: DstackRoots, replaced: bool | None
    ) -> None:
        assert await self.finish(Log(), imported) == said
        assert (imported.roots, imported.replaced) == (kept, replaced)

    async def test_without_imported_roots_in_the_backup_those_here_stay(self) -> None:
        imported = Imported(OTHERS)
        assert await self.finish(Log(), imported, roots=None) is None
        assert imported.roots == OTHERS

    async def test_a_database_that_does_not_answer_is_not_one_without_imported_roots(self) -> None:
        log, imported = Log(), Imported(fault="ledger-busy")
        with pytest.raises(LedgerUnavailable):
            await self.finish(log, imported)
        assert (log.happened, imported.replaced) == ([], None)


class TestPassphrase:
    @pytest.mark.parametrize("encrypted", [True, False])
    async def test_it_is_recorded_before_the_file_changes(self, encrypted: bool) -> None:
        log = Log()
        await custody(log).change_passphrase(
            ADMIN, lambda: log.happened.append("changed"), encrypted=encrypted
        )
        assert log.happened == ["keys-passphrase: done", "changed"]
        assert log.recorded[0].details == {"encrypted": encrypted}

    async def test_what_cannot_be_recorded_changes_nothing(self) -> None:
        with pytest.raises(LedgerUnavailable):
            await custody(Log(full=True)).change_passphrase(ADMIN, pytest.fail, encrypted=False)

    async def test_a_change_that_failed_is_recorded_as_well(self) -> None:
        log = Log()

        def fails() -> NoReturn:
            raise ConfigurationError("the passphrase is short")

        with pytest.raises(ConfigurationError, match="short"):
            await custody(log).change_passphrase(ADMIN, fails, encrypted=True)
        assert log.happened == ["keys-passphrase: done", "keys-passphrase: configuration"]

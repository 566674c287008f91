"""The register of epochs and of generations of the KMS identity, in the database.

Whoever can write the database, but has neither the root key nor this server's anchor, cannot add an epoch,
end one, bring one back, or make an older one current again: rows carry MACs (`kms.database.key_rows`), and
how far they had come is remembered outside (`KeyProgress`), so that an older copy of them is noticed. What is
not noticed: the time of an epoch that waits, or came within minutes, set back to one that it was given
before. A server that has never seen this database believes what it is shown first: a new replica is given the
anchor of another.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.dialect import triggers_and_views
from kms.database.engine import reading, writing
from kms.database.installation import adopt_check_values, stored_check_values
from kms.database.key_changes import (
    Alarm,
    require_move,
    require_newest,
    require_progress,
    require_retirement,
    require_unchanged,
    taken,
)
from kms.database.key_memory import KeyMemory
from kms.database.key_rows import KeyRows, Values
from kms.database.recording import Recorder
from kms.database.records import decisions_after
from kms.database.schema import key_epochs, key_identities
from kms.errors import ConfigurationError, KeysConflict, LedgerUnavailable
from kms.keys.epochs import Epoch, EpochTable, KeyProgress
from kms.keys.root_messages import FOUNDING_EPOCH
from kms.keys.row_seal import RowSeal
from kms.ledger.actions import OperatorAction
from kms.operator_ports import Generation, LastLook, SeenKeys
from kms.ports import Clock
from kms.strict_json import JsonValue

# The first epoch was always in use. With the time of the first start, a server whose clock is behind that of
# the one that founded would refuse every guest meanwhile.
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


class KeyStore:
    """Implements `kms.operator_ports.KeyRegister` and `kms.ports.Epochs`. `monotonic` gives seconds."""

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        seal: RowSeal,
        *,
        anchor: SeenKeys,
        recorder: Recorder,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._rows = KeyRows(seal)
        self._memory = KeyMemory(anchor, monotonic=monotonic)
        self._recorder = recorder
        self._verified: tuple[tuple[Values, ...], EpochTable] | None = None
        self._alarm = Alarm(monotonic)

    async def found(self, made_by: str) -> None:
        """Make the row of the first epoch, in a database without rows of epochs; `epochs` judges those.

        Raises:
            ConfigurationError: it had rows, and they were removed; or whether it had cannot be told.
            LedgerUnavailable: it did not answer, or did not keep the row.

        """
        async with reading(self._engine) as connection:
            if await _all(connection, key_epochs):
                return
        try:
            seen = await self._memory.seen()
        except LedgerUnavailable as error:
            raise ConfigurationError(
                f"the database has no epochs, and whether it had some cannot be told: {error.detail}",
                remedy="mend what remembers it (KMS_LEDGER_ANCHOR)",
            ) from error
        first = Epoch(number=FOUNDING_EPOCH, made_at=self._clock(), made_by=made_by, active_from=_ALWAYS)
        async with writing(self._engine) as connection:
            if await _all(connection, key_epochs):
                return  # another server was faster
            if max({seen.epochs, *await stored_check_values(connection)}) > FOUNDING_EPOCH:
                raise ConfigurationError(
                    "the database has no epochs, and it had several",
                    remedy="restore the database from its newest copy; if there is none, `kms keys restore`"
                    " writes what the newest backup of the root knows of them",
                )
            await connection.execute(insert(key_epochs).values(self._rows.of_epoch(first)))
            await self._require_epochs(connection, EpochTable((first,)))

    async def restore(
        self,
        table: EpochTable,
        check_values: Mapping[int, bytes],
        generations: Sequence[Generation],
        action: OperatorAction,
    ) -> bool:
        """Write what a backup knows; see `kms.administration.restoring.LostRegister.restore`."""
        seen = await self._memory.seen()
        async with writing(self._engine) as connection:
            if await _all(connection, key_epochs):
                return False
            there = self._rows.generations(await _all(connection, key_identities))
            missing = generations[len(there) :]
            progress = KeyProgress(generations=1 + len(there) + len(missing))
            progress = progress.with_epochs(table, self._clock())
            adopted = KeyProgress(epochs=max(await stored_check_values(connection), default=0))
            require_newest(progress, seen.united(adopted))
            await connection.execute(insert(key_epochs), [self._rows.of_epoch(each) for each in table.epochs])
            if missing:
                rows = [self._rows.of_generation(each) for each in missing]
                await connection.execute(insert(key_identities), rows)
            await adopt_check_values(connection, check_values, self._clock())
            await self._recorder.record_action(connection, action)
            await self._require_epochs(connection, table)
        await self._memory.keep_committed(self._memory.believed(progress))
        return True

    async def epochs(self) -> EpochTable:
        """Give the epochs; see `kms.ports.Epochs.epochs`. One small query, unless something changed."""
        seen = await self._memory.seen()
        async with reading(self._engine) as connection:
            rows = await _all(connection, key_epochs)
        table, progress = self._verify_epochs(rows, seen)
        await self._memory.keep(self._memory.believed(progress))
        return table

    async def epochs_to_rotate(self) -> EpochTable:
        """Give the epochs to operators; see `KeyRegister.epochs_to_rotate`."""
        seen = await self._memory.seen()
        async with reading(self._engine) as connection:
            rows = await _all(connection, key_epochs)
        return self._verify_epochs(rows, replace(seen, in_use=0))[0]

    async def add_epoch(self, epoch: Epoch, check_value: bytes, action: OperatorAction) -> None:
        """Adopt an epoch; see `KeyRegister.add_epoch`.

        Raises:
            KeysConflict: also reason ``root-key-changed``, the database has another check value for it.
            ValueError: it is not the next one.

        """
        seen = await self._memory.seen()
        async with writing(self._engine) as connection:
            table, _ = self._verify_epochs(await _all(connection, key_epochs), seen)
            there = table.epoch(epoch.number)
            if there is not None:
                raise taken("epoch", there)
            grown = table.with_epoch(epoch)
            await connection.execute(insert(key_epochs).values(self._rows.of_epoch(epoch)))
            values = {epoch.number: check_value}
            try:
                await adopt_check_values(connection, values, self._clock())
            except ConfigurationError as error:
                raise KeysConflict(error.detail, reason="root-key-changed") from error
            await self._recorder.record_action(connection, action)
            await self._require_epochs(connection, grown)
            if not values.items() <= (await stored_check_values(connection)).items():
                raise LedgerUnavailable("the database did not keep the key-check value that it was given")
        await self._keep_changed(seen, grown, epoch)

    async def move_epoch(self, old: Epoch, new: Epoch, action: OperatorAction) -> None:
        """Give an epoch another time; see `KeyRegister.move_epoch`.

        Raises:
            ValueError: `new` is not `old` with another time.

        """

        def moved(_: Sequence[JsonValue]) -> OperatorAction:
            require_move(old, new, self._clock())
            return action

        await self._change(old, new, moved)

    async def retire_epoch(self, old: Epoch, new: Epoch, *, after: int, last_look: LastLook) -> None:
        """End an epoch; see `KeyRegister.retire_epoch`.

        Raises:
            ValueError: `new` is not `old` with its end.

        """
        require_retirement(old, new)
        await self._change(old, new, last_look, after=after)

    async def _change(self, old: Epoch, new: Epoch, decide: LastLook, *, after: int | None = None) -> None:
        seen = await self._memory.seen()
        async with writing(self._engine) as connection:
            table = self._read_epochs(await _all(connection, key_epochs))
            require_unchanged(old, table.epoch(old.number))
            # The write lock is held: whoever took a key of this epoch is recorded, or will not get it.
            late: list[tuple[int, JsonValue]] = []
            if after is not None:
                late = (await decisions_after(connection, after, self._recorder)).decisions
            action = decide([entry for _, entry in late])
            changed = table.with_epoch(new)
            # What was there may lack something: by a move, operators mend that what was in use waits again.
            self._require_progress(changed, seen)
            this = key_epochs.c.epoch == old.number
            await connection.execute(update(key_epochs).where(this).values(self._rows.of_epoch(new)))
            await self._recorder.record_action(connection, action)
            await self._require_epochs(connection, changed)
        await self._keep_changed(seen, changed, new)

    async def _keep_changed(self, seen: KeyProgress, table: EpochTable, epoch: Epoch) -> None:
        """Keep what operators made of an epoch. What the clock says of the others is for `epochs` to keep."""
        now = self._clock()
        in_use = epoch.number if epoch.active_from <= now else seen.in_use
        await self._memory.keep_committed(replace(seen.with_epochs(table, now), in_use=in_use))

    async def generations(self) -> tuple[Generation, ...]:
        """Give the generations; see `KeyRegister.generations`."""
        seen = await self._memory.seen()
        async with reading(self._engine) as connection:
            rows = await _all(connection, key_identities)
        generations, progress = self._verify_generations(rows, seen)
        await self._memory.keep(progress)
        return generations

    async def add_generation(self, generation: Generation, action: OperatorAction) -> None:
        """Add a generation; see `KeyRegister.add_generation`. Raises `ValueError`: it is not the next one."""
        seen = await self._memory.seen()
        async with writing(self._engine) as connection:
            there, before = self._verify_generations(await _all(connection, key_identities), seen)
            for each in there:
                if each.number == generation.number:
                    raise taken("generation", each)
            if generation.number != before.generations + 1:
                raise ValueError("not the next generation")
            await connection.execute(insert(key_identities).values(self._rows.of_generation(generation)))
            await self._recorder.record_action(connection, action)
            await self._require_no_triggers(connection)
            written, progress = self._verify_generations(await _all(connection, key_identities), seen)
            if written != (*there, generation):
                raise LedgerUnavailable("the database did not keep the generation that it was given")
        await self._memory.keep_committed(progress)

    def _verify_epochs(self, rows: tuple[Values, ...], seen: KeyProgress) -> tuple[EpochTable, KeyProgress]:
        table = self._read_epochs(rows)
        return table, self._require_progress(table, seen)

    def _read_epochs(self, rows: tuple[Values, ...]) -> EpochTable:
        with self._alarm.watching():
            if self._verified is None or self._verified[0] != rows:
                self._verified = rows, self._rows.epochs(rows)
            return self._verified[1]

    def _require_progress(self, table: EpochTable, seen: KeyProgress) -> KeyProgress:
        with self._alarm.watching():
            progress = seen.with_epochs(table, self._clock())
            require_progress(progress, seen)
            return progress

    def _verify_generations(
        self, rows: tuple[Values, ...], seen: KeyProgress
    ) -> tuple[tuple[Generation, ...], KeyProgress]:
        with self._alarm.watching():
            generations = self._rows.generations(rows)
            progress = replace(seen, generations=1 + len(generations))
            require_progress(progress, seen)
        return generations, progress

    async def _require_epochs(self, connection: AsyncConnection, expected: EpochTable) -> None:
        """Read back what was written: a database with triggers may do something else, and say nothing."""
        await self._require_no_triggers(connection)
        if self._rows.epochs(await _all(connection, key_epochs)) != expected:
            raise LedgerUnavailable("the database did not keep the epoch that it was given")

    async def _require_no_triggers(self, connection: AsyncConnection) -> None:
        if triggers := await connection.run_sync(triggers_and_views):
            raise LedgerUnavailable(f"the database may not keep what it is given: {', '.join(triggers)}")


async def _all(connection: AsyncConnection, table: Table) -> tuple[Values, ...]:
    [number] = table.primary_key.columns
    return tuple(tuple(row) for row in await connection.execute(select(table).order_by(number)))

"""Epochs of the root and generations of the KMS identity: making them, and ending epochs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.administration.rotation import LeftBehind, who_took
from kms.encoding import b64url
from kms.errors import ConfigurationError, EpochInUse, KeysConflict, LedgerUnavailable, MalformedRequest
from kms.identifiers import AppId
from kms.keys.epochs import Epoch, EpochState, EpochTable
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.operator_ports import Generation, KeyRegister, Records, RootVersions
from kms.operators import Actor, Permission
from kms.ports import Clock, Policies
from kms.strict_json import JsonValue

FURTHEST_AHEAD: Final = timedelta(days=366)
_ROTATE: Final = "keys-rotate"
_SCHEDULE: Final = "keys-schedule"
_RETIRE: Final = "keys-retire"
_ROTATE_IDENTITY: Final = "keys-rotate-identity"
_TIME_INVALID: Final = "keys-time-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAdministration:
    """Implements `kms.administration.office.KeyWork`.

    `identities` gives the public key (32 bytes) of a generation of the KMS identity. `pause` lets others have
    their turn.
    """

    register: KeyRegister
    versions: RootVersions
    records: Records
    policies: Policies
    journal: Journal
    clock: Clock
    identities: Callable[[int], Awaitable[bytes]]
    pause: Callable[[], Awaitable[None]]

    async def keys(self, actor: Actor) -> Json:
        """Give the epochs and the generations of the identity; see `KeyWork.keys`.

        `not_adopted` are versions of the root that a crash left before they were: the next rotation adopts
        them.

        Raises:
            Forbidden: the role does not include it.
            RootKeyUnavailable: the root cannot be asked now.

        """
        await self.journal.require(actor, Permission.READ_KEYS, "keys-list")
        now, table = self.clock(), await self.register.epochs()
        later = await self.register.generations()
        generations: list[JsonValue] = [await self._generation_json(1, None)]
        generations += [await self._generation_json(each.number, each) for each in later]
        return {
            "epochs": [_epoch_json(table, each, now) for each in table.epochs],
            "current": table.current(now),
            "not_adopted": [each for each in await self.versions.versions() if table.epoch(each) is None],
            "identity": {"generation": len(generations), "generations": generations},
        }

    async def rotate(self, actor: Actor, *, at: datetime | None) -> Json:
        """Make the next epoch, or give the one that waits its time; see `KeyWork.rotate`.

        The root's new version is durable where it lives before anything names it here.

        Raises:
            Forbidden: the role does not include it.
            KeysConflict: somebody else rotated just now; or reason ``keys-time-invalid``, `at` is past or too
                far ahead; or ``root-version-refused``, the root key provider makes no version.
            RootKeyUnavailable: the root cannot be asked now.

        """
        action = _ROTATE if at is None else _SCHEDULE
        await self.journal.require(actor, Permission.CHANGE_KEYS, action)
        now, table = self.clock(), await self.register.epochs()
        newest = table.newest
        waits = newest.active_from > now
        async with self._refusals_recorded(actor, action, newest.number if waits else newest.number + 1):
            if at is not None and not now < at <= now + FURTHEST_AHEAD:
                raise KeysConflict(
                    f"an epoch's time is one to come, within {FURTHEST_AHEAD.days} days", reason=_TIME_INVALID
                )
            if waits:
                epoch = replace(newest, active_from=at or now)
                await self.register.change_epoch(newest, epoch, self._entry(actor, action, epoch))
            else:
                check_value = await self._ensure(newest.number + 1)
                now = self.clock()
                epoch = Epoch(
                    number=newest.number + 1, made_at=now, made_by=actor.name, active_from=at or now
                )
                await self.register.add_epoch(epoch, check_value, self._entry(actor, action, epoch))
        return {"epoch": _epoch_json(table.with_epoch(epoch), epoch, now)}

    async def retire(self, actor: Actor, epoch: int, *, seen_within: timedelta, force: bool) -> Json:
        """End an epoch for ever; see `KeyWork.retire`.

        Who took which epoch is looked up in the record (`kms.administration.rotation`), as far back as the
        next epoch exists. Where that cannot be told, or the policy in force pins an app to the epoch, it is
        refused as well, unless forced. The answer names those that were left behind all the same.

        Raises:
            Forbidden: the role does not include it.
            KeysConflict: somebody else changed it just now; or reason ``epoch-unknown``, ``epoch-current``,
                ``epoch-scheduled``, ``epoch-retired``; or ``keys-time-invalid``, `seen_within` is no time.
            EpochInUse: guests need it, or may; reason ``epoch-pinned``, ``records-damaged`` or
                ``too-many-records`` where no guest is known that does.

        """
        await self.journal.require(actor, Permission.CHANGE_KEYS, _RETIRE, str(epoch))
        now, table = self.clock(), await self.register.epochs()
        async with self._refusals_recorded(actor, _RETIRE, epoch):
            old = _retirable(table, epoch, now)
            if seen_within <= timedelta(0):
                raise KeysConflict("guests are seen within more than no time", reason=_TIME_INVALID)
            left = await self._left_behind(table, epoch, _before(now, seen_within))
            if not force:
                left.require_nobody()
            now = self.clock()
            new = replace(old, retired_at=now, retired_by=actor.name)
            seconds = int(seen_within.total_seconds())
            details: Json = {"seen_within_seconds": seconds, "force": force, **left.facts()}
            entry = self.journal.entry(actor, _RETIRE, str(epoch), details=details)
            await self.register.change_epoch(old, new, entry)
        return {"epoch": _epoch_json(table.with_epoch(new), new, now), **left.to_json()}

    async def rotation(self, actor: Actor, *, app: str | None, since: timedelta) -> Json:
        """Say which guest took which epoch; see `KeyWork.rotation` and `Rotation.to_json`.

        Raises:
            Forbidden: the role does not include it.
            MalformedRequest: `app` is no app id.

        """
        for permission in (Permission.READ_KEYS, Permission.READ_RECORD):
            await self.journal.require(actor, permission, "keys-rotation")
        try:
            app_id = None if app is None else AppId.from_hex(app)
        except ValueError:
            raise MalformedRequest("an app id is 20 or 32 bytes in hex") from None
        rotation = await who_took(self.records, _before(self.clock(), since), self.pause, app=app_id)
        return rotation.to_json()

    async def rotate_identity(self, actor: Actor) -> Json:
        """Make the next generation of the KMS identity; see `KeyWork.rotate_identity`.

        Raises:
            Forbidden: the role does not include it.
            KeysConflict: somebody else made one just now.
            RootKeyUnavailable: the root cannot be asked now.

        """
        await self.journal.require(actor, Permission.CHANGE_KEYS, _ROTATE_IDENTITY)
        number = 2 + len(await self.register.generations())
        public_key = b64url(await self.identities(number))
        async with self._refusals_recorded(actor, _ROTATE_IDENTITY, number):
            generation = Generation(number=number, made_at=self.clock(), made_by=actor.name)
            details: Json = {"identity": public_key}
            entry = self.journal.entry(actor, _ROTATE_IDENTITY, str(number), details=details)
            await self.register.add_generation(generation, entry)
        return {"generation": number, "identity": public_key}

    async def _ensure(self, number: int) -> bytes:
        try:
            return await self.versions.ensure(number)
        except ConfigurationError as error:
            raise KeysConflict(
                f"the root key has no version {number}, and makes none: {error.detail}. {error.remedy}",
                reason="root-version-refused",
            ) from error

    async def _left_behind(self, table: EpochTable, epoch: int, seen_since: datetime) -> LeftBehind:
        newer = table.epoch(epoch + 1)
        since = seen_since if newer is None else min(seen_since, newer.made_at)
        rotation = await who_took(self.records, since, self.pause)
        return LeftBehind(
            guests=rotation.left_behind(epoch, seen_since),
            pinned=await self._pinned_to(epoch),
            damaged=rotation.damaged,
            complete=rotation.complete,
        )

    async def _pinned_to(self, epoch: int) -> frozenset[AppId] | None:
        """Give the apps that the policy in force pins to an epoch; None where it cannot be told."""
        try:
            await self.policies.refresh()
            active = await self.policies.active()
        except LedgerUnavailable:
            return None
        apps = () if active is None else active.policy.apps
        return frozenset(app.id for app in apps if app.epoch == epoch)

    async def _generation_json(self, number: int, later: Generation | None) -> Json:
        return {
            "generation": number,
            "identity": b64url(await self.identities(number)),
            "made_at": None if later is None else timestamp(later.made_at),
            "made_by": None if later is None else later.made_by,
        }

    def _entry(self, actor: Actor, action: str, epoch: Epoch) -> OperatorAction:
        details: Json = {"active_from": timestamp(epoch.active_from)}
        return self.journal.entry(actor, action, str(epoch.number), details=details)

    @asynccontextmanager
    async def _refusals_recorded(self, actor: Actor, action: str, number: int) -> AsyncIterator[None]:
        try:
            yield
        except (KeysConflict, EpochInUse) as error:
            details: Json = {"reason": error.reason}
            await self.journal.record(actor, action, str(number), outcome=error.code, details=details)
            raise


def _retirable(table: EpochTable, number: int, now: datetime) -> Epoch:
    epoch = table.epoch(number)
    if epoch is None:
        raise KeysConflict(f"there is no epoch {number}", reason="epoch-unknown")
    state = table.state(epoch, now)
    if state is not EpochState.AVAILABLE:
        raise KeysConflict(
            f"epoch {number} is {state}; only an older one that is available can be retired",
            reason=f"epoch-{state}",
            details={"epoch": _epoch_json(table, epoch, now)},
        )
    return epoch


def _epoch_json(table: EpochTable, epoch: Epoch, now: datetime) -> Json:
    return {
        "epoch": epoch.number,
        "state": table.state(epoch, now).value,
        "made_at": timestamp(epoch.made_at),
        "made_by": epoch.made_by,
        "active_from": timestamp(epoch.active_from),
        "retired_at": None if epoch.retired_at is None else timestamp(epoch.retired_at),
        "retired_by": epoch.retired_by,
    }


def _before(now: datetime, span: timedelta) -> datetime:
    """Give the moment so long ago, or the first one that there is."""
    return now - min(span, now - datetime.min.replace(tzinfo=UTC))

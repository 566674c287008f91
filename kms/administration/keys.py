"""Epochs of the root and generations of the KMS identity: making them, and ending epochs."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from kms.administration.key_shapes import epoch_json, generation_json
from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.administration.retiring import LeftBehind, pinned_to, require_retirable
from kms.administration.rotation import who_took
from kms.encoding import b64url
from kms.errors import (
    ConfigurationError,
    EpochInUse,
    KeysConflict,
    MalformedRequest,
    RootKeyUnavailable,
)
from kms.identifiers import AppId
from kms.keys.epochs import Epoch
from kms.keys.hand_over import MAX_HAND_OVERS
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
        them. The epochs are shown also where the root does not answer, when they are asked for most; then
        `root` says why, and what only the root knows is null.

        Raises:
            Forbidden: the role does not include it.
            LedgerUnavailable: the database did not answer, or says what this KMS did not write.

        """
        await self.journal.require(actor, Permission.READ_KEYS, "keys-list")
        now, table = self.clock(), await self.register.epochs()
        generations = dict(enumerate((None, *await self.register.generations()), start=1))
        not_adopted: list[JsonValue] | None = None
        identities: dict[int, bytes] = {}
        root = None
        try:
            not_adopted = [each for each in await self.versions.versions() if table.epoch(each) is None]
            identities = {number: await self.identities(number) for number in generations}
        except RootKeyUnavailable as error:
            root = error.reason
        return {
            "epochs": [epoch_json(table, each, now) for each in table.epochs],
            "current": table.current(now),
            "root": root,
            "not_adopted": not_adopted,
            "identity": {
                "generation": len(generations),
                "generations": [
                    generation_json(number, identities.get(number), later)
                    for number, later in generations.items()
                ],
            },
        }

    async def rotate(self, actor: Actor, *, at: datetime | None) -> Json:
        """Make the next epoch, or give the one that waits its time; see `KeyWork.rotate`.

        The root's new version is durable where it lives before anything names it here. It is also the way
        out where the epochs are untrusted because one that was in use waits again, after a wrong clock.

        Raises:
            Forbidden: the role does not include it.
            KeysConflict: somebody else rotated just now; or reason ``keys-time-invalid``, `at` is past or too
                far ahead; or ``root-version-refused``, the root key provider makes no version.
            RootKeyUnavailable: the root cannot be asked now.

        """
        action = _ROTATE if at is None else _SCHEDULE
        await self.journal.require(actor, Permission.CHANGE_KEYS, action)
        now, table = self.clock(), await self.register.epochs_to_rotate()
        newest = table.newest
        waits = newest.active_from > now
        async with self._refusals_recorded(actor, action, newest.number if waits else newest.number + 1):
            if at is not None and not now < at <= now + FURTHEST_AHEAD:
                raise KeysConflict(
                    f"an epoch's time is one to come, within {FURTHEST_AHEAD.days} days", reason=_TIME_INVALID
                )
            if waits:
                epoch = replace(newest, active_from=at or now)
                await self.register.move_epoch(newest, epoch, self._entry(actor, action, epoch))
            else:
                check_value = await self._ensure(newest.number + 1)
                now = self.clock()
                epoch = Epoch(
                    number=newest.number + 1, made_at=now, made_by=actor.name, active_from=at or now
                )
                await self.register.add_epoch(epoch, check_value, self._entry(actor, action, epoch))
        return {"epoch": epoch_json(table.with_epoch(epoch), epoch, now)}

    async def retire(self, actor: Actor, epoch: int, *, seen_within: timedelta, force: bool) -> Json:
        """End an epoch for ever; see `KeyWork.retire`.

        Which guests are still of it is looked up in the record (`kms.administration.rotation`), until no
        release is recorded beside this. Where that cannot be told, or the policy in force pins an app to the
        epoch, it is refused as well, unless forced. The answer names those that were left behind all the
        same.

        Raises:
            Forbidden: the role does not include it.
            KeysConflict: somebody else changed it just now; or reason ``epoch-unknown``, ``epoch-current``,
                ``epoch-scheduled``, ``epoch-retired``; or ``keys-time-invalid``, `seen_within` is no time.
            EpochInUse: guests need it, or may; reason ``epoch-pinned``, ``epoch-pins-unknown``,
                ``records-damaged`` or ``too-many-records`` where no guest is known that does.
            LedgerUnavailable: as `keys`.

        """
        await self.journal.require(actor, Permission.CHANGE_KEYS, _RETIRE, str(epoch))
        now, table = self.clock(), await self.register.epochs()
        async with self._refusals_recorded(actor, _RETIRE, epoch):
            old = require_retirable(table, epoch, now)
            if seen_within <= timedelta(0):
                raise KeysConflict("guests are seen within more than no time", reason=_TIME_INVALID)
            seen_since = _before(now, seen_within)
            rotation = await who_took(self.records, seen_since, self.pause)
            pinned = await pinned_to(self.policies, epoch)
            new = replace(old, retired_at=self.clock(), retired_by=actor.name)
            left = LeftBehind.of(rotation, epoch, seen_since, pinned)

            def last_look(late: Sequence[JsonValue]) -> OperatorAction:
                nonlocal left
                for entry in late:
                    rotation.take(entry)
                if late:
                    left = LeftBehind.of(rotation, epoch, seen_since, pinned)
                if not force:
                    left.require_nobody()
                seconds = int(seen_within.total_seconds())
                details: Json = {"seen_within_seconds": seconds, "force": force, **left.facts()}
                return self.journal.entry(actor, _RETIRE, str(epoch), details=details)

            await self.register.retire_epoch(old, new, after=rotation.place, last_look=last_look)
        return {"epoch": epoch_json(table.with_epoch(new), new, self.clock()), **left.to_json()}

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
            KeysConflict: somebody else made one just now; or reason ``too-many-generations``, guests would
                not follow to the next one.
            RootKeyUnavailable: the root cannot be asked now.

        """
        await self.journal.require(actor, Permission.CHANGE_KEYS, _ROTATE_IDENTITY)
        number = 2 + len(await self.register.generations())
        async with self._refusals_recorded(actor, _ROTATE_IDENTITY, number):
            if number > 1 + MAX_HAND_OVERS:
                raise KeysConflict(
                    f"guests that pin an old identity follow {MAX_HAND_OVERS} hand-overs, and no more",
                    reason="too-many-generations",
                )
            public_key = b64url(await self.identities(number))
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


def _before(now: datetime, span: timedelta) -> datetime:
    """Give the moment so long ago, or the first one that there is."""
    return now - min(span, now - datetime.min.replace(tzinfo=UTC))

"""Rehearsing a policy: whom it would refuse or allow, by the record of this KMS."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kms.administration.beside import Beside
from kms.administration.office import Json
from kms.administration.what_if import what_if
from kms.evidence.launch import LaunchFinder
from kms.judgement import Circumstances
from kms.operator_ports import Records
from kms.policy.compiled import Policy
from kms.policy.revision import Revision
from kms.policy_authority import PolicyUntrusted
from kms.ports import Clock, Identities, Policies
from kms.snp.advisories import Advisories


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRehearsal:
    """Implements `kms.administration.policy_desk.Rehearsal`. `pause` lets others have their turn."""

    records: Records
    policies: Policies
    clock: Clock
    development: bool
    identities: Identities
    advisories: Advisories
    beside: Beside
    pause: Callable[[], Awaitable[None]]

    async def __call__(self, candidate: Revision, since: timedelta) -> Json:
        """Judge what was recorded in the last `since`."""
        policy = await self.beside(lambda: Policy(candidate))
        launches = LaunchFinder(policy)
        await self.beside(launches.fill)
        try:
            active = await self.policies.active()
        except PolicyUntrusted:
            active = None
        now = self.clock()
        return await what_if(
            policy,
            launches,
            self.records,
            since=now - min(since, now - datetime.min.replace(tzinfo=UTC)),
            circumstances=Circumstances(
                now=now,
                development=self.development,
                kms_identities=(await self.identities.known()).public_keys,
                advisories=self.advisories,
            ),
            in_force=None if active is None else active.policy,
            pause=self.pause,
        )

"""Why the server cannot serve now, by name: what `/readyz` asks."""

from collections.abc import Callable
from dataclasses import dataclass

from kms.database.decisions import DecisionStore
from kms.database.policy_store import PolicyStore
from kms.errors import LedgerUnavailable, RootKeyUnavailable
from kms.kds.service import CollateralService
from kms.keys.root_messages import FOUNDING_EPOCH
from kms.ledger_following import FollowedLedger
from kms.policy_folder.watching import FolderWatcher
from kms.policy_following import FollowedPolicies
from kms.ports import Clock, Epochs, RootKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NotReady:
    """Asks each part of a server. `watcher` is None where no folder is watched.

    A server that is told to stop says so and serves on for a while: load balancers notice in time.
    """

    revisions: PolicyStore
    policies: FollowedPolicies
    decisions: DecisionStore
    ledger: FollowedLedger
    root_key: RootKey
    epochs: Epochs
    clock: Clock
    collateral: CollateralService
    watcher: FolderWatcher | None
    told_to_stop: Callable[[], bool]

    async def reasons(self) -> tuple[str, ...]:
        """Give the names of what is wrong; none when the server is ready."""
        watcher = self.watcher
        found = {
            "stopping": self.told_to_stop(),
            "policy-untrusted": self.policies.refused,
            "policy-not-followed": self.policies.stale,
            "policy-missing": not self.policies.loaded and not self.policies.refused,
            "policy-folder-unsigned": watcher is not None and watcher.unsigned,
            "policy-folder-invalid": watcher is not None and watcher.failing,
            "policy-watcher-stopped": watcher is not None and not watcher.alive,
            "policy-follower-stopped": not self.policies.alive,
            "collateral-stopped": not self.collateral.alive,
            "ledger-stopped": not self.ledger.alive,
            "ledger-not-followed": self.ledger.stale,
            "record-stopped": not self.decisions.alive,
        }
        reasons = [name for name, holds in found.items() if holds]
        if self.ledger.refused is not None:
            reasons.append(self.ledger.refused.reason)
        elif (failure := await self.decisions.failure()) is not None:
            reasons.append("record-failing" if failure == LedgerUnavailable.code else failure)
        current = None
        try:
            await self.revisions.head()
            current = (await self.epochs.epochs()).current(self.clock())
        except LedgerUnavailable as error:
            reasons.append("database-unavailable" if error.reason == error.code else error.reason)
        try:
            await self.root_key.check(current or FOUNDING_EPOCH)
        except RootKeyUnavailable as error:
            reasons.append(error.reason)
        return tuple(dict.fromkeys(reasons))

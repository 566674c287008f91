"""Operators' work: policies and their history, the record, images, operators."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.backups import RootCustody
from kms.administration.images import ImageAdministration
from kms.administration.keys import KeyAdministration
from kms.administration.ledger import LedgerAdministration
from kms.administration.office import Office
from kms.administration.operators import OperatorAdministration
from kms.administration.permission import Journal
from kms.administration.policies import PolicyAdministration
from kms.administration.records import RecordAdministration
from kms.administration.rehearsal import RecordRehearsal
from kms.database.foreign_roots import ForeignRootStore
from kms.database.ledger import LedgerStore
from kms.database.records import DecisionRecords
from kms.desk import ReleaseDesk
from kms.ledger.ledger_key import LedgerKey
from kms.ledger_publishing import PublicLedger
from kms.policy_following import FollowedPolicies, LoadedPolicy
from kms.ports import Policies
from kms.rootkey import CheckedRoot
from kms.settings import Settings
from kms.wiring.core import OneAtATime, PolicyParts, opened_core
from kms.wiring.keys import KeyParts


@asynccontextmanager
async def open_office(settings: Settings) -> AsyncIterator[Office]:
    """Open operators' work on the settings' database, for commands: a server may be running beside.

    Raises:
        ConfigurationError: the operator must change something; it says what.

    """
    async with opened_core(settings) as (core, _):
        yield build_office(
            core.stores.engine, core.parts, core.desk, core.keys, OnDemand(core.parts.followed)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalKeys:
    """What commands need that work on keys where they are kept, and nowhere else."""

    root: CheckedRoot
    foreign: ForeignRootStore
    journal: Journal
    custody: RootCustody


@asynccontextmanager
async def open_key_stores(settings: Settings) -> AsyncIterator[LocalKeys]:
    """Open root key and imported roots on the settings' database, for commands: a server may run beside.

    Raises:
        ConfigurationError: the operator must change something; it says what.
        RootKeyUnavailable: the root cannot be used now.

    """
    async with opened_core(settings) as (core, checked):
        foreign, journal = core.keys.foreign, core.parts.journal
        yield LocalKeys(
            root=core.root,
            foreign=foreign,
            journal=journal,
            custody=RootCustody(
                root=core.root.provider,
                mode=checked.root_access.mode,
                register=core.keys.register,
                foreign=foreign,
                journal=journal,
                clock=core.desk.clock,
                randomness=core.desk.randomness,
            ),
        )


def build_office(
    engine: AsyncEngine,
    parts: PolicyParts,
    desk: ReleaseDesk,
    keys: KeyParts,
    policies: Policies,
) -> Office:
    """Build operators' work beside a release desk; `policies` give the one in force."""
    changer, journal = parts.changer, parts.journal

    async def public_key(generation: int) -> bytes:
        return (await keys.identities.identity(generation)).public_key

    beside = OneAtATime()
    records = DecisionRecords(engine, keys.recorder)
    return Office(
        policies=PolicyAdministration(
            changer=changer,
            journal=journal,
            clock=desk.clock,
            beside=beside,
            advisories=desk.advisories,
            development=desk.development,
            rehearse=RecordRehearsal(
                records=records,
                policies=policies,
                clock=desk.clock,
                development=desk.development,
                identities=desk.identities,
                advisories=desk.advisories,
                beside=beside,
                pause=partial(asyncio.sleep, 0),
            ),
        ),
        records=RecordAdministration(
            records=records,
            history=parts.store,
            policies=policies,
            authenticator=desk.authenticator,
            advisories=desk.advisories,
            journal=journal,
            clock=desk.clock,
            beside=beside,
            epochs=desk.epochs,
            identities=desk.identities,
            development=desk.development,
        ),
        images=ImageAdministration(policies=policies, journal=journal, beside=beside),
        operators=OperatorAdministration(
            register=parts.register, journal=journal, randomness=desk.randomness
        ),
        keys=KeyAdministration(
            register=keys.register,
            versions=keys.root,
            records=records,
            policies=policies,
            journal=journal,
            clock=desk.clock,
            identities=public_key,
            pause=partial(asyncio.sleep, 0),
        ),
        ledger=LedgerAdministration(
            reader=LedgerStore(engine), public=public_ledger(engine, keys), journal=journal
        ),
    )


def public_ledger(engine: AsyncEngine, keys: KeyParts) -> PublicLedger:
    """Build what anybody may ask of the ledger."""
    return PublicLedger(
        reader=LedgerStore(engine), key=LedgerKey.of(keys.checkpoint_key), identity=keys.identity
    )


class OnDemand:
    """Implements `kms.ports.Policies` for commands: the policy is loaded when it is first asked for."""

    def __init__(self, followed: FollowedPolicies) -> None:
        self._followed = followed

    async def active(self) -> LoadedPolicy | None:
        """Give the revision in force; see `Policies.active`."""
        await self.refresh()
        return await self._followed.active()

    async def refresh(self) -> None:
        """Look again; see `Policies.refresh`."""
        await self._followed.refresh()

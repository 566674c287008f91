"""What a server and an operator's command have in common: the release desk and the policy in force."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.changing import PolicyChanger
from kms.administration.folder import FolderPolicies
from kms.administration.permission import Journal
from kms.anchor import Anchor
from kms.authenticity import Authenticator
from kms.clock_watch import ClockWatch
from kms.database.actions import ActionStore
from kms.database.decisions import DecisionStore
from kms.database.kept_epochs import KeptEpochs
from kms.database.operators import OperatorStore
from kms.database.policy_store import PolicyStore
from kms.database.recording import Recorder
from kms.desk import ReleaseDesk
from kms.kds.client import KdsClient, ObserveRequest, unobserved
from kms.kds.service import CollateralService
from kms.keys.row_seal import RowSeal
from kms.packaged import load_advisories
from kms.policy.diff import Difference, differences
from kms.policy.revision import Revision
from kms.policy.trust import PolicyTrust
from kms.policy_authority import PolicyAuthority
from kms.policy_following import FollowedPolicies
from kms.ports import Clock
from kms.preflight import Checked, check_settings
from kms.rootkey import CheckedRoot, open_checked_root
from kms.settings import Settings
from kms.snp.revocation import Revocation, RevocationMode
from kms.snp.roots import TrustedRoots
from kms.start_lock import alone_in
from kms.telemetry.metrics import Metrics
from kms.wiring.keys import KeyParts, key_parts
from kms.wiring.stores import Stores, keep_files_private, new_id, open_stores_in, utc_now
from kms.wiring.telemetry import observe_commits, observe_root, observe_services

T = TypeVar("T")


class OneAtATime:
    """Computes beside the event loop, one thing at a time: operators' work never starves guests."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Compute in a thread."""
        async with self._turn:
            return await asyncio.to_thread(work)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParts:
    """What follows and changes the policy in force, built."""

    store: PolicyStore
    changer: PolicyChanger
    followed: FollowedPolicies
    folder: FolderPolicies
    register: OperatorStore
    journal: Journal


def policy_parts(
    engine: AsyncEngine,
    *,
    seal: RowSeal,
    recorder: Recorder,
    kms_identity: bytes,
    trust: PolicyTrust | None,
    anchor: Anchor,
    clock: Clock,
    new_id: Callable[[], str],
) -> PolicyParts:
    """Build what follows and changes the policy in force."""
    store = PolicyStore(engine, clock, seal=seal, kms_identity=kms_identity, recorder=recorder)
    beside = OneAtATime()

    async def compare(old: Revision | None, new: Revision) -> tuple[Difference, ...]:
        return await beside(partial(differences, old, new))

    authority = PolicyAuthority(trust=trust, kms_identity=kms_identity, compare=compare)
    changer = PolicyChanger(history=store, authority=authority, anchor=anchor, clock=clock, beside=beside)
    journal = Journal(actions=ActionStore(engine, recorder), clock=clock, new_id=new_id)
    return PolicyParts(
        store=store,
        changer=changer,
        followed=FollowedPolicies(store, authority, anchor),
        folder=FolderPolicies(changer=changer, journal=journal),
        register=OperatorStore(engine, clock, seal, recorder=recorder),
        journal=journal,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What a server and an operator's command have in common, built and at rest.

    `founding` says that this KMS did nothing yet before this start.
    """

    founding: bool
    stores: Stores
    root: CheckedRoot
    keys: KeyParts
    parts: PolicyParts
    decisions: DecisionStore
    collateral: CollateralService
    desk: ReleaseDesk


async def build_core(
    settings: Settings, checked: Checked, stack: AsyncExitStack, metrics: Metrics | None = None
) -> Core:
    """Open the database and the root key, and build what stands on them; nothing runs yet.

    Commands have no `metrics` that anybody asks for.

    Raises:
        ConfigurationError: one of them cannot be opened, or they do not belong together.
        RootKeyUnavailable: the root does not answer now.
        LedgerUnavailable: nor does the database; or what it says of epochs is not to be believed.

    """
    metrics = metrics or Metrics()
    keep_files_private()
    stack.push_async_callback(checked.anchor.close)
    async with alone_in(settings.data_dir):
        stores = await open_stores_in(checked.database_url, settings, stack)
        founding = await _is_new(stores, checked.anchor, settings)
        root = await open_checked_root(
            checked.root_key_uri,
            stores.installation,
            checked.root_access,
            now=utc_now(),
            random=secrets.token_bytes,
            may_be_made=founding,
            observe=observe_root(metrics, checked.root_key_uri),
        )
        stack.push_async_callback(root.close)
        keys = await key_parts(
            stores.engine, root, anchor=checked.anchor, clock=utc_now, server=settings.server_name
        )
    parts = policy_parts(
        stores.engine,
        seal=keys.seal,
        recorder=keys.recorder,
        kms_identity=keys.founding_identity,
        trust=checked.trust,
        anchor=checked.anchor,
        clock=utc_now,
        new_id=new_id,
    )
    epochs = KeptEpochs(keys.register)
    decisions = DecisionStore(
        stores.engine,
        utc_now,
        keys.recorder,
        observe=observe_commits(metrics),
        clock_leapt=ClockWatch(utc_now).leapt,
    )
    collateral = collateral_service(
        settings, stores, checked.roots, observe_requests=observe_services(metrics)
    )
    desk = ReleaseDesk(
        clock=utc_now,
        randomness=secrets.token_bytes,
        authenticator=Authenticator(
            roots=checked.roots, revocation=revocation_rules(settings), collateral=collateral
        ),
        advisories=load_advisories(),
        policies=parts.followed,
        decisions=decisions,
        root_key=keys.root,
        epochs=epochs,
        apps_ca=keys.apps_ca,
        foreign=keys.foreign,
        identity=keys.identity,
        identities=keys.identities,
        challenge_key=keys.challenge_key,
        challenge_lifetime=settings.challenge_ttl,
        development=settings.development,
    )
    return Core(
        founding=founding,
        stores=stores,
        root=root,
        keys=keys,
        parts=parts,
        decisions=decisions,
        collateral=collateral,
        desk=desk,
    )


@asynccontextmanager
async def opened_core(settings: Settings) -> AsyncIterator[tuple[Core, Checked]]:
    """Build it for a command: a server may be running beside.

    Raises:
        ConfigurationError: the operator must change something; it says what.
        RootKeyUnavailable, LedgerUnavailable: as `build_core`.

    """
    async with AsyncExitStack() as stack:
        checked = check_settings(settings, serving=False)
        yield await build_core(settings, checked, stack), checked


async def _is_new(stores: Stores, anchor: Anchor, settings: Settings) -> bool:
    """Say whether neither the database nor the anchor knows of anything that this KMS ever did.

    Raises:
        ConfigurationError: what the anchor says cannot be told, and no root may be made without it.

    """
    if await stores.installation.check_values():
        return False
    await anchor.require_usable(made_later=settings.data_dir)
    if await anchor.read() is not None or await anchor.read_ledger() is not None:
        return False
    return (await anchor.read_keys()).epochs == 0


def revocation_rules(settings: Settings) -> Revocation:
    """Give how revocation is judged; the lists come from the collateral."""
    return Revocation(mode=settings.crl, max_age=settings.crl_max_age)


def collateral_service(
    settings: Settings,
    stores: Stores,
    roots: TrustedRoots,
    *,
    clock: Clock = utc_now,
    observe_requests: ObserveRequest = unobserved,
) -> CollateralService:
    """Give the collateral that the settings name, not started. `clock` says what is valid."""
    kds = None
    if settings.kds_urls:
        rate = settings.kds_rate
        kds = KdsClient(
            settings.kds_urls,
            per_second=rate.per_second,
            burst=rate.burst,
            clock=utc_now,
            observe=observe_requests,
        )
    return CollateralService(
        store=stores.collateral,
        kds=kds,
        roots=roots,
        clock=clock,
        renew_lists=settings.crl is not RevocationMode.OFF,
    )

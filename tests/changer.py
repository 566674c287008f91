"""Putting policies in force in tests, by the way that operators' work goes."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.administration.changing import PolicyChanger
from kms.anchor import FileAnchor
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH, identity_message, rows_message
from kms.keys.row_seal import RowSeal
from kms.policy.history import ChangeKind
from kms.policy.revision import Revision
from kms.policy.trust import PolicyTrust
from kms.policy_following import FollowedPolicies
from kms.wiring.core import PolicyParts, policy_parts
from kms.wiring.stores import new_id
from tests.recording import recorder
from tests.roots import MemoryRoot

ROOT = MemoryRoot()


async def open_parts(
    engine: AsyncEngine, folder: Path, clock: Callable[[], datetime], trust: PolicyTrust | None = None
) -> PolicyParts:
    """Build on a migrated database, with the anchor in `folder` and `ROOT` as the root key."""
    identity = Identity.from_prf(await ROOT.prf(FOUNDING_EPOCH, identity_message(1)))
    return policy_parts(
        engine,
        seal=RowSeal(await ROOT.prf(FOUNDING_EPOCH, rows_message())),
        recorder=recorder(),
        kms_identity=identity.public_key,
        trust=trust,
        anchor=FileAnchor(folder / "anchor.json"),
        clock=clock,
        new_id=new_id,
    )


async def open_changer(
    engine: AsyncEngine, folder: Path, clock: Callable[[], datetime], trust: PolicyTrust | None = None
) -> PolicyChanger:
    """Give only what changes the policy in force."""
    return (await open_parts(engine, folder, clock, trust)).changer


def follow(changer: PolicyChanger) -> FollowedPolicies:
    """Follow what a changer puts in force."""
    return FollowedPolicies(changer.history, changer.authority, changer.anchor)


async def put(changer: PolicyChanger, revision: Revision, kind: ChangeKind = ChangeKind.APPLY) -> bool:
    """Put a revision in force; False where it waits for signatures."""
    prepared = await changer.prepare(
        await changer.standing(), revision, files=None, kind=kind, author="test", message=""
    )
    return await changer.put(prepared, None)

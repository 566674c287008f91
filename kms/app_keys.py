"""An app's keys: of which epoch, derived, and certified where they are for TLS."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.desk import ReleaseDesk
from kms.errors import RootKeyUnavailable
from kms.identifiers import ChipId
from kms.keys.certificates import certify
from kms.keys.derivation import derive
from kms.keys.dstack import DstackRoots, derive_dstack
from kms.keys.epochs import EpochTable
from kms.keys.names import DSTACK_KINDS, KeyKind, KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.root_messages import app_message
from kms.policy.decision import Allowed
from kms.snp.flags import Signer

EPOCH_UNAVAILABLE: Final = "epoch-unavailable"


def choose_epochs(allowed: Allowed, table: EpochTable, now: datetime) -> tuple[dict[KeyRequest, int], Check]:
    """Choose the epoch of each key that has one (`EpochTable.choose`), and check that it may be given.

    Where there is none to choose it is 0, which never may.
    """
    epochs = {
        key: table.choose(key.epoch, allowed.app.epoch, now) or 0
        for key in allowed.ask.keys
        if key.name.kind not in DSTACK_KINDS
    }
    asked, available = set(epochs.values()), table.available(now)
    detail = f"asked for epochs {sorted(asked)}; available are {list(available)}"
    return epochs, Check.of("epoch", asked <= set(available), detail, reason=EPOCH_UNAVAILABLE)


async def derive_keys(
    desk: ReleaseDesk, allowed: Allowed, epochs: Mapping[KeyRequest, int], now: datetime
) -> tuple[ReleasedKey, ...]:
    """Derive the allowed keys: one question to the root for each epoch, expansion here.

    Raises:
        RootKeyUnavailable: the root cannot be used now; or reason ``dstack-roots-missing``, keys of a dstack
            KMS are allowed and its roots were never imported.

    """
    app_id = allowed.app.id
    secrets = {
        epoch: await desk.root_key.prf(epoch, app_message(app_id)) for epoch in sorted(set(epochs.values()))
    }
    roots = None
    if any(key.name.kind in DSTACK_KINDS for key in allowed.ask.keys):
        roots = await desk.foreign.dstack()
    return tuple(
        _dstack(roots, allowed, key)
        if key.name.kind in DSTACK_KINDS
        else _own(desk, allowed, key, epoch=epochs[key], app_secret=secrets[epochs[key]], now=now)
        for key in allowed.ask.keys
    )


def _own(
    desk: ReleaseDesk,
    allowed: Allowed,
    request: KeyRequest,
    *,
    epoch: int,
    app_secret: bytes,
    now: datetime,
) -> ReleasedKey:
    key = derive(
        app_secret,
        request,
        epoch,
        app_id=allowed.app.id,
        instance_id=allowed.boot_info.instance_id,
        chip_id=proven_chip(allowed.boot_info),
        identity=desk.identity,
    )
    if request.name.kind is not KeyKind.TLS:
        return key
    tls, public_key = allowed.app.tls, key.public_key
    if tls is None or public_key is None:
        raise ValueError("asked to certify what policy should have refused: the app has no `tls`")
    chain = certify(
        desk.apps_ca.app_ca(app_secret, allowed.app.id, epoch),
        public_key,
        names=tls.names,
        life=timedelta(days=tls.days),
        boot_info=allowed.boot_info.digest,
        now=now,
        random=desk.randomness,
    )
    return replace(key, certificate_chain=chain)


def _dstack(roots: DstackRoots | None, allowed: Allowed, request: KeyRequest) -> ReleasedKey:
    if roots is None:
        raise RootKeyUnavailable("no roots of a dstack KMS were imported", reason="dstack-roots-missing")
    return derive_dstack(roots, request, app_id=allowed.app.id, instance_id=allowed.boot_info.instance_id)


def proven_chip(boot_info: BootInfo) -> ChipId | None:
    """Give the chip id that the report proves: a VLEK report's CHIP_ID is the host's word, not the key's."""
    return boot_info.chip_id if boot_info.signer is Signer.VCEK else None

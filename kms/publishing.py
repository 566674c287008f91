"""What anybody may ask of an app's keys: their public halves, for as long as the policy lists the app.

Nobody is authenticated here and nothing is recorded, for nothing here is secret. What matters is that a
stranger learns no more than that, and cannot make the root work without end.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kms.desk import ReleaseDesk
from kms.errors import NotFound
from kms.identifiers import AppId
from kms.keys.certificates import to_pem
from kms.keys.derivation import derive, signing_statement
from kms.keys.env_key import env_key_text
from kms.keys.names import KeyKind, KeyName, KeyRequest, Scope
from kms.keys.root_messages import app_message
from kms.keys.signed import Signed
from kms.labels import ENV_KEY, SIGNING_STATEMENT
from kms.policy.documents import AppDocument


async def listed_app(desk: ReleaseDesk, app_id: AppId, kind: KeyKind) -> AppDocument:
    """Give the app, if the policy in force would give a guest of it the key of this kind with scope app.

    Raises:
        NotFound: it is not listed, expired, revoked, or may not have this key; strangers are not told which.

    """
    active = await desk.policies.active()
    app = None if active is None else active.policy.app(app_id)
    if active is None or app is None:
        raise NotFound("the policy in force does not list this app")
    if app.expired(desk.clock()) or app_id in active.policy.revocations.apps:
        raise NotFound("this app is expired or revoked")
    wanted = _of_the_app(kind)
    if not any(pattern.allows(wanted) for pattern in app.keys):
        raise NotFound(f"this app may not have {kind}")
    return app


async def published_epoch(desk: ReleaseDesk, app_id: AppId, kind: KeyKind, asked: int | None) -> int:
    """Give the epoch of the key that is published, the one that a guest would get (`EpochTable.choose`).

    Raises:
        NotFound: as `listed_app`; or reason ``epoch-unavailable``: that epoch is given to nobody.
        LedgerUnavailable: which epochs there are cannot be told.

    """
    app = await listed_app(desk, app_id, kind)
    table, now = await desk.epochs.epochs(), desk.clock()
    epoch = table.choose(asked, app.epoch, now)
    if epoch not in table.available(now):
        raise NotFound("no such key epoch is available", reason="epoch-unavailable")
    return epoch


@dataclass(frozen=True, slots=True)
class Place:
    """Where keys are derived: an app in one epoch."""

    app_id: AppId
    epoch: int


@dataclass(frozen=True, slots=True)
class PublicHalves:
    """An app's public keys in one epoch, 32 bytes each, and the certificate (PEM) of its CA."""

    env: bytes
    signing: bytes
    app_ca: str


async def derive_public_halves(desk: ReleaseDesk, place: Place) -> PublicHalves:
    """Ask the root, once, for all that is published of an app in an epoch. Raises `RootKeyUnavailable`."""
    secret = await desk.root_key.prf(place.epoch, app_message(place.app_id))
    return PublicHalves(
        env=_public_half(desk, secret, KeyKind.ENV, place),
        signing=_public_half(desk, secret, KeyKind.SIGNING, place),
        app_ca=to_pem(desk.apps_ca.app_ca(secret, place.app_id, place.epoch).certificate),
    )


class PublishedKeys:
    """Signs what is published of apps' keys.

    `halves` gives what `derive_public_halves` does, from memory where it can: strangers ask, and the root may
    be an HSM. It is asked only for what the policy lists.
    """

    def __init__(self, desk: ReleaseDesk, halves: Callable[[Place], Awaitable[PublicHalves]]) -> None:
        self._desk = desk
        self._halves = halves

    async def env_key(self, app_id: AppId, epoch: int | None) -> Signed:
        """Give the public key to which the app's environment is sealed, signed by the KMS identity and dated.

        Raises:
            NotFound, LedgerUnavailable: as `published_epoch`.
            RootKeyUnavailable: the root cannot be used now.

        """
        chosen = await published_epoch(self._desk, app_id, KeyKind.ENV, epoch)
        public_key = (await self._halves(Place(app_id, chosen))).env
        text = env_key_text(app_id, chosen, public_key, self._desk.clock())
        return Signed.by(self._desk.identity, ENV_KEY, text)

    async def signing_key(self, app_id: AppId, epoch: int | None) -> Signed:
        """Give the statement that the app's guests get with their signing key.

        Raises:
            NotFound, LedgerUnavailable, RootKeyUnavailable: as `env_key`.

        """
        chosen = await published_epoch(self._desk, app_id, KeyKind.SIGNING, epoch)
        public_key = (await self._halves(Place(app_id, chosen))).signing
        return Signed.by(
            self._desk.identity, SIGNING_STATEMENT, signing_statement(app_id, chosen, public_key)
        )

    async def app_ca(self, app_id: AppId, epoch: int | None) -> tuple[int, str]:
        """Give the epoch, and the certificate (PEM) of the CA that certifies the app's guests in it.

        Raises:
            NotFound, LedgerUnavailable, RootKeyUnavailable: as `env_key`.

        """
        chosen = await published_epoch(self._desk, app_id, KeyKind.TLS, epoch)
        return chosen, (await self._halves(Place(app_id, chosen))).app_ca


def _public_half(desk: ReleaseDesk, secret: bytes, kind: KeyKind, place: Place) -> bytes:
    key = derive(
        secret,
        _of_the_app(kind),
        place.epoch,
        app_id=place.app_id,
        instance_id=None,
        chip_id=None,
        identity=desk.identity,
    )
    if key.public_key is None:
        raise ValueError(f"{kind} has no public half")
    return key.public_key


def _of_the_app(kind: KeyKind) -> KeyRequest:
    return KeyRequest(KeyName(kind), Scope.APP)

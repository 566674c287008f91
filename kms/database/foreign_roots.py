"""The imported roots of other KMSs in the database.

They are sealed with AES-256-GCM under a key that the root derives, and bound to their kind. Whoever has the
database alone can neither read them, nor put roots of their own in their place, nor move a row here from
another KMS's database. They can remove a row, or put an older one back: then apps get no keys, or those of
roots that an operator of this KMS imported before.
"""

import secrets
from contextlib import suppress
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kms.database.engine import reading, writing
from kms.database.recording import Recorder
from kms.database.schema import foreign_roots
from kms.errors import KeysConflict, LedgerUnavailable
from kms.keys.dstack import ROOT_LENGTH, DstackRoots
from kms.labels import ROOT_FOREIGN, frame, labelled
from kms.ledger.actions import OperatorAction
from kms.ledger.entries import timestamp
from kms.ports import Clock, Randomness

_KEY_LENGTH: Final = 32
_NONCE_LENGTH: Final = 12  # NIST SP 800-38D section 8.2.2; random, and only so many as operators import
_TAG_LENGTH: Final = 16
_SEALED_LENGTH: Final = _NONCE_LENGTH + 2 * ROOT_LENGTH + _TAG_LENGTH
_DSTACK: Final = "dstack"
# The associated data: what is sealed as roots of one kind does not open as those of another.
_CONTEXT: Final = labelled(ROOT_FOREIGN, frame(_DSTACK.encode("ascii")))


class ForeignRootStore:
    """Implements `kms.ports.ForeignRoots`, and imports roots for operators.

    Every method raises `LedgerUnavailable` when the database does not answer, or (reason
    ``foreign-roots-untrusted``) when what it holds was not written by this KMS.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        key: bytes,
        *,
        recorder: Recorder,
        randomness: Randomness = secrets.token_bytes,
    ) -> None:
        """Take the first 32 bytes of the root PRF's output for `root_messages.foreign_message`.

        Raises:
            ValueError: not 32 bytes.

        """
        if len(key) != _KEY_LENGTH:
            raise ValueError(f"the key of imported roots has {_KEY_LENGTH} bytes")
        self._engine = engine
        self._clock = clock
        self._cipher = AESGCM(key)
        self._recorder = recorder
        self._randomness = randomness

    async def dstack(self) -> DstackRoots | None:
        """Give the roots of a dstack KMS; see `ForeignRoots.dstack`.

        They are opened anew each time, which is a small part of asking the database, and so are nowhere in
        memory in between.
        """
        async with reading(self._engine) as connection:
            sealed = await _sealed(connection)
        return None if sealed is None else self._open(sealed)

    async def import_dstack(self, roots: DstackRoots, *, action: OperatorAction, replace: bool) -> bool:
        """Keep the roots of a dstack KMS, with the record of who did it, in one transaction.

        Say False, and do nothing, where they are here already. `replace` takes the place of others, also of
        what cannot be trusted any more.

        Raises:
            KeysConflict: reason ``dstack-roots-differ``: others are here, and are not to be replaced.

        """
        async with writing(self._engine) as connection:
            if not self._must_write(await _sealed(connection), roots, replace=replace):
                return False
            await connection.execute(delete(foreign_roots).where(foreign_roots.c.kind == _DSTACK))
            await connection.execute(
                insert(foreign_roots).values(
                    kind=_DSTACK,
                    sealed=self._seal(roots),
                    imported_at=timestamp(self._clock()),
                    imported_by=action.actor.name,
                )
            )
            await self._recorder.record_action(connection, action)
        return True

    def _must_write(self, sealed: object, roots: DstackRoots, *, replace: bool) -> bool:
        """Say no where the same roots are already. Raises `KeysConflict` as `import_dstack` does."""
        if sealed is None:
            return True
        try:
            kept = self._open(sealed)
        except LedgerUnavailable:
            if replace:
                return True
            raise
        if compare_digest(_plain(kept), _plain(roots)):
            return False
        if not replace:
            raise KeysConflict(
                "other roots of a dstack KMS are here, and nobody asked to replace them",
                reason="dstack-roots-differ",
            )
        return True

    def _seal(self, roots: DstackRoots) -> bytes:
        nonce = self._randomness(_NONCE_LENGTH)
        return nonce + self._cipher.encrypt(nonce, _plain(roots), _CONTEXT)

    def _open(self, sealed: object) -> DstackRoots:
        # SQLite keeps anything in any column.
        if isinstance(sealed, bytes) and len(sealed) == _SEALED_LENGTH:
            with suppress(InvalidTag):
                plain = self._cipher.decrypt(sealed[:_NONCE_LENGTH], sealed[_NONCE_LENGTH:], _CONTEXT)
                return DstackRoots(ca=plain[:ROOT_LENGTH], k256=plain[ROOT_LENGTH:])
        raise LedgerUnavailable(
            "the imported roots of a dstack KMS were not written by this KMS",
            reason="foreign-roots-untrusted",
        )


async def _sealed(connection: AsyncConnection) -> object:
    """Give what is kept of a dstack KMS, unchecked; None where there is nothing."""
    query = select(foreign_roots.c.sealed).where(foreign_roots.c.kind == _DSTACK)
    return (await connection.execute(query)).scalar_one_or_none()


def _plain(roots: DstackRoots) -> bytes:
    return roots.ca + roots.k256

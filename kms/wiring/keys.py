"""The root key and what hangs on it: epochs, identity, authorities, the keys of challenges and rows."""

from dataclasses import dataclass, field
from typing import Final, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.anchor import Anchor
from kms.database.foreign_roots import ForeignRootStore
from kms.database.keys import KeyStore
from kms.database.recording import Recorder
from kms.identity_book import FIRST_GENERATION, IdentityBook
from kms.keys.apps_ca import AppsCa
from kms.keys.identity import Identity
from kms.keys.root_messages import (
    FOUNDING_EPOCH,
    apps_ca_message,
    challenge_message,
    entries_message,
    foreign_message,
    ledger_message,
    rows_message,
)
from kms.keys.row_seal import RowSeal
from kms.ledger.checkpoint import CheckpointKey
from kms.ledger.ledger_key import derive_checkpoint_key
from kms.ledger.sealed_entry import EntrySeal
from kms.operator_ports import RootVersions
from kms.ports import Clock, RootKey

_FOREIGN_KEY_LENGTH: Final = 32
_FOUNDED_BY: Final = "founding"


class Root(RootKey, RootVersions, Protocol):
    """A root that answers releases, and that operators rotate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyParts:
    """What is derived from the root once, when a server starts; the root itself stays where it lives.

    `founding_identity` is the public key (32 bytes) of the first generation: it names this KMS in what
    operators sign, whichever generation answers guests.
    """

    root: Root
    seal: RowSeal = field(repr=False)
    entry_seal: EntrySeal
    checkpoint_key: CheckpointKey
    recorder: Recorder
    register: KeyStore
    foreign: ForeignRootStore
    identity: Identity
    founding_identity: bytes
    identities: IdentityBook
    apps_ca: AppsCa
    challenge_key: bytes = field(repr=False)


async def key_parts(
    engine: AsyncEngine, root: Root, *, anchor: Anchor, clock: Clock, server: str
) -> KeyParts:
    """Derive them, and make sure that a new database has its first epoch. `server` is this server's name.

    Raises:
        ConfigurationError: the rows of epochs were removed from a database that had some.
        LedgerUnavailable: the database did not answer, or says what this KMS did not write.
        RootKeyUnavailable: the root cannot be used now.

    """
    seal = RowSeal(await root.prf(FOUNDING_EPOCH, rows_message()))
    entry_seal = EntrySeal(await root.prf(FOUNDING_EPOCH, entries_message()))
    recorder = Recorder(entry_seal, server)
    register = KeyStore(engine, clock, seal, anchor=anchor, recorder=recorder)
    await register.found(_FOUNDED_BY)
    book = IdentityBook(root, register)
    founding_identity = (await book.identity(FIRST_GENERATION)).public_key
    foreign_key = (await root.prf(FOUNDING_EPOCH, foreign_message()))[:_FOREIGN_KEY_LENGTH]
    return KeyParts(
        root=root,
        seal=seal,
        entry_seal=entry_seal,
        checkpoint_key=derive_checkpoint_key(
            await root.prf(FOUNDING_EPOCH, ledger_message()), founding_identity
        ),
        recorder=recorder,
        register=register,
        foreign=ForeignRootStore(engine, clock, foreign_key, recorder=recorder),
        identity=await book.newest(),
        founding_identity=founding_identity,
        identities=book,
        apps_ca=AppsCa.from_prf(await root.prf(FOUNDING_EPOCH, apps_ca_message())),
        challenge_key=await root.prf(FOUNDING_EPOCH, challenge_message()),
    )

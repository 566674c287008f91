"""A root key in memory, for tests that are about something else."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kms.errors import RootKeyUnavailable
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.hand_over import KnownIdentities, hand_overs
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH

ROOT_SECRET = b"r" * 32


@dataclass(slots=True)
class MemoryRoot:
    """Implements `kms.ports.RootKey` and `kms.operator_ports.RootVersions`."""

    secrets: dict[int, bytes] = field(default_factory=lambda: {FOUNDING_EPOCH: ROOT_SECRET})

    async def prf(self, epoch: int, message: bytes) -> bytes:
        if epoch not in self.secrets:
            raise RootKeyUnavailable("no such epoch", reason="root-epoch-missing")
        return hmac.digest(self.secrets[epoch], message, "sha512")

    async def check(self, epoch: int) -> None:
        return None

    async def versions(self) -> tuple[int, ...]:
        return tuple(sorted(self.secrets))

    async def ensure(self, epoch: int) -> bytes:
        self.secrets.setdefault(epoch, bytes([epoch]) * 32)
        return (await self.prf(epoch, b"check"))[:32]


@dataclass(slots=True)
class StoredValues:
    """Implements `kms.rootkey.checked.CheckValues` in memory."""

    values: dict[int, bytes] = field(default_factory=dict)

    async def check_values(self) -> dict[int, bytes]:
        return dict(self.values)

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        self.values.update(values)


@dataclass(frozen=True, slots=True)
class FixedEpochs:
    """Implements `kms.ports.Epochs`: so many, all in use since long ago, but for those `retired`."""

    count: int
    retired: frozenset[int] = frozenset()

    def forget(self) -> None:
        """There is nothing else to be asked."""

    async def epochs(self) -> EpochTable:
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        return EpochTable(
            tuple(
                Epoch(
                    number=number,
                    made_at=long_ago,
                    made_by="test",
                    active_from=long_ago,
                    retired_at=long_ago if number in self.retired else None,
                )
                for number in range(1, self.count + 1)
            )
        )


@dataclass(frozen=True, slots=True)
class FixedIdentities:
    """Implements `kms.ports.Identities`: these generations, oldest first; the later ones of `made_at`."""

    generations: tuple[Identity, ...]
    made_at: datetime

    async def known(self) -> KnownIdentities:
        later = len(self.generations) - 1
        return KnownIdentities(
            frozenset(each.public_key for each in self.generations),
            hand_overs(self.generations, [self.made_at] * later),
        )

"""What every anchor does, wherever it is kept: read it, and move its members forward."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kms.anchor.members import AnchorUnusable, Seen
from kms.errors import ConfigurationError
from kms.keys.epochs import KeyProgress
from kms.ledger_ports import AnchoredLedger, SeenLedger
from kms.policy.history import Head


class Anchor(ABC):
    """Implements `SeenHead` and `SeenKeys` of `kms.operator_ports`, and `kms.ledger_ports.LedgerAnchor`.

    Every method raises `AnchorUnusable` where what is kept cannot be told, or is damaged; that never counts
    as "nothing was kept". Those that keep raise `LedgerUnavailable` where they could not.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages."""

    async def read(self) -> Head | None:
        """Give the policy that was used last; None if none ever was."""
        return (await self._seen()).policy

    async def remember(self, head: Head) -> None:
        """Keep what is used from now on. It is durable when this returns, so call it before.

        Raises:
            PolicyUntrusted: something newer was used, or another revision under this number.

        """
        await self._renew(lambda seen: seen.with_policy(head))

    async def read_keys(self) -> KeyProgress:
        """Give how far epochs and generations were seen to come."""
        return (await self._seen()).keys or KeyProgress()

    async def remember_keys(self, progress: KeyProgress) -> None:
        """Keep it, durably, united with what is kept."""
        await self._renew(lambda seen: seen.with_keys(progress))

    async def read_ledger(self) -> SeenLedger | None:
        """Give how far the ledger was seen to come; None if none ever was seen."""
        return (await self._seen()).ledger

    async def anchored_ledger(self) -> AnchoredLedger:
        """Give that, and how often an operator accepted that the ledger went back, as of one moment."""
        seen = await self._seen()
        return AnchoredLedger(ledger=seen.ledger or SeenLedger.nothing(), accepted=seen.accepted)

    async def remember_ledger(self, seen: SeenLedger) -> None:
        """Keep it, durably; where more is kept, that stays.

        Raises:
            LedgerUnavailable: reason ``ledger-rolled-back``: another ledger of this size was seen.

        """
        await self._renew(lambda kept: kept.with_ledger(seen))

    async def accept_ledger(self, seen: SeenLedger) -> None:
        """Keep it although it goes back, and count that: only for an operator who said so."""
        await self._renew(lambda kept: replace(kept, ledger=seen, accepted=kept.accepted + 1))

    async def require_usable(self, *, made_later: Path) -> None:
        """Look at it before a KMS is founded: no root is made that could not be used.

        Raises:
            ConfigurationError: it cannot be used; but the folder of a file may be `made_later`.

        """
        try:
            await self._seen()
        except AnchorUnusable as error:
            raise ConfigurationError(error.fault, remedy=error.remedy) from error

    async def close(self) -> None:  # noqa: B027 -- a file has nothing to close
        """Let go of what it is reached by; it can be used again."""

    @abstractmethod
    async def _seen(self) -> Seen:
        """Read what is kept."""

    @abstractmethod
    async def _renew(self, renewed: Callable[[Seen], Seen]) -> None:
        """Keep what `renewed` makes of what is kept, durably; nothing changes in between."""

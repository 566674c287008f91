"""What a root key provider does: one module each, behind this protocol, all held by one contract suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from kms.errors import ConfigurationError
from kms.keys.root_messages import Mode
from kms.rootkey.vault_access import VaultAccess


class RootKeyMissing(ConfigurationError):
    """There is no root key where one is configured."""

    code = "root-key-missing"


class NotExportable(ConfigurationError):
    """This provider never gives its root away: it is backed up where it lives."""

    code = "root-key-not-exportable"


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAccess:
    """How to get at a root, beside its URI.

    `mode` is what it must have been made for. `passphrase` gives the bytes that a root file is encrypted
    under, None where it is not; it is called when they are needed. `vault` is None where no Vault is named.
    """

    mode: Mode
    passphrase: Callable[[], bytes] | None = field(default=None, repr=False)
    vault: VaultAccess | None = None


class RootProvider(Protocol):
    """The secrets of all epochs, wherever they live. Every method may raise `RootKeyUnavailable`."""

    @property
    def marked(self) -> bool:
        """Whether the root itself says which mode it was made for; the provider then refuses the other."""
        ...

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give HMAC-SHA-512 (64 bytes) of each message under the secret of `epoch`, in one round trip.

        Raises:
            RootKeyUnavailable: reason ``root-epoch-missing``, there is no such epoch; or the provider did not
                answer, in time or at all, and the reason says why.

        """
        ...

    async def versions(self) -> tuple[int, ...]:
        """Give the epochs that exist there now, oldest first."""
        ...

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        """Make sure that `epoch` exists, durably: it does, or it is the next one and is made.

        An existing secret is never replaced. `random` gives that many bytes of the system's randomness, for
        providers that make no secrets themselves.

        Raises:
            ConfigurationError: it may not be made there, or it is not the next one.

        """
        ...

    async def secrets(self) -> Mapping[int, bytes]:
        """Give the secret (32 bytes) of each epoch, for a backup.

        Raises:
            NotExportable: they cannot be had.

        """
        ...

    def start(self) -> None:
        """Begin what goes on beside the requests (renewing a token), in the running event loop."""
        ...

    async def close(self) -> None:
        """Stop that, and overwrite what can be overwritten. The provider cannot be used afterwards."""
        ...


class Opener(Protocol):
    """How one scheme of ``KMS_ROOT_KEY`` is opened and made; `rest` is what follows the scheme's colon.

    A module of this package implements it for its scheme, and `kms.rootkey.registry` lists it.
    """

    def check(self, rest: str, access: RootAccess) -> None:
        """Check what can be checked without touching what the URI names. Raises `ConfigurationError`."""
        ...

    async def open(self, rest: str, access: RootAccess) -> RootProvider:
        """Open an existing root.

        Raises:
            RootKeyMissing: there is none.
            RootKeyUnavailable: it cannot be reached now.
            ConfigurationError: it cannot be used.

        """
        ...

    async def create(
        self, rest: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
    ) -> RootProvider:
        """Make a root with epoch 1, never over an existing one, and open it; errors as `open`."""
        ...

    async def restore(
        self, rest: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
    ) -> RootProvider:
        """Make a root of these secrets (32 bytes each, epochs 1, 2, …), never over an existing one.

        Raises:
            NotExportable: this provider takes no secrets from outside.
            ConfigurationError: something is already there, or it cannot be written.

        """
        ...

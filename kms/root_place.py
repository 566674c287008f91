"""Where the settings say that the root is: a look that makes nothing, and a root made from a backup."""

from collections.abc import Mapping
from dataclasses import dataclass

from kms.errors import ConfigurationError
from kms.ports import Clock
from kms.rootkey import (
    NotExportable,
    RootAccess,
    RootKeyMissing,
    RootProvider,
    open_provider,
    restore_provider,
)


@dataclass(frozen=True, slots=True)
class ConfiguredRoot:
    """Implements `kms.administration.restoring.RootPlace`."""

    uri: str
    access: RootAccess
    clock: Clock

    async def open(self) -> RootProvider | None:
        """Open the root that is there; see `RootPlace.open`."""
        try:
            return await open_provider(self.uri, self.access)
        except RootKeyMissing:
            return None

    async def make(self, secrets: Mapping[int, bytes]) -> None:
        """Make a root of these secrets; see `RootPlace.make`."""
        try:
            provider = await restore_provider(self.uri, self.access, secrets, now=self.clock())
        except NotExportable as error:
            raise ConfigurationError(
                error.detail,
                remedy="Say --to file:PATH or --to vault-kv:MOUNT/PATH, and set KMS_ROOT_KEY to the same.",
            ) from error
        await provider.close()

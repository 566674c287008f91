"""The root key, held against the key-check values of the database that lives by it."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from kms.errors import ConfigurationError
from kms.keys.check_value import agrees, check_value
from kms.keys.root_messages import Mode, check_message
from kms.ports import RootKey
from kms.rootkey.file import RootKeyMissing
from kms.rootkey.registry import create_root_key, open_root_key

_log = structlog.get_logger("kms.start")


class CheckValues(Protocol):
    """Where the key-check value (32 bytes) of each epoch is kept."""

    async def check_values(self) -> dict[int, bytes]:
        """Give the stored ones."""
        ...

    async def remember_check_values(self, values: Mapping[int, bytes]) -> None:
        """Store those of new epochs."""
        ...


async def open_checked_root(
    uri: str, stored_values: CheckValues, *, mode: Mode, now: datetime, random: Callable[[int], bytes]
) -> RootKey:
    """Open the root key at `uri` and hold it against the key-check values.

    A root is made only where no check value exists: silently making a new one would lock every guest out
    of its data (field lesson 30).

    Raises:
        ConfigurationError: lost, damaged, of another mode, or not the root that made this database's keys.

    """
    stored = await stored_values.check_values()
    try:
        root_key = open_root_key(uri, mode=mode)
    except RootKeyMissing as error:
        if stored:
            raise ConfigurationError(
                f"the root key is lost: {error.detail}, and this database needs it",
                remedy="restore it from its backup; it is never made again for an existing database",
            ) from error
        root_key = create_root_key(uri, mode=mode, now=now, random=random)
        _log.info("root-key-made", mode=mode.value)
    outputs = {
        epoch: await root_key.prf(epoch, check_message(mode, epoch)) for epoch in await root_key.epochs()
    }
    missing = sorted(set(stored) - set(outputs))
    different = sorted(
        epoch for epoch in stored if epoch in outputs and not agrees(stored[epoch], outputs[epoch])
    )
    if missing or different:
        raise ConfigurationError(
            f"the root key is not the one of this database (epochs {missing + different})",
            remedy="restore the root key that belongs to this database",
        )
    new = {epoch: check_value(output) for epoch, output in outputs.items() if epoch not in stored}
    if new:
        await stored_values.remember_check_values(new)
    return root_key

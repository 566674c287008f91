"""Putting a root back from a backup: what must agree before anything is made."""

from collections.abc import Mapping
from typing import Protocol

from kms.administration.backups import WholeRoot, answers
from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.keys.root_copy import Description, RootCopy
from kms.keys.root_messages import FOUNDING_EPOCH, Mode


class RootPlace(Protocol):
    """Where the settings say that the root is."""

    @property
    def uri(self) -> str:
        """As ``KMS_ROOT_KEY`` names it."""
        ...

    async def open(self) -> WholeRoot | None:
        """Open the root that is there; None where there is none.

        Raises:
            ConfigurationError: what is there cannot be used.
            RootKeyUnavailable: the place cannot be reached now.

        """
        ...

    async def make(self, secrets: Mapping[int, bytes]) -> None:
        """Make a root of these secrets, never over an existing one; errors as `open`."""
        ...


async def require_root(place: RootPlace) -> None:
    """Make sure that a root is there, and make nothing: opening all keys makes a new KMS where there is none.

    Raises:
        ConfigurationError: there is none, or it cannot be used.
        RootKeyUnavailable: its place cannot be reached now.

    """
    present = await place.open()
    if present is None:
        raise ConfigurationError(
            f"there is no root key at {place.uri}, and nothing was made",
            remedy="Name the one that is meant (KMS_ROOT_KEY, KMS_DATA_DIR), or restore it from its backup.",
        )
    await present.close()


def require_mode(description: Description, mode: Mode) -> None:
    """Make sure that a backup is of the settings' mode. Raises `ConfigurationError`."""
    if description.mode is not mode:
        raise ConfigurationError(
            f"the backup is of a {description.mode} root, and these settings are of {mode} mode",
            remedy="A root never changes from one mode to the other.",
        )


async def put_root(
    place: RootPlace, root: RootCopy, description: Description, known: Mapping[int, bytes]
) -> bool:
    """Make the root in its place; say False where the same one is there already.

    `known` are the key-check values (32 bytes each) that the database has.

    Raises:
        ConfigurationError: it is not this database's, something else is there, or it cannot be made.
        RootKeyUnavailable: the place cannot be reached now.

    """
    _require_same_kms(known, description)
    try:
        present = await place.open()
    except ConfigurationError as error:
        raise ConfigurationError(
            error.detail, remedy="It is never overwritten: mend it, or move it away and restore again."
        ) from error
    if present is None:
        _require_all_epochs(known, description)
        await place.make(root.secrets)
        return True
    try:
        await _require_same_root(present, description)
    finally:
        await present.close()
    return False


def waiting_epochs(root: RootCopy, known: Mapping[int, bytes]) -> list[int]:
    """Give the epochs of a root that the database does not know: they wait for rotations to adopt them."""
    return sorted(set(root.secrets) - set(known or {FOUNDING_EPOCH}))


def _require_same_kms(known: Mapping[int, bytes], description: Description) -> None:
    if any(description.check_values.get(epoch, value) != value for epoch, value in known.items()):
        raise ConfigurationError(
            "the backup is of another KMS than this database: its first identity is"
            f" {b64url(description.identity)}",
            remedy="Use a backup of this one, or the settings of that one.",
        )


def _require_all_epochs(known: Mapping[int, bytes], description: Description) -> None:
    missing = sorted(set(known) - set(description.check_values))
    if missing:
        # Nor can the database be made to forget them: the next epoch of such a number would have other keys,
        # and with them a guest's disk looks damaged, or new.
        raise ConfigurationError(
            f"the backup is older than epoch(s) {', '.join(map(str, missing))}, which this database has",
            remedy="Use a newer one, made after the last `kms keys rotate`. If there is none, what only those"
            " epochs' keys open is lost; for the rest, restore into a new data folder (KMS_DATA_DIR), with a"
            " new database.",
        )


async def _require_same_root(present: WholeRoot, description: Description) -> None:
    there = await present.versions()
    for epoch, value in description.check_values.items():
        if epoch not in there:
            raise ConfigurationError(
                f"there is a root already, which has no epoch {epoch}: an older copy",
                remedy="It is never overwritten: move it away and restore again.",
            )
        if not await answers(present, description.mode, epoch, value):
            raise ConfigurationError(
                "there is another root already",
                remedy="It is never overwritten: use it, or move it away and restore again.",
            )

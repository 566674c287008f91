"""Putting a root back that was opened from a backup: what must agree before, and what is recorded after."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from kms.cli.office import command_line_actor
from kms.encoding import b64url, whole_seconds
from kms.errors import ConfigurationError, KmsError, LedgerUnavailable
from kms.keys.check_value import agrees
from kms.keys.root_copy import Description, DstackMarks, RootCopy
from kms.keys.root_messages import FOUNDING_EPOCH, check_message
from kms.preflight import Checked, check_settings
from kms.rootkey import NotExportable, RootKeyMissing, RootProvider, open_provider, restore_provider
from kms.settings import Settings
from kms.wiring import LocalKeys, open_key_stores, open_stores, utc_now

if TYPE_CHECKING:
    from kms.strict_json import JsonValue

_ACTION: Final = "keys-restore"


class PutBack(NamedTuple):
    """What was done: `made` is false where the same root was there already.

    `dstack` says what became of imported roots, None where the backup has none. `waiting` are epochs that the
    database does not know.
    """

    root_key: str
    made: bool
    dstack: str | None
    waiting: list[int]


async def put_back(settings: Settings, root: RootCopy, description: Description, *, digest: str) -> PutBack:
    """Make the root that the settings name, bring imported roots back, and record both.

    `digest` is the SHA-256 (hex) of the backup's file. What was interrupted is finished by doing it again.

    Raises:
        ConfigurationError: it does not belong to these settings, or something is there already.
        KmsError: the database, or the place of the root, cannot be used.

    """
    checked = check_settings(settings, serving=False)
    mode = checked.root_access.mode
    if root.mode is not mode:
        raise ConfigurationError(
            f"the backup is of a {root.mode} root, and these settings are of {mode} mode",
            remedy="A root never changes from one mode to the other.",
        )
    async with open_stores(settings) as stores:
        known = await stores.installation.check_values()
    _require_same_kms(known, description)
    made = await _make_root(checked, root, description, known)
    try:
        async with open_key_stores(settings) as keys:
            dstack = await _put_back_dstack(keys, root, description)
            details: dict[str, JsonValue] = {
                "backup_sha256": digest,
                "backup_created_at": whole_seconds(description.created_at),
                "epochs": [*root.secrets],
                "root_made": made,
                "dstack": dstack,
            }
            await keys.journal.record(command_line_actor(), _ACTION, "root", details=details)
    except KmsError as error:
        raise ConfigurationError(
            f"the root is there ({checked.root_key_uri}), but cannot be used yet: {error.detail}",
            remedy=f"{_remedy(error)} Then the same command finishes the work.",
        ) from error
    return PutBack(
        root_key=checked.root_key_uri,
        made=made,
        dstack=dstack,
        waiting=sorted(set(root.secrets) - set(known or {FOUNDING_EPOCH})),
    )


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


async def _make_root(
    checked: Checked, root: RootCopy, description: Description, known: Mapping[int, bytes]
) -> bool:
    """Make the root; say False where the same one is already."""
    uri, access = checked.root_key_uri, checked.root_access
    try:
        provider = await open_provider(uri, access)
    except RootKeyMissing:
        _require_all_epochs(known, description)
        try:
            provider = await restore_provider(uri, access, root.secrets, now=utc_now())
        except NotExportable as error:
            raise ConfigurationError(
                error.detail,
                remedy="Say --to file:PATH or --to vault-kv:MOUNT/PATH, and set KMS_ROOT_KEY to the same.",
            ) from error
        await provider.close()
        return True
    except ConfigurationError as error:
        raise ConfigurationError(
            error.detail,
            remedy="It is never overwritten: mend it, or move it away and restore again.",
        ) from error
    try:
        await _require_same_root(provider, description)
    finally:
        await provider.close()
    return False


async def _require_same_root(provider: RootProvider, description: Description) -> None:
    present = await provider.versions()
    for epoch, value in description.check_values.items():
        if epoch not in present:
            raise ConfigurationError(
                f"there is a root already, which has no epoch {epoch}: an older copy",
                remedy="It is never overwritten: move it away and restore again.",
            )
        [output] = await provider.outputs(epoch, [check_message(description.mode, epoch)])
        if not agrees(value, output):
            raise ConfigurationError(
                "there is another root already",
                remedy="It is never overwritten: use it, or move it away and restore again.",
            )


def _remedy(error: KmsError) -> str:
    remedy = error.remedy if isinstance(error, ConfigurationError) else ""
    return f"{remedy.rstrip('.') or 'Mend that'}."


async def _put_back_dstack(keys: LocalKeys, root: RootCopy, description: Description) -> str | None:
    """Bring imported roots back where the database has none that can be used."""
    if root.dstack is None:
        return None
    untrusted = False
    try:
        kept = await keys.foreign.dstack()
    except LedgerUnavailable as error:
        if error.reason != "foreign-roots-untrusted":
            raise
        kept, untrusted = None, True
    if kept is not None:
        same = DstackMarks.of(kept) == description.dstack
        return "here already" if same else "others are here, and stay"
    action = keys.journal.entry(command_line_actor(), _ACTION, "dstack")
    await keys.foreign.import_dstack(root.dstack, action=action, replace=untrusted)
    return "restored"

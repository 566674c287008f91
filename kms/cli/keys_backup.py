"""``kms keys export``: a backup of the root, sealed to recovery keys. Only on the server's own machine.

There is no such command for another machine, and no route: nobody gets a root over the network, whatever
token they hold.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.cli.keys_files import add_passphrase, add_recovery_key, require_new, write_new
from kms.cli.keys_restore import add_restore
from kms.cli.office import command_line_actor
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, say
from kms.errors import RootKeyUnavailable

if TYPE_CHECKING:
    from kms.keys.backup import Backup
    from kms.keys.recovery_key import RecoveryRecipient
    from kms.keys.root_copy import RootCopy
    from kms.keys.root_messages import Mode
    from kms.settings import Settings
    from kms.wiring import LocalKeys

_ACTION: Final = "keys-export"


def add_commands(group: Group) -> None:
    """Add the commands around backups."""
    add_recovery_key(group)
    _add_export(group)
    add_restore(group)
    add_passphrase(group)


def _add_export(group: Group) -> None:
    command = group.add(
        "export",
        summary="back the root up, sealed to recovery keys",
        description="Write a backup of the root, with all epochs and imported roots, to a new file (0600). It"
        " is sealed to recipients of the list that KMS_RECOVERY_KEYS names, and to nobody else; each of them"
        " can open it alone. It is in the record before it is written. A root in Vault's transit engine or an"
        " HSM cannot be had: it is backed up there. Make a new backup after each new epoch.",
        example="kms keys export --to alice --to bob --out root.backup",
    )
    to = command.add_mutually_exclusive_group(required=True)
    to.add_argument(
        "--to", metavar="NAME", action="append", help="a recipient of the list; more than one may"
    )
    to.add_argument("--all", action="store_true", help="to all of the list")
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="the new file")
    command.add_argument(
        "--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)"
    )
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    import asyncio

    from kms.cli.reading import read_settings
    from kms.recovery_keys import read_recipients

    settings = read_settings(arguments.config)
    listed = read_recipients(settings.recovery_keys)
    names = list(listed) if arguments.all else list(dict.fromkeys(arguments.to))
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise WrongUse(f"--to {unknown[0]}: not in the list of recovery keys, which has {', '.join(listed)}")
    require_new(arguments.out)
    backup = asyncio.run(_store(settings, [listed[name] for name in names], arguments.out))
    described = backup.description.to_json()
    if arguments.json:
        recipients = [each.header() for each in backup.recipients]
        print_json({"file": str(arguments.out), **described, "recipients": recipients})
        return OK
    say(
        [
            Line(f"{arguments.out}: {len(backup.description.check_values)} epoch(s), {described['mode']}"),
            Line(f"identity, generation 1: {described['identity']}"),
            *(Line(f"sealed to {each.name}, SHA-256 {each.fingerprint.hex()}") for each in backup.recipients),
        ]
    )
    return OK


async def _store(settings: "Settings", recipients: "list[RecoveryRecipient]", out: Path) -> "Backup":
    import hashlib
    import secrets

    from kms.keys.backup import Backup
    from kms.root_access import root_access
    from kms.wiring import open_key_stores, utc_now

    async with open_key_stores(settings) as keys:
        root = await _root_copy(keys, root_access(settings).mode)
        backup = Backup.seal(root, recipients, now=utc_now(), random=secrets.token_bytes)
        content = backup.to_json()
        # Before the file: no key leaves before its record is durable.
        await keys.journal.record(
            command_line_actor(),
            _ACTION,
            "root",
            details={
                "recipients": [each.header() for each in backup.recipients],
                "epochs": [*root.secrets],
                "dstack": root.dstack is not None,
                "backup_sha256": hashlib.sha256(content).hexdigest(),
            },
        )
        write_new(out, content)
    return backup


async def _root_copy(keys: "LocalKeys", mode: "Mode") -> "RootCopy":
    """Take the root out of its provider, and make sure that it is the one that answers guests.

    Raises:
        NotExportable: it cannot be had.
        RootKeyUnavailable: it is another one.

    """
    from kms.keys.check_value import agrees
    from kms.keys.root_copy import RootCopy
    from kms.keys.root_messages import check_message

    provider = keys.root.provider
    root = RootCopy(mode=mode, secrets=await provider.secrets(), dstack=await keys.foreign.dstack())
    for epoch, value in root.check_values().items():
        [output] = await provider.outputs(epoch, [check_message(mode, epoch)])
        if not agrees(value, output):
            raise RootKeyUnavailable(
                f"epoch {epoch} of the root changed while it was read", reason="root-key-changed"
            )
    return root

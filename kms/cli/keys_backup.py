"""``kms keys export``, and with it ``recovery-key``, ``restore`` and ``passphrase``: custody of the root.

Only on the server's own machine. There is no such command for another one, and no route: nobody gets a root
over the network, whatever token they hold.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.keys_files import add_passphrase, add_recovery_key, require_new, write_new
from kms.cli.keys_restore import add_restore
from kms.cli.office import command_line_actor
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, say

if TYPE_CHECKING:
    from kms.keys.backup import Backup
    from kms.keys.recovery_key import RecoveryRecipient
    from kms.settings import Settings


def add_commands(group: Group) -> None:
    """Add the four commands."""
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
    backup = asyncio.run(_back_up(settings, [listed[name] for name in names], arguments.out))
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


async def _back_up(settings: "Settings", recipients: "list[RecoveryRecipient]", out: Path) -> "Backup":
    from kms.administration.restoring import require_root
    from kms.preflight import check_settings
    from kms.root_place import ConfiguredRoot
    from kms.wiring import open_key_stores, utc_now

    checked = check_settings(settings, serving=False)
    await require_root(ConfiguredRoot(checked.root_key_uri, checked.root_access, utc_now))
    async with open_key_stores(settings) as keys:
        return await keys.custody.export(
            command_line_actor(), recipients, lambda content: write_new(out, content)
        )

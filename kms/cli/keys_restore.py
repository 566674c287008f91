"""``kms keys restore``: the root from a backup, on the machine of the server that lost it."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kms.cli.keys_files import load_recovery_key
from kms.cli.office import command_line_actor
from kms.cli.output import OK, WrongUse, print_json, read_file
from kms.cli.parsers import Group
from kms.cli.pins import read_identity
from kms.cli.saying import Line, say
from kms.errors import ConfigurationError, KmsError

if TYPE_CHECKING:
    from kms.keys.backup import Backup
    from kms.keys.root_copy import Description, RootCopy
    from kms.settings import Settings


class Restored(NamedTuple):
    """What was done: `made` is false where the same root was there already.

    `adopted` says whether a database without epochs got those of the backup, and `waiting` are epochs that it
    does not know. `dstack` says what became of imported roots, None where the backup has none.
    """

    root_key: str
    made: bool
    adopted: bool
    dstack: str | None
    waiting: list[int]


def add_restore(group: Group) -> None:
    """Add ``kms keys restore``."""
    command = group.add(
        "restore",
        summary="restore the root from a backup, or check a backup",
        description="Open a backup with a recovery key, verify that it is what it says, and make the root"
        " where KMS_ROOT_KEY says; epochs, generations of the identity and imported roots too, where the"
        " database has none. Nothing is ever overwritten: where the same root is already, it stays. A backup"
        " of another KMS than the database's, of the other mode, from before the last epoch, or from before"
        " what the anchor (KMS_LEDGER_ANCHOR) has seen is refused. --check opens and verifies the backup, and"
        " writes nothing.",
        example="kms keys restore root.backup --key alice.key --passphrase-file alice.passphrase",
    )
    add = command.add_argument
    add("backup", metavar="BACKUP", type=Path, help="what `kms keys export` wrote")
    add("--key", metavar="FILE", type=Path, required=True, help="a recovery key that it was sealed to")
    add("--passphrase-file", metavar="F", help="file with that key's passphrase, mode 0600")
    add(
        "--identity",
        metavar="KEY",
        help="only the root of the KMS whose first identity is this (or @FILE): anybody who has your public"
        " key can make a backup of a root of their own",
    )
    add("--check", action="store_true", help="verify the backup, and write nothing")
    add("--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    add("--to", metavar="URI", help="restore to this root key instead of KMS_ROOT_KEY: file:… or vault-kv:…")
    command.set_defaults(run=_restore)


def _restore(arguments: argparse.Namespace) -> int:
    import asyncio

    from kms.cli.reading import read_settings

    if arguments.check and (arguments.to is not None or arguments.config is not None):
        raise WrongUse("--check writes nothing: it takes neither --to nor --config")
    backup, digest, root = _open(arguments)
    done = None
    if not arguments.check:
        settings = read_settings(arguments.config)
        if arguments.to is not None:
            settings = settings.model_copy(update={"root_key": arguments.to})
        done = asyncio.run(_put_back(settings, root, backup.description, digest))
    if arguments.json:
        print_json({**backup.description.to_json(), "restored": None if done is None else done._asdict()})
    else:
        say(_lines(backup, done))
        if arguments.to is not None:
            say([Line(f"next: set KMS_ROOT_KEY to {arguments.to}")])
    return OK


def _open(arguments: argparse.Namespace) -> "tuple[Backup, str, RootCopy]":
    """Read and open the backup; give also its file's SHA-256 (hex)."""
    import hashlib

    from kms.encoding import b64url
    from kms.keys.backup import MAX_FILE, Backup

    content = read_file(arguments.backup, at_most=MAX_FILE)
    backup = Backup.parse(content)
    root = backup.open(load_recovery_key(arguments.key, arguments.passphrase_file))
    identity = backup.description.identity
    if arguments.identity is not None and read_identity(arguments.identity) != identity:
        raise ConfigurationError(f"the backup is of another KMS: its first identity is {b64url(identity)}")
    return backup, hashlib.sha256(content).hexdigest(), root


async def _put_back(
    settings: "Settings", root: "RootCopy", description: "Description", digest: str
) -> Restored:
    """Make the root that the settings name, and bring the rest back: again, if it was interrupted."""
    from kms.wiring import open_key_stores, open_restoring

    actor = command_line_actor()
    async with open_restoring(settings, root) as restoring:
        root_key = restoring.place.uri
        done = await restoring.put_back(actor, root, description)
    try:
        async with open_key_stores(settings) as keys:
            dstack = await keys.custody.finish_restore(
                actor, root, description, digest=digest, made=done.made
            )
    except KmsError as error:
        remedy = error.remedy if isinstance(error, ConfigurationError) else ""
        raise ConfigurationError(
            f"the root is there ({root_key}), but cannot be used yet: {error.detail}",
            remedy=f"{remedy.rstrip('.') or 'Mend that'}. Then the same command finishes the work.",
        ) from error
    return Restored(root_key, done.made, done.adopted, dstack, done.waiting)


def _lines(backup: "Backup", done: Restored | None) -> Iterator[Line]:
    description = backup.description
    told = description.to_json()
    yield Line(
        f"backup of {told['created_at']}, {told['mode']}: {len(description.check_values)} epoch(s);"
        f" sealed to {', '.join(each.name for each in backup.recipients)}"
    )
    yield Line(f"identity, generation 1: {told['identity']}")
    if description.dstack is not None:
        for name, value in description.dstack.to_json().items():
            yield Line(f"roots of a dstack KMS, {name}: {value}")
    if done is None:
        yield Line("it opens, and is what it says; nothing was written", "green")
        return
    yield Line(f"{'restored' if done.made else 'here already'}: {done.root_key}", "green")
    if done.adopted:
        yield from _adopted(description)
    if done.dstack is not None:
        yield Line(f"roots of a dstack KMS: {done.dstack}")
    if done.waiting:
        yield Line(
            f"this database does not know epoch(s) {', '.join(map(str, done.waiting))}: guests get none of"
            " their keys until `kms keys rotate` brings them back, one at a time",
            "yellow",
        )


def _adopted(description: "Description") -> Iterator[Line]:
    history = description.history
    retired = [str(each.number) for each in history.epochs.epochs if each.retired_at is not None]
    yield Line(
        f"the database had no epochs, and has those of the backup: 1 to {history.epochs.newest.number},"
        f" {'retired ' + ', '.join(retired) if retired else 'none retired'};"
        f" {1 + len(history.later_generations)} generation(s) of the identity"
    )
    yield Line(
        "the backup knows nothing of what was retired or made since: see to that before the server starts"
        " (`kms keys list`)",
        "yellow",
    )

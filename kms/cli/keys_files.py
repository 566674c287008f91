"""``kms keys recovery-key`` and ``kms keys passphrase``: secret files, of recipients and of a file root."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kms.cli.office import command_line_actor
from kms.cli.output import OK, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, say
from kms.errors import ConfigurationError, KmsError
from kms.private_files import read_secret

if TYPE_CHECKING:
    from kms.keys.recovery_key import RecoveryKey
    from kms.preflight import Checked
    from kms.settings import Settings


def add_recovery_key(group: Group) -> None:
    """Add ``kms keys recovery-key``."""
    command = group.add(
        "recovery-key",
        summary="make a key that opens backups of the root",
        description="Make a recovery key (ML-KEM-768 and X25519) in a new file (0600), and print its line for"
        " the list of those who may get backups (KMS_RECOVERY_KEYS). Keep the file away from the server: with"
        " a backup it is every key of every app.",
        example="kms keys recovery-key --out alice.key --passphrase-file alice.passphrase",
    )
    add = command.add_argument
    add("--out", metavar="FILE", type=Path, required=True, help="the new file")
    add("--name", help="the recipient's name in the list (default: the file's name)")
    add("--passphrase-file", metavar="F", help="encrypt it under the passphrase in this file, mode 0600")
    command.set_defaults(run=_recovery_key)


def add_passphrase(group: Group) -> None:
    """Add ``kms keys passphrase``."""
    command = group.add(
        "passphrase",
        summary="encrypt the root key file, change its passphrase, or remove it",
        description="Put the root key file under another passphrase, or under none. The current one is where"
        " KMS_ROOT_KEY_PASSPHRASE_FILE says. A server that runs meanwhile has the root in memory and goes on"
        " releasing keys, but says that it is not ready (root-key-damaged) until it finds the new passphrase"
        " there, or is restarted with the new setting. It is in the record before the file changes: where the"
        " database cannot be opened, nothing is changed.",
        example="kms keys passphrase --new-file /etc/kms/passphrase.new",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--new-file", metavar="F", help="file with the new passphrase, mode 0600")
    what.add_argument("--remove", action="store_true", help="do not encrypt the root key file any more")
    command.add_argument(
        "--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)"
    )
    command.set_defaults(run=_passphrase)


def load_recovery_key(path: Path, passphrase_file: str | None) -> "RecoveryKey":
    """Read a private recovery key from its file.

    Raises:
        ConfigurationError: it cannot be read, others can read it, it is none, or needs another passphrase.

    """
    from kms.keys.wiping import wipe
    from kms.recovery_keys import read_recovery_key
    from kms.root_access import read_passphrase

    content = read_secret(path, what="recovery key", ours=False)
    passphrase = None if passphrase_file is None else lambda: read_passphrase(passphrase_file)
    try:
        return read_recovery_key(path, content, passphrase)
    finally:
        wipe(content)


def require_new(path: Path) -> None:
    """Make sure that nothing is in the place of a new file, before anything is done for it.

    Raises:
        ConfigurationError: something is.

    """
    if path.is_symlink() or path.exists():
        raise _taken(path)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600; it is on disk when this returns.

    Raises:
        ConfigurationError: something is there already, or it cannot be written.

    """
    from kms import private_files

    try:
        private_files.write_new(path, content)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _taken(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path} exists, and is never overwritten", remedy="choose another name")


def _recovery_key(arguments: argparse.Namespace) -> int:
    from kms.keys.recovery_key import RecoveryKey, RecoveryRecipient, is_recipient_name
    from kms.recovery_keys import recipient_line, write_recovery_key
    from kms.root_access import read_passphrase

    name = arguments.name or arguments.out.stem
    if not is_recipient_name(name):
        raise WrongUse("a recipient's name is 1 to 64 of A-Z a-z 0-9 _ -: say --name")
    require_new(arguments.out)
    passphrase = None if arguments.passphrase_file is None else read_passphrase(arguments.passphrase_file)
    key = RecoveryKey.generate()
    write_new(arguments.out, write_recovery_key(key, passphrase))
    recipient = RecoveryRecipient(name, key.public_key)
    line, digest = recipient_line(recipient), recipient.fingerprint.hex()
    if arguments.json:
        print_json(
            {
                "file": str(arguments.out),
                "name": name,
                "line": line,
                "public_key_sha256": digest,
                "encrypted": passphrase is not None,
            }
        )
    else:
        print(f"{line}  # SHA-256 {digest}")
    return OK


def _passphrase(arguments: argparse.Namespace) -> int:
    import asyncio

    from kms.cli.reading import read_settings
    from kms.preflight import check_settings
    from kms.root_access import read_passphrase

    settings = read_settings(arguments.config)
    checked = check_settings(settings, serving=False)
    scheme, _, path = checked.root_key_uri.partition(":")
    if scheme != "file":
        raise ConfigurationError(
            f"a {scheme}: root key has no passphrase", remedy="only a file: root key is encrypted under one"
        )
    new = None if arguments.remove else read_passphrase(arguments.new_file)
    asyncio.run(_reseal(settings, checked, Path(path), new))
    if arguments.json:
        print_json({"root_key": path, "encrypted": new is not None})
        return OK
    if new is None:
        next_step = "unset KMS_ROOT_KEY_PASSPHRASE_FILE, and restart the server"
    elif checked.root_access.passphrase is None:
        next_step = f"set KMS_ROOT_KEY_PASSPHRASE_FILE to {arguments.new_file}, and restart the server"
    else:
        next_step = f"put {arguments.new_file} in the place of the file with the old passphrase"
    say(
        [
            Line(f"{path}: {'not encrypted any more' if new is None else 'encrypted'}"),
            Line(f"next: {next_step}"),
            Line("until then a server that runs serves guests from memory, and says that it is not ready"),
        ]
    )
    return OK


async def _reseal(settings: "Settings", checked: "Checked", path: Path, new: bytes | None) -> None:
    from contextlib import AsyncExitStack

    from kms.administration.restoring import require_root
    from kms.root_place import ConfiguredRoot
    from kms.rootkey.file import reseal
    from kms.wiring import open_key_stores, utc_now

    access = checked.root_access
    await require_root(ConfiguredRoot(checked.root_key_uri, access, utc_now))
    async with AsyncExitStack() as stack:
        try:
            keys = await stack.enter_async_context(open_key_stores(settings))
        except KmsError as error:
            raise ConfigurationError(
                f"the passphrase was not changed, for nobody could record that: {error.detail}",
                remedy=error.remedy if isinstance(error, ConfigurationError) else "Mend that first.",
            ) from error
        await keys.custody.change_passphrase(
            command_line_actor(),
            lambda: reseal(path, access.mode, access.passphrase, None if new is None else lambda: new),
            encrypted=new is not None,
        )

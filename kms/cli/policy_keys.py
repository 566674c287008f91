"""Operators' signing keys: made here, read from files that only their owner can read, never shown."""

import argparse
import re
import warnings
from getpass import GetPassWarning, getpass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from kms.cli.output import OK, Unreadable, WrongUse, print_json
from kms.cli.parsers import Group
from kms.cli.pins import read_identity
from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.guest.secret_file import write_secret
from kms.private_files import read_secret

KEY_HELP: Final = "sign with this Ed25519 key: PEM (PKCS#8) or OpenSSH, mode 0600"
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")  # kms.policy.trust
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")  # TOML 1.0, "Keys"
_OPENSSH: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def add_identity_option(command: argparse.ArgumentParser) -> None:
    """Let a command refuse to sign for another KMS."""
    command.add_argument(
        "--identity",
        metavar="KEY",
        help="sign for the KMS of this identity only (or @FILE): a server that was taken over could ask for a"
        " signature that another one takes",
    )


def wanted_identity(arguments: argparse.Namespace) -> bytes | None:
    """Read the identity that `--identity` names, None where nobody said one."""
    return None if arguments.identity is None else read_identity(arguments.identity)


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key; its passphrase, if it has one, is asked for on the terminal.

    Raises:
        ConfigurationError: it cannot be read, others can read it, or there is no terminal to ask on.
        Unreadable: it is no Ed25519 key, or the passphrase is not its.

    """
    raw = bytes(read_secret(path, what="signing key", ours=False))
    load = load_ssh_private_key if raw.lstrip().startswith(_OPENSSH) else load_pem_private_key
    try:
        try:
            key = load(raw, password=None)
        except TypeError:
            # How `cryptography` says that a key is encrypted.
            key = load(raw, password=_ask(f"Passphrase of {path}: "))
    except ValueError:
        raise Unreadable(f"{path}: no private key in PEM, or another passphrase") from None
    except UnsupportedAlgorithm as error:
        raise Unreadable(f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Unreadable(f"{path}: not an Ed25519 key")
    return key


def add_keygen(group: Group) -> None:
    """Add ``kms policy keygen``."""
    keygen = group.add(
        "keygen",
        summary="make a signing key for an operator",
        description="Make an Ed25519 key with which an operator signs policies, in a new file (0600), and"
        " print its line for the trust file (KMS_POLICY_TRUST). An SSH key of the same kind will do as well.",
        example="kms policy keygen alice.pem --name alice --passphrase",
    )
    keygen.add_argument("file", metavar="FILE", type=Path, help="the new file")
    keygen.add_argument("--name", help="the operator's name in the trust file (default: the file's name)")
    keygen.add_argument("--passphrase", action="store_true", help="ask for a passphrase, and encrypt with it")
    keygen.set_defaults(run=_keygen)


def _keygen(arguments: argparse.Namespace) -> int:
    name = arguments.name or arguments.file.stem
    if not _NAME.fullmatch(name):
        raise WrongUse("an operator's name is 1 to 64 of A-Z a-z 0-9 . _ @ -: say --name")
    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(_new_passphrase()) if arguments.passphrase else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    # On a disk, unlike a guest's keys: it is the operator's own machine, and the key has to last.
    write_secret(arguments.file, pem, allow_disk=True)
    public_key = f"ed25519:{b64url(key.public_key().public_bytes_raw())}"
    if arguments.json:
        print_json({"file": str(arguments.file), "name": name, "public_key": public_key})
    else:
        print(f'{_toml_key(name)} = "{public_key}"')
    return OK


def _toml_key(name: str) -> str:
    return name if _BARE.fullmatch(name) else f'"{name}"'


def _new_passphrase() -> bytes:
    first = _ask("Passphrase: ")
    if not first:
        raise WrongUse("the passphrase is empty")
    if _ask("Again: ") != first:
        raise WrongUse("the two passphrases differ")
    return first


def _ask(prompt: str) -> bytes:
    try:
        with warnings.catch_warnings():
            # Without a terminal it would be read, and shown, as any input.
            warnings.simplefilter("error", GetPassWarning)
            return getpass(prompt).encode("utf-8")
    except (GetPassWarning, EOFError):
        raise ConfigurationError(
            "a passphrase is needed, and there is no terminal to ask on",
            remedy="use a terminal; or `ssh-keygen -Y sign`, which knows agents, and `kms policy approve"
            " --ssh-signature`",
        ) from None

"""``kms keys import-dstack``: bring the root keys of a dstack KMS here. Only on the server's own machine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kms.cli.office import command_line_actor
from kms.cli.output import OK, Unreadable, print_json
from kms.cli.parsers import Group
from kms.cli.saying import Line, say
from kms.private_files import read_secret

if TYPE_CHECKING:
    from kms.keys.dstack import DstackRoots
    from kms.settings import Settings
    from kms.strict_json import JsonValue

_WHAT: Final = "root key of dstack"
_ACTION: Final = "keys-import-dstack"


def add_commands(group: Group) -> None:
    """Add ``kms keys import-dstack``."""
    command = group.add(
        "import-dstack",
        summary="keep the root keys of a dstack KMS, for the keys `dstack:…` of apps that move here",
        description="Keep the root keys of a dstack KMS in the database of this machine, sealed, for the keys"
        " dstack:disk, dstack:env and dstack:k256 of apps with `compat: dstack` in their policy. Our own keys"
        " have nothing to do with them. Prints the public keys, to be compared with what that KMS publishes.",
        example="kms keys import-dstack --ca-key root-ca.key --k256-key root-k256.key",
    )
    add = command.add_argument
    add("--ca-key", metavar="FILE", type=Path, required=True, help="its root-ca.key: PEM, P-256, mode 0600")
    add("--k256-key", metavar="FILE", type=Path, required=True, help="its root-k256.key: 32 bytes, mode 0600")
    add("--replace", action="store_true", help="take the place of other roots that were imported before")
    add("--config", metavar="FILE", type=Path, help="path of kms.toml (default: KMS_CONFIG, else none)")
    command.set_defaults(run=_import)


def read_roots(ca_key: Path, k256_key: Path) -> "DstackRoots":
    """Read the files of a dstack KMS.

    Raises:
        Unreadable: one is not such a key.
        ConfigurationError: one cannot be read, or others can read it.

    """
    from kms.keys.dstack import DstackRoots

    ca, k256 = _read_p256(ca_key), bytes(read_secret(k256_key, what=_WHAT, ours=False))
    try:
        return DstackRoots(ca=ca, k256=k256)
    except ValueError:
        # The other one was a key already.
        raise Unreadable(f"{k256_key}: not a private key of secp256k1 in 32 bytes") from None


def _read_p256(path: Path) -> bytes:
    try:
        key = load_pem_private_key(bytes(read_secret(path, what=_WHAT, ours=False)), password=None)
    except TypeError:
        # How `cryptography` says that a key is encrypted.
        raise Unreadable(f"{path}: encrypted, which dstack's is not") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unreadable(f"{path}: no private key in PEM") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise Unreadable(f"{path}: not a key of P-256")
    return key.private_numbers().private_value.to_bytes(32, "big")


def _import(arguments: argparse.Namespace) -> int:
    import asyncio

    from kms.cli.reading import read_settings

    # Before anything is opened: a wrong file changes nothing, and makes no data folder.
    roots = read_roots(arguments.ca_key, arguments.k256_key)
    public: dict[str, JsonValue] = {
        "ca_spki_sha256": roots.ca_fingerprint.hex(),
        "k256_public_key": roots.k256_public_key.hex(),
    }
    settings = read_settings(arguments.config)
    imported = asyncio.run(_store(settings, roots, public, replace=arguments.replace))
    if arguments.json:
        print_json({"imported": imported, **public})
        return OK
    say(
        [
            Line("imported" if imported else "these roots are here already: nothing was changed"),
            Line(f"CA, SHA-256 of its public key (SPKI): {public['ca_spki_sha256']}"),
            Line(f"k256, public key:                     {public['k256_public_key']}"),
        ]
    )
    return OK


async def _store(
    settings: "Settings", roots: "DstackRoots", public: "dict[str, JsonValue]", *, replace: bool
) -> bool:
    from kms.wiring import open_key_stores

    async with open_key_stores(settings) as stores:
        action = stores.journal.entry(
            command_line_actor(), _ACTION, "dstack", details={**public, "replace": replace}
        )
        return await stores.foreign.import_dstack(roots, action=action, replace=replace)

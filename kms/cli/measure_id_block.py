"""``kms measure id-block``: sign what a guest must measure as, and check such signatures.

``create`` prints what sev-snp-measure's ``snp-create-id-block`` prints, ready for QEMU's ``sev-snp-guest``
object, and takes its flags (``--idkey``, ``--authorkey``) as well as ours.
"""

import argparse
import base64
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from kms.checks import Check
from kms.cli.output import OK, REFUSED, Unreadable, print_json, read_file
from kms.cli.parsers import Group, Parser, integer, run_group
from kms.encoding import from_base64, from_hex
from kms.identifiers import KeyDigest, Measurement
from kms.measurement.errors import MeasurementError
from kms.measurement.id_block import (
    DEFAULT_POLICY,
    ID_AUTH_LENGTH,
    GuestId,
    IdBlock,
    IdBlockVerdict,
    key_digest,
    sign_id_block,
    verify_id_block,
)

_MAX_KEY_FILE = 64 << 10
_MAX_TEXT_FILE = 2 * ID_AUTH_LENGTH
_HEX_MEASUREMENT = 96  # digits; base64 of a measurement has 64


def main(argv: list[str]) -> int:
    """Run one of the commands. Raises `KmsError` for what cannot be read or is not of its format."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    group = Group("kms measure id-block", "Make and check SEV-SNP ID blocks.")
    _add_create(group)
    _add_verify(group)
    return group.parser


def _add_create(group: Group) -> None:
    create = group.add(
        "create",
        summary="sign an ID block for a measurement",
        example="kms measure id-block create --measurement $(kms measure …)"
        " --id-key id.pem --author-key author.pem",
    )
    add = create.add_argument
    add("--measurement", metavar="VALUE", required=True, help="launch measurement, hex or base64")
    add("--id-key", "--idkey", metavar="FILE", required=True, help="P-384 private key, PEM or DER")
    add("--author-key", "--authorkey", metavar="FILE", help="P-384 private key that vouches for the ID key")
    add("--family-id", metavar="HEX", default="00" * 16, help="16 bytes of the owner's choice (default zero)")
    add("--image-id", metavar="HEX", default="00" * 16, help="16 bytes of the owner's choice (default zero)")
    add("--guest-svn", metavar="N", type=integer, default=0, help="security version of the guest (default 0)")
    add("--policy", metavar="VALUE", type=integer, default=DEFAULT_POLICY, help="guest policy (0x30000)")
    create.set_defaults(run=_create)


def _add_verify(group: Group) -> None:
    verify = group.add(
        "verify",
        summary="check an ID block and who signed it",
        example="kms measure id-block verify --id-block @block.bin --id-auth @auth.bin --id-key-digest HEX",
    )
    add = verify.add_argument
    add("--id-block", metavar="VALUE", required=True, help="base64, or @FILE with base64 or the 96 bytes")
    add("--id-auth", metavar="VALUE", required=True, help="base64, or @FILE with base64 or the 4096 bytes")
    add("--measurement", metavar="VALUE", help="what the block must be for, hex or base64")
    add("--id-key-digest", metavar="HEX", help="what the ID key must be: 48 bytes, as reports show it")
    add("--author-key-digest", metavar="HEX", help="what the author key must be")
    verify.set_defaults(run=_verify)


def _create(args: argparse.Namespace) -> int:
    block = IdBlock(
        launch_digest=_measurement(args.measurement),
        family_id=_guest_id("--family-id", args.family_id),
        image_id=_guest_id("--image-id", args.image_id),
        guest_svn=args.guest_svn,
        policy=args.policy,
    )
    id_key = _private_key(args.id_key)
    author_key = None if args.author_key is None else _private_key(args.author_key)
    auth = sign_id_block(block, id_key, author_key)
    encoded, auth_encoded = _base64(block.encode()), _base64(auth)
    digest = key_digest(id_key.public_key())
    author_digest = None if author_key is None else key_digest(author_key.public_key())
    if args.json:
        values = {"id_block": encoded, "id_auth": auth_encoded}
        print_json(values | _described(block) | _digests(digest, author_digest))
        return OK
    # Line by line as snp-create-id-block, so that scripts which read that can read this.
    print(f"id-block={encoded},id-auth={auth_encoded}")
    print(f"id_key_hash: {_base64(digest)}")
    if author_digest is not None:
        print(f"author_key: {_base64(author_digest)}")
    return OK


def _verify(args: argparse.Namespace) -> int:
    verdict = verify_id_block(_structure(args.id_block), _structure(args.id_auth))
    checks = [*verdict.checks, *_expectations(args, verdict)]
    verified = all(check.passed for check in checks)
    if args.json:
        rows = [{"name": each.name, "passed": each.passed, "detail": each.detail} for each in checks]
        digests = _digests(verdict.id_key_digest, verdict.author_key_digest)
        print_json({"verified": verified, "checks": rows} | _described(verdict.block) | digests)
        return OK if verified else REFUSED
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}")
    print()
    for name, value in (
        _described(verdict.block) | _digests(verdict.id_key_digest, verdict.author_key_digest)
    ).items():
        print(f"  {name}: {'-' if value is None else value}")
    return OK if verified else REFUSED


def _expectations(args: argparse.Namespace, verdict: IdBlockVerdict) -> list[Check]:
    """Compare with what the caller expects. Without a key digest, a block proves nothing about its maker."""
    expected: list[tuple[str, bytes, bytes | None]] = []
    if args.measurement is not None:
        expected.append(("measurement", _measurement(args.measurement), verdict.block.launch_digest))
    for name, given, shown in (
        ("id-key", args.id_key_digest, verdict.id_key_digest),
        ("author-key", args.author_key_digest, verdict.author_key_digest),
    ):
        if given is not None:
            expected.append((name, _key_digest(f"--{name}-digest", given), shown))
    return [
        Check.of(name, wanted == shown, f"it is {shown.hex() if shown else 'none'}, expected {wanted.hex()}")
        for name, wanted, shown in expected
    ]


def _described(block: IdBlock) -> dict[str, str | int | None]:
    return {
        "launch_digest": block.launch_digest.hex(),
        "family_id": block.family_id.hex(),
        "image_id": block.image_id.hex(),
        "guest_svn": block.guest_svn,
        "policy": hex(block.policy),
    }


def _digests(id_key: KeyDigest, author_key: KeyDigest | None) -> dict[str, str | int | None]:
    return {
        "id_key_digest": id_key.hex(),
        "author_key_digest": None if author_key is None else author_key.hex(),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _measurement(text: str) -> Measurement:
    try:
        return Measurement(from_hex(text) if len(text) == _HEX_MEASUREMENT else from_base64(text))
    except ValueError as error:
        raise MeasurementError(f"--measurement: {error}") from None


def _guest_id(name: str, text: str) -> GuestId:
    try:
        return GuestId.from_hex(text)
    except ValueError as error:
        raise MeasurementError(f"{name}: {error}") from None


def _key_digest(name: str, text: str) -> KeyDigest:
    try:
        return KeyDigest.from_hex(text)
    except ValueError as error:
        raise MeasurementError(f"{name}: {error}") from None


def _structure(value: str) -> bytes:
    """Read base64, or a file that holds base64 or raw bytes (which are never base64: they hold zeros)."""
    data = read_file(Path(value[1:]), at_most=_MAX_TEXT_FILE) if value.startswith("@") else value.encode()
    try:
        return from_base64(data.decode("ascii").strip())
    except ValueError as error:
        if value.startswith("@"):
            return data
        raise MeasurementError(f"--id-block or --id-auth: {error}") from None


def _private_key(path: str) -> ec.EllipticCurvePrivateKey:
    data = read_file(Path(path), at_most=_MAX_KEY_FILE)
    load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
    try:
        key = load(data, password=None)
    except TypeError:
        raise Unreadable(f"{path}: the key is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unreadable(f"{path}: not a private key in PEM or DER") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Unreadable(f"{path}: not a P-384 key")
    return key

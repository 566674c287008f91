"""Write the vectors again, from the second implementation: ``python -m tests.golden.keys.regenerate``.

A difference in them is a change of every key that was ever released. It needs new labels, not new vectors.
`KEPT` are files that are not written again: vectors of dstack's own, and what was sealed once with fresh
randomness and must open for ever.
"""

import json
from pathlib import Path
from typing import Any

from tests.golden.keys import second_certificates as certificates
from tests.golden.keys import second_files as files
from tests.golden.keys import second_implementation as second
from tests.golden.keys import second_p256 as p256

FOLDER = Path(__file__).parent

ROOTS = {1: bytes(range(32)), 2: bytes(range(32, 64))}
APP_20 = bytes.fromhex("86e59625be93207bc2351c4d1bba20037cec8e16")
APP_32 = bytes(range(0xA0, 0xC0))
INSTANCE = bytes(range(0x10, 0x20))
CHIP = bytes(range(0x40, 0x80))
TURIN_CHIP = bytes(range(1, 9)) + bytes(56)
REQUEST = b'{"challenge":"..."}'
MADE_AT = "2026-11-22T12:00:00.000000Z"
CREATED_AT = "2026-01-02T03:04:05Z"
PASSPHRASE = "correct horse battery staple"
BOOT_INFO_DIGEST = bytes(range(0x60, 0x80))

KEPT = {"dstack.json", "published.json", "backup.json"}

KEYS: list[tuple[bytes, int, str, str, bytes]] = [
    (APP_20, 1, "disk", "app", b""),
    (APP_20, 2, "disk", "app", b""),
    (APP_32, 1, "disk", "app", b""),
    (APP_20, 1, "disk", "instance", INSTANCE),
    (APP_20, 1, "disk", "instance", bytes(range(1, 33))),
    (APP_20, 1, "disk", "chip", CHIP),
    (APP_20, 1, "disk", "chip", TURIN_CHIP),
    (APP_20, 1, "env", "app", b""),
    (APP_20, 1, "signing", "app", b""),
    (APP_32, 2, "signing", "app", b""),
    (APP_20, 1, "custom:db", "app", b""),
    (APP_20, 1, "custom:db/main", "app", b""),
    (APP_20, 1, "custom:db/main", "instance", INSTANCE),
    (APP_20, 1, "custom:db/main", "chip", CHIP),
    (APP_20, 1, "custom:disk", "app", b""),
]


def root_messages() -> list[dict[str, Any]]:
    root = ROOTS[1]
    cases: list[dict[str, Any]] = [
        {"use": "app-secret", "app_id": app.hex(), "expect": second.app_secret(root, app).hex()}
        for app in (APP_20, APP_32)
    ]
    for generation in (1, 2):
        seed = second.identity_seed(root, generation)
        public = second.public_key("ed25519", seed) or b""
        cases.append({"use": "identity", "generation": generation, "expect": public.hex()})
    cases.append({"use": "challenge-key", "expect": second.challenge_key(root).hex()})
    for mode in ("development", "production"):
        for epoch in (1, 2):
            expect = second.check_value(ROOTS[epoch], mode, epoch).hex()
            cases.append({"use": "check-value", "mode": mode, "epoch": epoch, "expect": expect})
    return cases


def root_uses() -> list[dict[str, Any]]:
    """Give what `root_messages` leaves out."""
    root = ROOTS[1]
    scalar = second.apps_ca_scalar(root)
    row: list[str | None] = ["1", MADE_AT, "founding", "1970-01-01T00:00:00.000000Z", None, None]
    dstack = bytes([1]) * 32, bytes([2]) * 32
    entry = b"decision", b"0" * 32, b"server-1", bytes(range(16)), b"{}"
    asked = second.in_development(second.check_message("development", 2))
    return [
        {"use": "apps-ca", "expect": scalar.to_bytes(32, "big").hex()},
        {"use": "rows-key", "expect": second.rows_key(root).hex()},
        {
            "use": "row",
            "table": "key_epochs",
            "columns": row,
            "expect": second.row_mac(root, "key_epochs", *row).hex(),
        },
        {"use": "entries-key", "expect": second.entries_key(root).hex()},
        {"use": "ledger-seed", "expect": second.ledger_seed(root).hex()},
        {
            "use": "entry",
            "fields": [each.hex() for each in entry],
            "expect": second.entry_mac(root, *entry).hex(),
        },
        {"use": "foreign-key", "expect": second.foreign_key(root).hex()},
        {
            "use": "foreign-row",
            "nonce": bytes(12).hex(),
            "roots": [each.hex() for each in dstack],
            "expect": files.seal_foreign(root, bytes(12), *dstack).hex(),
        },
        {
            "use": "unmarked-check-value",
            "mode": "development",
            "epoch": 2,
            "expect": second.prf(ROOTS[2], asked)[:32].hex(),
        },
        {
            "use": "unmarked-challenge-key",
            "mode": "development",
            "epoch": 1,
            "expect": second.prf(root, second.in_development(second.challenge_message())).hex(),
        },
    ]


def issued() -> list[dict[str, Any]]:
    """Give the payload's entries of `tls` keys; in the last one the key is the guest's own."""
    own = p256.point(p256.scalar(bytes(range(48))))
    above = certificates.apps_ca(ROOTS[1])
    cases = []
    for app, epoch, wanted in ((APP_20, 1, None), (APP_20, 2, None), (APP_32, 1, None), (APP_20, 1, own)):
        case: dict[str, Any] = {
            "app_id": app.hex(),
            "epoch": epoch,
            "certificate_for": None if wanted is None else second.b64(wanted),
            "names": ["payments.internal", "payments"],
            "days": 7,
            "now": "2026-11-22T12:00:00.987654Z",
            "random": (b"\xff" * 20).hex(),
            "boot_info_digest": BOOT_INFO_DIGEST.hex(),
        }
        expect: dict[str, Any] = {"name": "tls", "scope": "app", "epoch": epoch, "algorithm": "p-256"}
        scalar = second.tls_scalar(ROOTS[epoch], app, epoch)
        if wanted is None:
            expect["value"] = second.b64(p256.pkcs8(scalar))
        ca = certificates.app_ca(above, ROOTS[epoch], app, epoch)
        leaf = certificates.leaf(
            ca,
            wanted or p256.point(scalar),
            names=case["names"],
            days=case["days"],
            boot_info=BOOT_INFO_DIGEST,
            now=case["now"],
            random=bytes.fromhex(case["random"]),
        )
        chain = (leaf, ca.certificate, above.certificate)
        expect["certificate_chain"] = [certificates.pem(each) for each in chain]
        cases.append(case | {"expect": expect})
    return cases


def root_files() -> list[dict[str, Any]]:
    document = files.root_document("production", CREATED_AT, ROOTS)
    encrypted = files.encrypt(
        "attested-kms/root-key-encrypted",
        json.dumps(document).encode(),
        PASSPHRASE.encode(),
        salt=bytes(range(16)),
        nonce=bytes(range(12)),
    )
    return [
        {"mode": "production", "created_at": CREATED_AT, "expect": document},
        {"passphrase": PASSPHRASE, "expect": encrypted},
    ]


def derivations() -> list[dict[str, Any]]:
    seed = second.identity_seed(ROOTS[1], 1)
    return [
        {
            "app_id": app.hex(),
            "epoch": epoch,
            "scope_value": scope_value.hex(),
            "expect": second.entry(
                seed, ROOTS[epoch], app, epoch, name=name, scope=scope, scope_value=scope_value
            ),
        }
        for app, epoch, name, scope, scope_value in KEYS
    ]


def challenges() -> list[dict[str, Any]]:
    return [
        {
            "nonce": nonce.hex(),
            "expires_at": expiry,
            "expect": second.challenge(ROOTS[1], nonce, expiry).hex(),
        }
        for nonce, expiry in ((bytes(16), 1_800_000_000), (bytes(range(16)), 2**32 + 5))
    ]


def envelopes() -> list[dict[str, Any]]:
    seed = second.identity_seed(ROOTS[1], 1)
    chosen = [("disk", "app"), ("env", "app"), ("signing", "app")]
    entries = [
        second.entry(seed, ROOTS[1], APP_20, 1, name=name, scope=scope, scope_value=b"")
        for name, scope in chosen
    ]
    expect = second.envelope(seed, "release-1", REQUEST, APP_20, entries).decode()
    return [
        {
            "release_id": "release-1",
            "request": REQUEST.decode(),
            "app_id": APP_20.hex(),
            "keys": [name for name, _ in chosen],
            "expect": expect,
        }
    ]


def vectors() -> dict[str, Any]:
    """Give each file's content."""
    roots = {str(epoch): root.hex() for epoch, root in ROOTS.items()}
    return {
        "root_messages.json": {"roots": roots, "cases": root_messages()},
        "derivation.json": {"roots": roots, "cases": derivations()},
        "challenge.json": {"roots": roots, "cases": challenges()},
        "envelope.json": {"roots": roots, "cases": envelopes()},
        "root_uses.json": {"roots": roots, "cases": root_uses()},
        "certificates.json": {"roots": roots, "cases": issued()},
        "root_file.json": {"roots": roots, "cases": root_files()},
    }


if __name__ == "__main__":
    for file, content in vectors().items():
        (FOLDER / file).write_text(json.dumps(content, indent=1) + "\n")

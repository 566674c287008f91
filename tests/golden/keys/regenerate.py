"""Write the vectors again, from the second implementation: ``python -m tests.golden.keys.regenerate``.

A difference in them is a change of every key that was ever released. It needs new labels, not new vectors.
"""

import json
from pathlib import Path
from typing import Any

from tests.golden.keys import second_implementation as second

FOLDER = Path(__file__).parent

ROOTS = {1: bytes(range(32)), 2: bytes(range(32, 64))}
APP_20 = bytes.fromhex("86e59625be93207bc2351c4d1bba20037cec8e16")
APP_32 = bytes(range(0xA0, 0xC0))
INSTANCE = bytes(range(0x10, 0x20))
CHIP = bytes(range(0x40, 0x80))
TURIN_CHIP = bytes(range(1, 9)) + bytes(56)
REQUEST = b'{"challenge":"..."}'

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
    }


if __name__ == "__main__":
    for file, content in vectors().items():
        (FOLDER / file).write_text(json.dumps(content, indent=1) + "\n")

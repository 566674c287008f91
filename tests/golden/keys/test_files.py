"""Root key files and backups: `kms`, committed vectors, a second implementation."""

import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

from kms.keys import passphrase_document
from kms.keys.backup import Backup
from kms.keys.dstack import DstackRoots
from kms.keys.epochs import Epoch, EpochTable
from kms.keys.key_history import KeyHistory
from kms.keys.recovery_key import RecoveryKey, RecoveryRecipient
from kms.keys.root_copy import RootCopy
from kms.keys.root_messages import Mode
from kms.rootkey import root_document
from kms.rootkey.root_document import RootDocument
from tests.golden.keys import second_files as second

FOLDER = Path(__file__).parent
ROOT_FILE = json.loads((FOLDER / "root_file.json").read_text())
ROOTS = {int(epoch): bytes.fromhex(root) for epoch, root in ROOT_FILE["roots"].items()}
PLAIN, ENCRYPTED = ROOT_FILE["cases"]
PASSPHRASE = ENCRYPTED["passphrase"].encode()
BACKUP = json.loads((FOLDER / "backup.json").read_text())
RECOVERY_KEY = bytes.fromhex(BACKUP["recovery_key"])
BACKED_UP = RootCopy(
    mode=Mode.PRODUCTION,
    secrets={int(epoch): bytes.fromhex(secret) for epoch, secret in BACKUP["roots"].items()},
    dstack=DstackRoots(**{name: bytes.fromhex(root) for name, root in BACKUP["dstack"].items()}),
)
ADOPTED = [
    {
        "made_at": "2026-01-02T03:04:05Z",
        "active_from": "1970-01-01T00:00:00Z",
        "retired_at": "2026-11-01T08:00:00Z",
    },
    {"made_at": "2026-10-01T07:00:00Z", "active_from": "2026-10-08T07:00:00Z", "retired_at": None},
]
LATER = "2026-06-01T00:00:00Z"
HISTORY = KeyHistory.of(
    EpochTable(
        (
            Epoch(
                number=1,
                made_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                made_by="founding",
                active_from=datetime(1970, 1, 1, tzinfo=UTC),
                retired_at=datetime(2026, 11, 1, 8, tzinfo=UTC),
                retired_by="ada",
            ),
            Epoch(
                number=2,
                made_at=datetime(2026, 10, 1, 7, tzinfo=UTC),
                made_by="ada",
                active_from=datetime(2026, 10, 8, 7, tzinfo=UTC),
            ),
        )
    ),
    [datetime(2026, 6, 1, tzinfo=UTC)],
)


def text(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def test_a_root_key_file() -> None:
    document = RootDocument(
        mode=Mode.parse(PLAIN["mode"]), created_at=datetime.fromisoformat(PLAIN["created_at"]), secrets=ROOTS
    )
    assert json.loads(root_document.write(document)) == PLAIN["expect"]
    assert root_document.read(text(PLAIN["expect"])) == document


def test_a_root_key_file_under_a_passphrase() -> None:
    opened = passphrase_document.decrypt(text(ENCRYPTED["expect"]), PASSPHRASE, ENCRYPTED["expect"]["format"])
    assert json.loads(opened) == PLAIN["expect"]


def test_what_is_encrypted_now_opens_by_its_description() -> None:
    form = ENCRYPTED["expect"]["format"]
    written = json.loads(passphrase_document.encrypt(b"a root", PASSPHRASE, form, random=os.urandom))
    assert second.decrypt(written, PASSPHRASE) == b"a root"
    with pytest.raises(InvalidTag):
        second.decrypt(written | {"format": "attested-kms/recovery-key-encrypted"}, PASSPHRASE)


def test_a_backup_made_once_opens_for_ever() -> None:
    backup = Backup.parse(text(BACKUP["file"]))
    assert backup.open(RecoveryKey(RECOVERY_KEY)) == BACKED_UP
    assert backup.description.history == HISTORY
    assert second.open_backup(BACKUP["file"], RECOVERY_KEY) == bytes(BACKED_UP.plaintext())


def test_a_backup_made_now_opens_by_its_description() -> None:
    alice, bob = (RecoveryKey.generate() for _ in range(2))
    recipients = [RecoveryRecipient(name, key.public_key) for name, key in (("a", alice), ("b", bob))]
    made = Backup.seal(
        BACKED_UP,
        recipients,
        history=HISTORY,
        now=datetime(2026, 11, 22, tzinfo=UTC),
        random=lambda length: b"\x55" * length,
    )
    file = json.loads(made.to_json())
    assert [each["adopted"] for each in file["epochs"]] == ADOPTED
    assert file["later_generations"] == [LATER]
    for key in (alice, bob):
        assert second.open_backup(file, key.private_bytes()) == bytes(BACKED_UP.plaintext())


def test_what_a_backup_says_of_its_root() -> None:
    assert BACKED_UP.dstack is not None
    roots = BACKED_UP.dstack.ca, BACKED_UP.dstack.k256
    said = second.described("production", dict(BACKED_UP.secrets), *roots, adopted=ADOPTED, later=[LATER])
    assert said.items() <= BACKUP["file"].items()
    [recipient] = BACKUP["file"]["recipients"]
    assert recipient["public_key_sha256"] == second.fingerprint(RECOVERY_KEY)
    assert len(base64.urlsafe_b64decode(recipient["sealed"] + "==")) == 1088 + 32 + 32 + 16


def test_the_public_half_of_a_recovery_key() -> None:
    assert RecoveryKey(RECOVERY_KEY).public_key == second.recovery_public(RECOVERY_KEY)

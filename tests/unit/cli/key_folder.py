"""A data folder whose root is known, for tests of the commands that work on it."""

import asyncio
import base64
import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kms.cli import run
from kms.keys.root_messages import Mode, challenge_message
from kms.rootkey import RootAccess, restore_provider
from kms.settings import load_settings
from kms.wiring import open_key_stores

# Found wherever they are printed, and in whatever form.
SECRETS = {1: b"CANARY-of-the-root-of-epoch-one!", 2: b"CANARY-of-the-root-of-epoch-two!"}


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """An empty folder that is the working directory; settings name `data` in it as the data folder."""

    path: Path

    @property
    def root_key(self) -> Path:
        return self.path / "data" / "root-key.json"

    @property
    def database(self) -> Path:
        return self.path / "data" / "kms.sqlite3"

    def plant(self, secrets: Mapping[int, bytes], name: str = "data/root-key.json") -> None:
        """Make a root key file of these secrets."""
        uri = f"file:{self.path / name}"
        access = RootAccess(mode=Mode.PRODUCTION)
        asyncio.run(restore_provider(uri, access, secrets, now=datetime(2026, 1, 2, tzinfo=UTC)))

    def actions(self, *words: str) -> list[dict[str, Any]]:
        """Give the recorded actions of these words, oldest first."""
        if not self.database.exists():
            return []
        with closing(sqlite3.connect(self.database)) as connection:
            actions = "select entry from entries where kind = 'action' order by id"
            rows = connection.execute(actions).fetchall()
        return [entry for (each,) in rows if (entry := json.loads(each))["action"] in words]

    def written(self) -> bytes:
        """Give everything that is in files here, but for the files of roots."""
        files = [each for each in self.path.rglob("*") if each.is_file() and "root-key" not in each.name]
        return b"".join(each.read_bytes() for each in files)


def keys_command(*argv: str) -> int:
    """Run a command of ``kms keys``."""
    return run(["keys", *argv])


def released() -> bytes:
    """Give something that is derived from the root of the settings, as the server would."""

    async def derive() -> bytes:
        async with open_key_stores(load_settings(None)[0]) as stores:
            return await stores.root.prf(1, challenge_message())

    return asyncio.run(derive())


def forms(secret: bytes) -> tuple[bytes, ...]:
    """Give a secret as it might be written somewhere."""
    encoded = base64.b64encode(secret).rstrip(b"=")
    return secret, secret.hex().encode(), encoded, base64.urlsafe_b64encode(secret).rstrip(b"=")


def write_file(name: str, content: bytes, mode: int = 0o600) -> Path:
    """Write a file of the working directory, with this mode whatever the umask is."""
    path = Path(name)
    path.write_bytes(content)
    os.chmod(path, mode)  # noqa: PTH101
    return path

"""Makes the secrets of docker-compose.yml: certificates, passwords, a secret id. Never replaces one.

Run it again to have certificates renewed that end within 60 days. `--owned` gives each file to the user that
reads it inside its container; for that it must be root (in a container of its own: service `prepare`).
"""

import argparse
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kms import private_files
from kms.http.tls import LocalTls

# Who runs as whom: `user` of each service in docker-compose.yml.
OWNERS: Final = {"kms": 10001, "postgres": 999, "vault": 100, "grafana": 472}
_NAMES: Final = {"kms": ("kms", "kms-1", "kms-2", "balancer"), "postgres": ("postgres",), "vault": ("vault",)}


def main() -> None:
    """Make what is missing in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", action="append", default=[], help="name or address that guests use; repeat")
    parser.add_argument("--owned", action="store_true", help="give the files to the containers' users")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    for service, names in _NAMES.items():
        # Each has a CA of its own: whoever has PostgreSQL's key cannot speak as the KMS to guests.
        more = arguments.name if service == "kms" else []
        LocalTls(folder / service).ensure({*names, *more, "localhost", "127.0.0.1"}, datetime.now(UTC))
    password = _made(folder / "postgres" / "kms-password")
    _made(folder / "kms" / "database-login", f"postgres:5432:kms:kms:{password}\n")
    _made(folder / "postgres" / "administrator-password")
    _made(folder / "kms" / "vault-secret-id")
    _made(folder / "grafana" / "administrator-password")
    if arguments.owned:
        _give_away(folder)


def _made(path: Path, content: str | None = None) -> str:
    """Give a file's text; it is made of random hex digits, or of `content`, where it is not there."""
    private_files.make_folder(path.parent)
    if not path.exists():
        private_files.write_new(path, (content or secrets.token_hex(32)).encode("ascii"))
    return path.read_text("ascii")


def _give_away(folder: Path) -> None:
    for service, owner in OWNERS.items():
        for file in (folder / service).iterdir():
            # The keys of the CAs stay with root: no service needs them.
            os.chown(file, 0 if file.name == "ca-key.pem" else owner, -1)


if __name__ == "__main__":
    main()

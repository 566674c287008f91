from pathlib import Path

import pytest

from tests.rootkey.grounds import FileGround, Ground, KvGround, Pkcs11Ground, TransitGround
from tests.servers.fixtures import vault
from tests.servers.softhsm import softhsm

__all__ = ["ground", "softhsm", "vault"]


@pytest.fixture(params=["file", "vault-transit", "vault-kv", "pkcs11"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """Each provider's ground in turn, with its real server."""
    match request.param:
        case "file":
            return FileGround(tmp_path)
        case "vault-transit":
            return TransitGround(request.getfixturevalue("vault"))
        case "vault-kv":
            return KvGround(request.getfixturevalue("vault"))
        case _:
            return Pkcs11Ground(request.getfixturevalue("softhsm"))

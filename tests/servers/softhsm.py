"""SoftHSM 2 with a store of its own: some tokens for each test process, and an administrator beside it.

The library reads its configuration and finds its tokens when it is initialised, once in a process. So all
tokens are made before that, and a test takes a fresh root on the common token, or a token of its own.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import pytest

from kms.keys.root_messages import Mode
from kms.rootkey import RootAccess
from tests.servers import softhsm_administrator

_LIBRARIES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
_SPARE_TOKENS: Final = 4
_SO_PIN: Final = "so-pin-83452716"


@dataclass(frozen=True, slots=True)
class SoftToken:
    """A token: its label, the PIN, a file with it, and the folder that is the token."""

    label: str
    pin: str
    pin_file: Path
    folder: Path


class SoftHsm:
    """SoftHSM, and what an administrator does to it: in another process, behind the server's back."""

    def __init__(self, library: Path, folder: Path, administrator: ProcessPoolExecutor) -> None:
        self.library = library
        self._folder = folder
        self._administrator = administrator
        self._fresh = count(1)
        self.common = self._token("common")
        self._spare = [self._token(f"spare-{number}") for number in range(_SPARE_TOKENS)]

    def access(self, mode: Mode) -> RootAccess:
        return RootAccess(mode=mode)

    def fresh_uri(self) -> str:
        """Name a root that is not there."""
        return self.uri(self.common)

    def fresh_token(self) -> SoftToken:
        """Give a token that nobody else uses."""
        return self._spare.pop()

    def uri(self, token: SoftToken, pin_file: Path | None = None) -> str:
        """Name a root that is not there, on a token."""
        where = f"token={token.label};object=root-{next(self._fresh)}"
        return f"pkcs11:{where}?module-path={self.library}&pin-source=file:{pin_file or token.pin_file}"

    def show(self, uri: str, epoch: int, *attributes: str) -> list[dict[str, object]]:
        """Show the keys of an epoch."""
        return self._administrator.submit(softhsm_administrator.show, uri, epoch, attributes).result()

    def count(self, uri: str) -> int:
        """Count the keys, of whatever epoch."""
        return self._administrator.submit(softhsm_administrator.count, uri).result()

    def put(
        self, uri: str, epoch: int, secret: bytes | None = None, attributes: Mapping[str, bool] | None = None
    ) -> None:
        """Make a key of known bytes (64), or of random ones; `attributes` are not as they should be."""
        work = self._administrator.submit(softhsm_administrator.put, uri, epoch, secret, attributes or {})
        work.result()

    def destroy(self, uri: str, epoch: int) -> None:
        """Destroy the keys of an epoch."""
        self._administrator.submit(softhsm_administrator.destroy, uri, epoch).result()

    def _token(self, label: str) -> SoftToken:
        pin = f"pin-canary-{label}"
        tokens = self._folder / "tokens"
        before = set(tokens.iterdir())
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", _SO_PIN, "--pin", pin],
            check=True,
            capture_output=True,
        )
        (folder,) = set(tokens.iterdir()) - before
        pin_file = self._folder / f"{label}.pin"
        pin_file.touch(mode=0o600)
        pin_file.write_text(f"{pin}\n")
        return SoftToken(label, pin, pin_file, folder)


def find_softhsm() -> Path:
    """Give the library, or skip the test."""
    library = next((Path(each) for each in _LIBRARIES if Path(each).exists()), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("there is no SoftHSM 2, so the provider pkcs11 is not tested: apt-get install softhsm2")
    return library


@contextmanager
def softhsm_in(folder: Path) -> Iterator[SoftHsm]:
    """Give SoftHSM with some tokens in a folder: once in a process."""
    library = find_softhsm()
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    # For this process and those that it starts. It stays: the library has read it by then.
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as administrator:
        yield SoftHsm(library, folder, administrator)


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """SoftHSM with some tokens, for the whole test process."""
    with softhsm_in(tmp_path_factory.mktemp("softhsm")) as softhsm:
        yield softhsm

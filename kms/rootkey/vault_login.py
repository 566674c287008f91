"""Getting a token from Vault, by each of the ways that `kms.rootkey.vault_access` names, and renewing it.

Everything here runs in a thread: it reads files and waits for Vault.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

from kms import private_files
from kms.errors import ConfigurationError
from kms.rootkey.vault_access import AppRole, Kubernetes, TokenFile
from kms.rootkey.vault_exchange import Answer, VaultConnection, members, unavailable, whole

_WHAT: Final = "Vault credential"
# Vault locks a role for a quarter of an hour after five wrong secret ids, for every server that uses it, and
# forgets them after as long without one (Vault's "user lockout", on by default).
_REST_AFTER_REFUSAL: Final = 20 * 60.0  # seconds

_LONGEST_TOKEN: Final = 8000  # characters: with its name, the line of 8 KiB that proxies take as a header

_Writing: TypeAlias = tuple[int, int, int]  # inode, time of the last change in ns, and length of a file


@dataclass(frozen=True, slots=True)
class Lease:
    """A token with `seconds` of life from `since` (monotonic), and how many it had when it was given out.

    0 seconds: it lives until somebody revokes it.
    """

    token: str = field(repr=False)
    seconds: int
    granted: int
    renewable: bool
    since: float

    @property
    def age(self) -> float:
        """Seconds since it was given out or renewed."""
        return time.monotonic() - self.since

    @property
    def over(self) -> bool:
        """Whether its life is over, by our clock."""
        return 0 < self.seconds <= self.age

    @property
    def due(self) -> bool:
        """Whether half its life is over: time to renew it."""
        return 0 < self.seconds <= 2 * self.age


def check_credentials(way: TokenFile | AppRole | Kubernetes) -> None:
    """Check that what we log in with is there and is nobody else's. Raises `ConfigurationError`."""
    match way:
        case TokenFile(path) | AppRole(secret_id_file=path):
            _read_own(path)
        case Kubernetes(token_file=path):
            _read_projected(path)


class VaultLogin:
    """One way to log in. Each call raises `RootKeyUnavailable` where Vault does not answer."""

    def __init__(self, connection: VaultConnection, way: TokenFile | AppRole | Kubernetes) -> None:
        self._connection = connection
        self._way = way
        self._shown: _Writing | None = None  # which writing of the token file Vault has answered to
        self._refused: _Writing | None = None  # which writing of the secret id's file
        self._rest_until = 0.0

    def log_in(self) -> Lease:
        """Get a token; what is in files is read anew.

        Raises:
            RootKeyUnavailable: reason ``root-key-token-expired`` where Vault does not take what we have.

        """
        try:
            match self._way:
                case TokenFile(path):
                    return self._look_up(path)
                case AppRole(role_id, path, mount):
                    return self._show_secret_id(role_id, path, mount)
                case Kubernetes(role, path, mount):
                    return _granted(mount, self._show(mount, {"role": role, "jwt": _read_projected(path)}))
        except ConfigurationError as error:
            raise unavailable("root-key-token-expired", error.detail) from None

    def superseded(self) -> bool:
        """Say whether the token file was written anew since Vault answered to what was in it."""
        return isinstance(self._way, TokenFile) and _writing(self._way.path) not in {None, self._shown}

    def renew(self, lease: Lease) -> Lease | None:
        """Renew a token; None where that cannot be, or no longer gives half of what it had at first."""
        if not lease.renewable:
            return None
        answer = self._connection.exchange("post", "auth/token/renew-self", {}, token=lease.token)
        seconds = whole(members(answer.body.get("auth")).get("lease_duration"))
        # Near the end of the longest life that Vault allows it, each renewal gives less.
        if answer.status != 200 or 2 * seconds < lease.granted:
            return None
        return replace(lease, seconds=seconds, since=time.monotonic())

    def _look_up(self, path: Path) -> Lease:
        writing = _writing(path)  # before it is read: what is written in between counts as new
        token = _read_own(path)
        answer = self._connection.exchange("get", "auth/token/lookup-self", token=token)
        self._shown = writing
        if answer.status != 200:
            raise unavailable("root-key-token-expired", "Vault does not take the token in the token file")
        # The last part of a second is 0 seconds to Vault; so is the life of a token that never ends.
        ends = answer.data.get("expire_time") is not None
        seconds = max(whole(answer.data.get("ttl")), 1) if ends else 0
        return _new_lease(token, seconds, answer.data.get("renewable"))

    def _show_secret_id(self, role_id: str, path: Path, mount: str) -> Lease:
        writing = _writing(path)
        secret_id = _read_own(path)
        if writing == self._refused and time.monotonic() < self._rest_until:
            raise unavailable(
                "root-key-token-expired",
                f"Vault refused the secret id in {path}; it is shown again once the file is written anew",
            )
        answer = self._show(mount, {"role_id": role_id, "secret_id": secret_id})
        if answer.status in {400, 403}:
            self._refused, self._rest_until = writing, time.monotonic() + _REST_AFTER_REFUSAL
        return _granted(mount, answer)

    def _show(self, mount: str, credentials: Mapping[str, object]) -> Answer:
        return self._connection.exchange("post", f"auth/{mount}/login", credentials)


def _granted(mount: str, answer: Answer) -> Lease:
    auth = members(answer.body.get("auth"))
    token = auth.get("client_token")
    if answer.status != 200 or not isinstance(token, str) or not _is_token(token):
        raise unavailable(
            "root-key-token-expired", f"Vault refused the login at auth/{mount} ({answer.status})"
        )
    return _new_lease(token, auth.get("lease_duration"), auth.get("renewable"))


def _new_lease(token: str, seconds: object, renewable: object) -> Lease:
    return Lease(token, whole(seconds), whole(seconds), renewable is True, time.monotonic())


def _read_own(path: Path) -> str:
    return _text(path, private_files.read_secret(path, what=_WHAT))


def _read_projected(path: Path) -> str:
    # Kubernetes gives it the mode and owner that it likes, and replaces it when it gets old.
    return _text(path, private_files.read_secret(path, what=_WHAT, ours=False, foreign=0))


def _text(path: Path, content: bytearray) -> str:
    text = content.decode("ascii", errors="replace").strip()
    if not _is_token(text):
        raise ConfigurationError(f"{path} holds no token", remedy="one line of text, and nothing else")
    return text


def _is_token(text: str) -> bool:
    # It goes into a header: a line end in it must not begin another one, and one that no server takes for its
    # length would stay in use for as long as it is said to live.
    return 0 < len(text) <= _LONGEST_TOKEN and text.isascii() and text.isprintable() and " " not in text


def _writing(path: Path) -> _Writing | None:
    try:
        status = path.stat()
    except OSError:
        return None  # reading it says why
    return status.st_ino, status.st_mtime_ns, status.st_size

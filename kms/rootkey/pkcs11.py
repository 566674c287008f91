"""The ``pkcs11:`` provider: the root's keys are made in an HSM, and never leave it.

What fails while the server runs is a `RootKeyUnavailable` with one of these reasons, and heals by itself:
``root-key-slow``, ``root-key-token-gone``, ``root-key-pin-refused``, ``root-key-missing``,
``root-epoch-missing``, ``root-key-failing``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final, NoReturn, TypeVar

from typing_extensions import override

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.keys.root_messages import FOUNDING_EPOCH
from kms.rootkey.pkcs11_uri import Pkcs11Uri
from kms.rootkey.provider import NotExportable, Opener, RootAccess

try:
    from kms.rootkey.pkcs11_keys import BeingMade, TokenKeys
    from kms.rootkey.pkcs11_library import Library
    from kms.rootkey.pkcs11_session import MENDED_AFTER
except ModuleNotFoundError as missing:
    if missing.name != "pkcs11":
        raise
    raise ConfigurationError(
        "a root key in an HSM needs the package python-pkcs11",
        remedy="Install it with the server: pip install 'attested-kms[pkcs11]'",
    ) from None

_Answer = TypeVar("_Answer")

_ANSWER_WITHIN: Final = 3.0  # seconds, logging in again included
_OPEN_WITHIN: Final = 15.0  # seconds; a vendor's library may have to find its HSM first
_MAKE_WITHIN: Final = 15.0
_ATTEMPTS: Final = 20  # to be the only one that makes an epoch
_PAUSE: Final = 0.5  # seconds at most between two of them
_MARK_LENGTH: Final = 8  # bytes; of two marks that are the same, both would make the epoch


class Pkcs11RootKey:
    """A root in an HSM. Implements `kms.rootkey.provider.RootProvider`."""

    def __init__(self, uri: Pkcs11Uri) -> None:
        self._library = Library.of(uri.module)
        self._keys = TokenKeys(self._library, uri)
        self._closed = False

    @property
    def marked(self) -> bool:
        """A key in an HSM does not say what it was made for."""
        return False

    async def outputs(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Let the HSM compute them; see `RootProvider.outputs`."""
        with _while_it_runs():
            return await self._call(lambda: self._keys.sign(epoch, messages), _ANSWER_WITHIN)

    async def versions(self) -> tuple[int, ...]:
        """Look into the token."""
        with _while_it_runs():
            return await self._call(self._keys.versions, _ANSWER_WITHIN)

    async def ensure(self, epoch: int, random: Callable[[int], bytes]) -> None:
        """Have the token make the next epoch; `random` gives nothing of the key."""
        present = await self.versions()
        if epoch in present:
            return
        if epoch != present[-1] + 1:
            raise ConfigurationError(f"epoch {epoch} is not the next one of this root")
        await self._make(epoch, random)

    async def secrets(self) -> Mapping[int, bytes]:
        """Refuse."""
        _refuse_export()

    def start(self) -> None:
        """Do nothing: a session is opened again when it is found lost."""

    async def close(self) -> None:
        """Close the session."""
        self._closed = True
        with suppress(RootKeyUnavailable):
            await self._library.call(self._keys.close, within=_ANSWER_WITHIN)

    async def require_usable(self) -> None:
        """Open the session, and see that there are usable keys; errors as `Opener.open`."""
        await self._call(self._keys.versions, _OPEN_WITHIN)

    async def make_first(self, random: Callable[[int], bytes]) -> None:
        """Have the token make epoch 1 of a root that is not there; errors as `Opener.create`."""
        if not await self._make(FOUNDING_EPOCH, random):
            raise ConfigurationError(
                "the token has keys of this root already, and they are never overwritten",
                remedy="Use what is there, or choose another object=….",
            )

    async def _make(self, epoch: int, random: Callable[[int], bytes]) -> bool:
        for _ in range(_ATTEMPTS):
            with suppress(BeingMade):
                return await self._call(lambda: self._keys.make(epoch, random(_MARK_LENGTH)), _MAKE_WITHIN)
            await asyncio.sleep(_PAUSE * random(1)[0] / 255)
        raise ConfigurationError(
            "somebody else is making an epoch of this root, or was killed at it",
            remedy=f"If nobody is, destroy the keys labelled {self._keys.claim_label!r}: nothing uses them.",
        )

    async def _call(self, job: Callable[[], _Answer], within: float) -> _Answer:
        if self._closed:
            raise RootKeyUnavailable("the root key was closed")
        return await self._library.call(job, within=within)

    @override
    def __repr__(self) -> str:
        return "Pkcs11RootKey()"


class _Opener:
    """Implements `kms.rootkey.provider.Opener`. Of what is in a `RootAccess`, an HSM needs nothing."""

    def check(self, rest: str, access: RootAccess) -> None:
        """Read the URI."""
        Pkcs11Uri.parse(rest)

    async def open(self, rest: str, access: RootAccess) -> Pkcs11RootKey:
        """Log in, and look at the keys."""
        return await self._opened(rest, Pkcs11RootKey.require_usable)

    async def create(
        self, rest: str, access: RootAccess, *, now: datetime, random: Callable[[int], bytes]
    ) -> Pkcs11RootKey:
        """Log in, and have the key of epoch 1 made."""
        return await self._opened(rest, lambda root: root.make_first(random))

    async def restore(
        self, rest: str, access: RootAccess, secrets: Mapping[int, bytes], *, now: datetime
    ) -> NoReturn:
        """Refuse: a key that was outside is not one that never leaves the HSM."""
        _refuse_export()

    async def _opened(self, rest: str, begin: Callable[[Pkcs11RootKey], Awaitable[None]]) -> Pkcs11RootKey:
        root = Pkcs11RootKey(Pkcs11Uri.parse(rest))
        try:
            await begin(root)
        except BaseException:
            await root.close()
            raise
        return root


@contextmanager
def _while_it_runs() -> Iterator[None]:
    """Say what an operator must mend as what a guest must wait for."""
    try:
        yield
    except ConfigurationError as error:
        named = error.reason != ConfigurationError.code
        reason = error.reason if named else "root-key-failing"
        raise RootKeyUnavailable(error.detail, reason=reason, retry_after=MENDED_AFTER) from error


def _refuse_export() -> NoReturn:
    raise NotExportable(
        "a root key in an HSM neither leaves it nor comes from outside",
        remedy="Back up the token with the HSM's own program.",
    )


OPENER: Final[Opener] = _Opener()

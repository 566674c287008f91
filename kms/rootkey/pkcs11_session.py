"""A session with a token, opened, logged in, and opened again: blocking, for the library's thread only."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog
from pkcs11 import Session, Token, TokenFlag
from pkcs11.exceptions import (
    DeviceRemoved,
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    SlotIDInvalid,
    TokenNotPresent,
    TokenNotRecognised,
    UserAlreadyLoggedIn,
    UserPinNotInitialized,
)
from pkcs11.types import SignMixin

from kms import private_files
from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.rootkey.pkcs11_library import Library
from kms.rootkey.pkcs11_uri import Pkcs11Uri

_log = structlog.get_logger("kms.root-key")

_Answer = TypeVar("_Answer")

MENDED_AFTER: Final = 30  # seconds to wait for what somebody must mend

_LONGEST_PIN: Final = 1024  # bytes
_GONE: Final = (DeviceRemoved, SlotIDInvalid, TokenNotPresent, TokenNotRecognised)
_REFUSED: Final = (PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked, UserPinNotInitialized)


class PinUnfit(ConfigurationError):
    """The PIN file cannot be read, or others can."""

    code = "root-key-pin-refused"


@dataclass(slots=True)
class OpenSession:
    """A session in which somebody was logged in when it began, and the keys that were found through it.

    `began_now` holds while the first job is done: only then is it sure that nobody has logged out.
    """

    session: Session
    generation: int
    began_now: bool = True
    keys: dict[int, SignMixin] = field(default_factory=dict)


class TokenSession:
    """Does jobs in a session with the token that `uri` names."""

    def __init__(self, library: Library, uri: Pkcs11Uri) -> None:
        self._library = library
        self._uri = uri
        self._open: OpenSession | None = None

    def do(self, job: Callable[[OpenSession], _Answer]) -> _Answer:
        """Do a job. If it fails in a session that was opened earlier, all of it is done again in a new one.

        Raises:
            RootKeyUnavailable: ``root-key-token-gone``, ``root-key-pin-refused``, ``root-key-failing``.
            ConfigurationError: the library cannot be loaded, or there are several such tokens.
            PinUnfit: about the PIN file.

        """
        if self._open is not None and self._open.generation == self._library.generation:
            try:
                return job(self._open)
            except PKCS11Error as error:
                _log.warning("root-key-session-lost", cause=type(error).__name__)
        self.close()
        self._open = opened = OpenSession(self._begin(), self._library.generation)
        try:
            return job(opened)
        except PKCS11Error as error:
            failure = _unavailable(error)
        finally:
            opened.began_now = False
        # Not raised above: it would keep `error`, and with it a search that python-pkcs11 ends when it is
        # collected, which must happen in this thread.
        self.close()
        raise failure

    @contextlib.contextmanager
    def alone_on_this_machine(self) -> Iterator[None]:
        """Be the only process of this machine that makes a key with this PIN file.

        SoftHSM remembers what is in a token, and a process that writes in the same moment as another is never
        told what the other wrote (Generation.cpp of 2.6.1, commit()).

        The lock (flock) is on the PIN file, because every process that makes keys of this root reads it and
        nobody else can: the library's own file could be locked by any user of the machine, for ever.

        Raises:
            BlockingIOError: another process does.
            PinUnfit: the PIN file cannot be locked.

        """
        path = self._uri.pin_file
        with contextlib.ExitStack() as stack:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                raise PinUnfit(f"the PIN file {path} cannot be locked: {error.strerror}") from None
            yield

    def close(self) -> None:
        """Close the session."""
        opened, self._open = self._open, None
        if opened is not None and opened.generation == self._library.generation:
            # It logs out every session of this process with the token. Other roots there log in again.
            with contextlib.suppress(PKCS11Error):
                opened.session.close()

    def _begin(self) -> Session:
        token = self._library.find_token(self._uri)
        refused = self._library.refused_pins
        pin = _read_pin(self._uri)
        if refused.get(token.serial) == pin:
            raise _pin_refused("the token refused this PIN, and it is not tried again")
        if TokenFlag.USER_PIN_FINAL_TRY in token.flags:
            # `refused` knows nothing of earlier processes, and a supervisor starts them again and again.
            raise _pin_refused("one more wrong PIN would lock the token: log in once with another program")
        try:
            session = _log_in(token, pin)
        except _REFUSED as error:
            refused[token.serial] = pin
            raise _pin_refused(f"the token says {type(error).__name__}") from None
        except PKCS11Error as error:
            raise _unavailable(error) from None
        refused.pop(token.serial, None)
        return session


def _log_in(token: Token, pin: str) -> Session:
    try:
        return token.open(rw=True, user_pin=pin)
    except UserAlreadyLoggedIn:  # another root of this process did
        return token.open(rw=True)


def _read_pin(uri: Pkcs11Uri) -> str:
    path = uri.pin_file
    try:
        content = private_files.read_secret(path, what="PIN", at_most=_LONGEST_PIN)
        pin = content.decode().removesuffix("\n").removesuffix("\r")
    except ConfigurationError as error:
        raise PinUnfit(error.detail, remedy=error.remedy) from None
    except UnicodeDecodeError:
        raise PinUnfit(f"the PIN file {path} is not UTF-8") from None
    if not pin:
        raise PinUnfit(f"the PIN file {path} is empty")
    return pin


def _unavailable(error: PKCS11Error) -> RootKeyUnavailable:
    reason = "root-key-token-gone" if isinstance(error, _GONE) else "root-key-failing"
    return RootKeyUnavailable(f"the HSM says {type(error).__name__}", reason=reason)


def _pin_refused(why: str) -> RootKeyUnavailable:
    return RootKeyUnavailable(why, reason="root-key-pin-refused", retry_after=MENDED_AFTER)

"""The kernel's keyrings (keyrings(7)): a key of type ``user`` that programs find by its description.

The payload goes from this process into the kernel and is never an argument of a program. Only who possesses
the key may read it (the kernel's defaults for new keys): processes of this user whose session keyring leads
to the keyring. A service of systemd needs ``KeyringMode=shared`` for that (systemd.exec(5)).
"""

import ctypes
import errno
import os
import platform
import sys
from enum import StrEnum
from typing import Final

from kms.errors import ConfigurationError

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_NUMBERS: Final = {
    "x86_64": {"add_key": 248, "keyctl": 250},
    "aarch64": {"add_key": 217, "keyctl": 219},
}
# include/uapi/linux/keyctl.h
_GET_KEYRING_ID, _LINK, _UNLINK, _SET_TIMEOUT = 0, 8, 9, 15
_OF_PROCESS, _OF_SESSION, _OF_USER = -2, -3, -4

_MAX_DESCRIPTION: Final = 255  # characters; the kernel takes 4095 bytes (KEY_MAX_DESC_SIZE)
_MAX_PAYLOAD: Final = 32767  # bytes; user_preparse, security/keys/user_defined.c
_MAX_TIMEOUT: Final = 366 * 24 * 3600  # seconds

_ADVICE: Final = {
    errno.ENOSYS: "this kernel has no keyrings (CONFIG_KEYS)",
    errno.EPERM: "a seccomp filter forbids it, as those of container engines do",
    errno.EACCES: "this user may not write to the keyring, or to the key of this description that is in it",
    errno.EDQUOT: "this user's quota of keys is used up: keyctl(1) `reap` and `purge`, /proc/sys/kernel/keys",
    errno.ENOKEY: "there is no such keyring",
    errno.EKEYEXPIRED: "the keyring has expired",
    errno.EKEYREVOKED: "the keyring was revoked",
    errno.ENOMEM: "the kernel is out of memory",
}

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class Keyring(StrEnum):
    """Which keyring: this user's, which all of its sessions share, or the session's that runs this."""

    USER = "user"
    SESSION = "session"


def check_keyring(description: str, *, timeout: int | None = None) -> None:
    """Check, before anybody is asked for a key, that one could be kept.

    Raises:
        ConfigurationError: no usable description or timeout, or this kernel has no keyrings for us.

    """
    if not (0 < len(description) <= _MAX_DESCRIPTION and description.isascii() and description.isprintable()):
        raise ConfigurationError(
            f"a key's description is 1 to {_MAX_DESCRIPTION} printable ASCII characters",
            remedy="for example attested-kms:disk",
        )
    if timeout is not None and not 0 < timeout <= _MAX_TIMEOUT:
        raise ConfigurationError(f"a key's timeout is 1 to {_MAX_TIMEOUT} seconds")
    _keyctl(_GET_KEYRING_ID, _OF_USER, 0)


def add_key(
    description: str, secret: bytes, *, keyring: Keyring = Keyring.USER, timeout: int | None = None
) -> int:
    """Keep a key under its description, or replace the one that has it, and give its serial number.

    With `timeout` the kernel forgets it after so many seconds; without, at the next boot.

    Raises:
        ConfigurationError: as `check_keyring`, or the kernel does not take it.

    """
    check_keyring(description, timeout=timeout)
    if not 0 < len(secret) <= _MAX_PAYLOAD:
        raise ConfigurationError(f"a keyring takes keys of at most {_MAX_PAYLOAD} bytes")
    place = _place(keyring)
    payload = ctypes.create_string_buffer(secret, len(secret))
    try:
        serial = _call(
            "add_key",
            b"user",
            description.encode("ascii"),
            payload,
            ctypes.c_size_t(len(secret)),
            ctypes.c_int(place),
        )
    finally:
        ctypes.memset(payload, 0, len(secret))
    if timeout is not None:
        try:
            _keyctl(_SET_TIMEOUT, serial, timeout)
        except ConfigurationError:
            _keyctl(_UNLINK, serial, place)
            raise
    return serial


def _place(keyring: Keyring) -> int:
    if keyring is Keyring.SESSION:
        # By its number: of -3, add_key(2) would make a session keyring for this process alone where there is
        # only the user's default one, and the key would be gone with the process.
        return _keyctl(_GET_KEYRING_ID, _OF_SESSION, 0)
    # What this process possesses it may change. A session keyring need not lead to the user's keyring
    # (systemd's KeyringMode=private); the process keyring does from now on, as long as this process lives.
    _keyctl(_LINK, _OF_USER, _OF_PROCESS)
    return _OF_USER


def _keyctl(*arguments: int) -> int:
    return _call("keyctl", *(ctypes.c_long(argument) for argument in arguments))


def _call(name: str, *arguments: object) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None or sys.maxsize < 1 << 32:
        raise ConfigurationError(f"keyrings of {platform.machine()} are not known here")
    result: int = _LIBC.syscall(ctypes.c_long(numbers[name]), *arguments)
    if result >= 0:
        return result
    number = ctypes.get_errno()
    raise ConfigurationError(
        f"the kernel's keyring: {os.strerror(number)}",
        remedy=_ADVICE.get(number, "see add_key(2), keyctl(2)"),
    )

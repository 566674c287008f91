"""The listening socket, and what worker processes inherit of it from their supervisor."""

import socket
from dataclasses import dataclass
from typing import Final, Self

import structlog
from typing_extensions import override

from kms.errors import ConfigurationError
from kms.settings import Settings

# What a worker tells its supervisor through the lifeline, and what it is told.
READY: Final = b"r"
STOP: Final = b"s"
STOP_NOW: Final = b"n"

_log = structlog.get_logger("kms.start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What a supervisor gives a worker: the listening socket, and a lifeline between the two.

    `first` is the worker that does what is done once, before the others are started. The lifeline is a
    stream socket: a worker whose supervisor is gone, however that ended, reads its end.
    """

    listener: int  # file descriptors
    lifeline: int
    first: bool

    @override
    def __str__(self) -> str:
        return f"{self.listener},{self.lifeline},{int(self.first)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` gave. Raises `ValueError` for anything else."""
        listener, lifeline, first = (int(part) for part in text.split(","))
        return cls(listener=listener, lifeline=lifeline, first=bool(first))


def bind(settings: Settings) -> socket.socket:
    """Take the address, before anything is made; nobody is heard before `listen`.

    Raises:
        ConfigurationError: it cannot be had.

    """
    host, port = settings.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {settings.listen}: {error.strerror}",
            remedy="stop what uses it, or set KMS_LISTEN to another address",
        ) from error
    return listener


def say_listening(settings: Settings) -> None:
    """Say in the log that the server can be asked, all its workers as one."""
    if settings.development:
        _log.warning(
            "DEVELOPMENT MODE: roots that are not AMD's are trusted; never use this for real keys",
            development_roots=str(settings.development_roots),
        )
    _log.info(
        "listening",
        address=str(settings.listen),
        development=settings.development,
        workers=settings.workers,
    )

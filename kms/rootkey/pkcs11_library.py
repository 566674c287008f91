"""A vendor's PKCS#11 library in this process: loaded once, called by one thread, waited for only so long.

One thread, because python-pkcs11 initialises the library with ``C_Initialize(NULL)``, and that is the promise
that no two threads are ever in it at once (PKCS#11 v2.40 section 5.4). An HSM that does not answer stops this
thread and nothing else; it is a daemon, so that the process can end all the same.
"""

import asyncio
import ctypes
import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

import pkcs11
import structlog
from pkcs11.exceptions import PKCS11Error

from kms.errors import ConfigurationError, RootKeyUnavailable
from kms.rootkey.pkcs11_uri import Pkcs11Uri

_log = structlog.get_logger("kms.root-key")

_Answer = TypeVar("_Answer")

_WAITING: Final = 256  # calls; whatever comes more is refused at once instead of waiting in vain
_ANEW_EVERY: Final = 5.0  # seconds


class Library:
    """The library at a path. `of` gives it: there is one object for each, however many roots use it.

    `refused_pins` are the PINs that tokens (by serial number) refused. They are remembered here, for the life
    of the process, because a server that waits for its root opens it again and again, and three wrong PINs
    lock a token. `generation` counts how often the library was initialised: what was opened in an earlier one
    is not only lost, its handles (numbers) may by now be those of something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.Queue[tuple[Future[object], Callable[[], object]]] = queue.Queue(_WAITING)
        self._loaded = False
        self._anew_at = float("-inf")
        self.refused_pins: dict[bytes, str] = {}
        self.generation = 0
        threading.Thread(target=self._work, name=f"pkcs11 {path.name}", daemon=True).start()

    @staticmethod
    def of(path: Path) -> "Library":
        """Give the library at `path`; two names of one file are one library."""
        return _library(path.resolve())

    async def call(self, job: Callable[[], _Answer], *, within: float) -> _Answer:
        """Run `job` in the library's thread, and give what it gives.

        Raises:
            RootKeyUnavailable: reason ``root-key-slow``, it was not done `within` so many seconds. If it had
                begun it goes on, and nobody hears of it.

        """
        future: Future[_Answer] = Future()
        try:
            self._jobs.put_nowait((future, job))  # type: ignore[arg-type]
            return await asyncio.wait_for(asyncio.wrap_future(future), within)
        except (queue.Full, TimeoutError):
            raise RootKeyUnavailable("the HSM does not answer in time", reason="root-key-slow") from None

    def find_token(self, uri: Pkcs11Uri) -> pkcs11.Token:
        """Give the token that `uri` names; for the library's thread.

        Raises:
            RootKeyUnavailable: reason ``root-key-token-gone``.
            ConfigurationError: there are several, or the library cannot be loaded.

        """
        found = self._tokens(uri)
        if not found and time.monotonic() - self._anew_at >= _ANEW_EVERY:
            self._anew_at = time.monotonic()
            self._begin_anew()
            found = self._tokens(uri)
        if not found:
            raise RootKeyUnavailable("the HSM's token is not there", reason="root-key-token-gone")
        if len(found) > 1:
            raise ConfigurationError(
                "several tokens are like the one that the PKCS#11 URI names",
                remedy="name it by its serial number too (serial=…)",
            )
        return found[0]

    def _tokens(self, uri: Pkcs11Uri) -> list[pkcs11.Token]:
        try:
            slots = self._slots()
        except PKCS11Error:
            return []
        found = []
        for slot in slots:
            try:
                token = slot.get_token()
            except PKCS11Error:  # a broken token must not hide another
                continue
            serial = token.serial.rstrip(b"\0").decode("utf-8", "replace")
            wanted = ((uri.token, token.label), (uri.serial, serial), (uri.slot, slot.slot_id))
            if all(value is None or value == actual for value, actual in wanted):
                found.append(token)
        return found

    def _slots(self) -> list[pkcs11.Slot]:
        try:
            library = pkcs11.lib(str(self._path))  # the same each time
        except PKCS11Error as error:
            if type(error) is not PKCS11Error:  # the library's own answer, and the next one may be another
                raise
            raise ConfigurationError(
                f"{self._path} cannot be loaded as a PKCS#11 library",
                remedy="module-path is the absolute path of the library of the HSM's vendor (….so)",
            ) from None
        self._loaded = True
        return library.get_slots(token_present=True)

    def _begin_anew(self) -> None:
        # Many libraries, SoftHSM too, look for tokens only when they are initialised: one that was away stays
        # away until then. Other roots of this process lose their sessions and open new ones.
        if not self._loaded:
            return
        # By ctypes, because python-pkcs11's finalize() keeps the interpreter lock: a library that says
        # good-bye to an HSM that it cannot reach would stop the whole server meanwhile.
        exported = ctypes.CDLL(str(self._path))
        try:
            finalize, initialize = exported.C_Finalize, exported.C_Initialize
        except AttributeError:  # a library need export no more than C_GetFunctionList
            return
        finalize.restype = initialize.restype = ctypes.c_ulong
        finalize(None)
        self.generation += 1
        _log.info("root-key-library-initialised", outcome=initialize(None))

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked does not wait any more
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 -- it is raised where it was asked
                future.set_exception(error)
            del future, job  # nothing of the last call is kept while waiting for the next


@functools.cache
def _library(path: Path) -> Library:
    return Library(path)

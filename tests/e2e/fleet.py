"""Guests that boot at once, come again as they are told to, and know which keys are right."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import httpx2

from kms.guest.client import KeyClient
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from tests.conformance.own_server import Server
from tests.e2e.rack import KEYS, Guest, KnownRoot
from tests.e2e.wire import Answered, Notebook, noted
from tests.servers.vault import wait_until

AT_ONCE = 32
FELT_BY = 40  # answers of 503: an outage that guests have felt
VAULT_TIMEOUT = 3.0  # seconds, the default of KMS_VAULT_TIMEOUT
# A call may be sent twice, with a login in between; nobody waits in front of Vault for longer than that.
ANSWERED_WITHIN = 2 * VAULT_TIMEOUT + 4.0
HASTE = 10  # guests wait a tenth of what they are told, to be done in a test's time


class GaveUp(Exception):
    """This guest had no more patience."""


class Fleet:
    """Guests that boot at once, and what each was answered. The last of them wait until `struck` is set."""

    def __init__(
        self,
        server: Server,
        root: KnownRoot,
        guests: Sequence[Guest],
        notebook: Notebook,
        *,
        late: int = 0,
        tries: int | None = None,
    ) -> None:
        self.server = server
        self.notebook = notebook
        self.struck = Event()
        self._root = root
        self._guests = guests
        self._tries = tries
        self._pool = ThreadPoolExecutor(AT_ONCE)
        early = len(guests) - late
        self._boots = [
            self._pool.submit(self._boot, guest, late=number >= early) for number, guest in enumerate(guests)
        ]

    def _boot(self, guest: Guest, *, late: bool) -> tuple[ReleasedKey, ...] | None:
        """Boot as a guest does, and check every key; None where it gave up, after an answer of 503."""
        if late:
            self.struck.wait()
        tried = 1

        def sleep(seconds: float) -> None:
            nonlocal tried
            if tried == self._tries:
                raise GaveUp
            tried += 1
            time.sleep(seconds / HASTE)

        client = KeyClient(
            self.server.url,
            ca_file=self.server.ca,
            identity=self._root.identity.public_key,
            source=guest,
            suite=Suite.X25519_SEALEDBOX,
            deadline=120.0,
            timeout=60.0,
            transport=self.notebook,
            sleep=sleep,
        )
        try:
            keys = client.fetch(KEYS, app_document=guest.document).keys
        except GaveUp:
            return None
        assert keys == self._root.right_keys(guest), "a guest got other keys than its own"
        return keys

    @property
    def answers(self) -> list[Answered]:
        """What was answered to requests for keys until now."""
        return [each for each in list(self.notebook.answers) if each.path == "/v1/releases"]

    def count(self, status: int) -> int:
        return sum(each.status == status for each in self.answers)

    def readiness(self) -> tuple[int, tuple[str, ...]]:
        with httpx2.Client(transport=self.notebook, base_url=self.server.url) as client:
            answer = client.get("/readyz", timeout=30)
        return answer.status_code, tuple(answer.json().get("reasons", ()))

    def feel(self, reason: str) -> None:
        """Wait until the server says that it is not ready, and why; then until many guests were sent away."""
        wait_until(lambda: self.readiness() == (503, (reason,)))
        before = self.count(503)
        self.struck.set()

        def felt() -> bool:
            # What went wrong for a guest is said at once.
            ended = [boot.result() for boot in self._boots if boot.done()]
            return len(ended) == len(self._boots) or self.count(503) >= before + FELT_BY

        wait_until(felt, within=60)
        assert self.count(503) >= before + FELT_BY

    def finish(self, *reasons: str) -> int:
        """Wait for all, check every answer, and say how many guests got their keys.

        `reasons` are those that a 503 may have had.
        """
        self.struck.set()
        released = sum(boot.result(120) is not None for boot in self._boots)
        for answer in self.answers:
            assert answer.seconds < ANSWERED_WITHIN
            if answer.status != 200:
                assert (answer.status, answer.problem[0]) == (503, "root-key-unavailable")
                assert len(answer.problem[1]) == 1
                assert set(answer.problem[1]) <= set(reasons)
                assert (answer.retry_after or 0) > 0
        assert released == self.count(200)
        return released

    def end(self) -> None:
        self.struck.set()
        self._pool.shutdown(cancel_futures=True)

    def figures(self) -> str:
        reasons = Counter(each.problem[1][0] for each in self.answers if each.status == 503)
        longest = max(each.seconds for each in self.answers)
        away = ", ".join(f"{number} x 503 {reason}" for reason, number in reasons.items()) or "no 503"
        return f"{len(self._guests)} guests: {self.count(200)} x 200, {away}; longest answer {longest:.1f} s"


@contextmanager
def booting(
    server: Server, root: KnownRoot, guests: Sequence[Guest], *, late: int = 0, tries: int | None = None
) -> Iterator[Fleet]:
    """Let guests boot; each gives up after so many `tries` (None: never), or two minutes."""
    with noted(server.ca) as notebook:
        fleet = Fleet(server, root, guests, notebook, late=late, tries=tries)
        try:
            yield fleet
        finally:
            fleet.end()

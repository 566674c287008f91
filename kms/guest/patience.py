"""Trying again until a deadline: what may be different in a moment, and how long to wait before.

A lost network and a busy server are worth another try. A server's "no" is not, nor is an answer that must not
be used: both pass through as they are.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from kms.guest.errors import Problem, Refused, ServerUnreachable
from kms.guest.transport import Answer, Connection, NoAnswer
from kms.strict_json import JsonValue

_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})  # the server, or a proxy before it, may answer later
_FIRST_PAUSE: Final = 0.5  # seconds
_LONGEST_PAUSE: Final = 10.0
_random: Final = random.SystemRandom()

T = TypeVar("T")


class _Later(Exception):
    """One attempt brought no answer. `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, *, wait: int = 0, problem: Problem | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.wait = wait
        self.problem = problem


class Patience:
    """A connection with a deadline, in seconds from now, for everything that is asked through it.

    `stopped` says that nobody waits for the outcome any more: then no time is left. `clock`, `sleep` and
    `jitter` (0 to 1) are for tests.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = _random.random,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connection = connection
        self._deadline = deadline
        self._end = clock() + deadline
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._stopped = stopped

    def persist(self, attempt: Callable[[], T]) -> T:
        """Give what an attempt gives; one whose `get` or `post` got no answer is made again, from its start.

        Raises:
            ServerUnreachable: no answer before the deadline, or none that would come before it.

        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except _Later as later:
                # Jitter on top of what the server asked for: guests of one rack start together.
                wait = later.wait + pause * (0.5 + self._jitter() / 2)
                if self._remaining() <= wait:
                    raise ServerUnreachable(
                        f"no answer within {self._deadline:g} s; the last try: {later.why}",
                        problem=later.problem,
                    ) from later
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def get(self, path: str) -> Answer:
        """Get what is published there, within an attempt.

        Raises:
            Refused: the server's "no".
            ServerUntrusted, AnswerRejected: as `Connection.post`.

        """
        return self._answered(lambda: self._connection.get(path, remaining=self._remaining), 200)

    def post(self, path: str, document: Mapping[str, JsonValue], *, expected: int) -> Answer:
        """Post a JSON document, within an attempt; `expected` is the status of success. Raises as `get`."""
        return self._answered(
            lambda: self._connection.post(path, document, remaining=self._remaining), expected
        )

    def _answered(self, exchange: Callable[[], Answer], expected: int) -> Answer:
        try:
            answer = exchange()
        except NoAnswer as error:
            raise _Later(str(error)) from error
        if answer.status == expected:
            return answer
        problem = answer.problem()
        if answer.status in _TRY_AGAIN:
            why = f"{problem.status} {problem.code}"
            raise _Later(why, wait=answer.retry_after or 0, problem=problem)
        raise Refused(problem)

    def _remaining(self) -> float:
        return 0.0 if self._stopped() else self._end - self._clock()

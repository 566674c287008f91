"""Keys that were asked for a moment ago: asked once for all who want one, kept briefly, wiped after."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kms.guest.key_values import value_of
from kms.guest.machine import Fetch
from kms.guest.threads import in_thread
from kms.keys.names import KeyRequest
from kms.keys.released import ReleasedKey
from kms.keys.wiping import wipe


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """A key: `raw` is its bytes (TLS: PEM), `document` its entry as JSON; no repr has them."""

    epoch: int | None
    algorithm: str
    raw: bytearray = field(repr=False)
    document: bytearray = field(repr=False)

    @classmethod
    def of(cls, key: ReleasedKey) -> "HeldKey":
        """Make both forms."""
        text = json.dumps(key.to_json(), indent=2) + "\n"
        return cls(
            epoch=key.epoch,
            algorithm=key.algorithm.value,
            raw=bytearray(value_of(key)),
            document=bytearray(text.encode("ascii")),
        )

    def wipe(self) -> None:
        """Overwrite both. What Python copied on the way here is beyond us."""
        wipe(self.raw)
        wipe(self.document)


@dataclass(slots=True)
class _Question:
    """What was asked, how many use the answer, and whether nobody else may."""

    answer: "asyncio.Future[HeldKey]"
    users: int = 0
    forgotten: bool = False

    def wipe_if_done(self) -> None:
        if self.forgotten and not self.users and self.answer.done() and self.answer.exception() is None:
            self.answer.result().wipe()


class KeyMemory:
    """Asks once for each key at a time; what came of it, a key or a refusal, is kept for `keep` seconds.

    So a container that starts again and again does not ask the hardware each time, and cannot keep it from
    others: the firmware answers one at a time, and hosts limit how often. `fetch` blocks; it runs in threads
    of its own.
    """

    def __init__(self, fetch: Fetch, *, keep: float) -> None:
        self._fetch = fetch
        self._keep = keep
        self._questions: dict[KeyRequest, _Question] = {}

    @asynccontextmanager
    async def held(self, wanted: KeyRequest) -> AsyncIterator[HeldKey]:
        """Give a key for as long as the block lasts. Raises what `fetch` raises."""
        question = self._questions.get(wanted) or self._ask(wanted)
        self._questions[wanted] = question
        question.users += 1
        try:
            # Shielded: others wait for the same.
            yield await asyncio.shield(question.answer)
        finally:
            question.users -= 1
            question.wipe_if_done()

    def forget_all(self) -> None:
        """Wipe every key that nobody is using; the others when their last user is done."""
        for wanted, question in list(self._questions.items()):
            self._forget(wanted, question)

    def _ask(self, wanted: KeyRequest) -> _Question:
        asking = in_thread(
            lambda: HeldKey.of(self._fetch([wanted]).keys[0]), name=f"key {wanted.name}", daemon=False
        )
        question = _Question(asyncio.wrap_future(asking))
        loop = asyncio.get_running_loop()
        question.answer.add_done_callback(
            lambda _: loop.call_later(self._keep, self._forget, wanted, question)
        )
        return question

    def _forget(self, wanted: KeyRequest, question: _Question) -> None:
        if self._questions.get(wanted) is question:
            del self._questions[wanted]
        question.forgotten = True
        question.wipe_if_done()

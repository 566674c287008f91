"""How much strangers may make the server write down."""

from datetime import datetime, timedelta
from typing import Final

_MINUTE: Final = timedelta(minutes=1)


class StrangerBudget:
    """At most `per_minute` records of refusals in which nobody proved anything.

    Such a refusal costs its sender nothing: without a bound, one address could fill the disk, and then no
    key could leave at all. What goes beyond is only logged; `left_out` counts it.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._since: datetime | None = None
        self._written = 0
        self.left_out = 0

    def take(self, now: datetime) -> bool:
        """Say whether one more may be written now."""
        if self._since is None or not timedelta(0) <= now - self._since < _MINUTE:
            self._since, self._written = now, 0
        if self._written >= self._per_minute:
            self.left_out += 1
            return False
        self._written += 1
        return True

"""Timing by turns, so that whatever else the machine does meets everybody alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TypeAlias

Work: TypeAlias = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """Seconds of each contestant, round by round; the first is ours.

    `aims` are the greatest ratios to others, `limit` the greatest median of ours in seconds. With another
    `unit` than ``s`` all figures are in that.
    """

    name: str
    seconds: Mapping[str, tuple[float, ...]]
    aims: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    unit: str = "s"

    @property
    def ours(self) -> str:
        """The name of the first contestant."""
        return next(iter(self.seconds))

    def median(self, who: str) -> float:
        """Give the median in seconds."""
        return median(self.seconds[who])

    def ratio(self, other: str) -> float:
        """Give the median over the rounds of our time divided by another's in the same round."""
        return median(a / b for a, b in zip(self.seconds[self.ours], self.seconds[other], strict=True))

    def met(self) -> bool:
        """Say whether every aim is met."""
        if self.limit is not None and self.median(self.ours) > self.limit:
            return False
        return all(self.ratio(other) <= aim for other, aim in self.aims.items())


def by_turns(
    name: str,
    contestants: Mapping[str, Work],
    *,
    rounds: int,
    batch: int = 1,
    aims: Mapping[str, float] | None = None,
    limit: float | None = None,
) -> Case:
    """Run everybody once for warmth, then in turns, `batch` times each; who begins changes."""
    names = list(contestants)
    for work in contestants.values():
        work()
    seconds: dict[str, list[float]] = {who: [] for who in names}
    for turn in range(rounds):
        start = turn % len(names)
        for who in names[start:] + names[:start]:
            work = contestants[who]
            before = perf_counter()
            for _ in range(batch):
                work()
            seconds[who].append((perf_counter() - before) / batch)
    return Case(name, {who: tuple(times) for who, times in seconds.items()}, aims or {}, limit)

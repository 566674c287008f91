"""Steps of ``kms demo --kds-down``: each is told, and compared with what must have come of it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kms.cli.demo_outage_scene import Outcome
from kms.cli.demo_show import Show
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_log import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the story: what came of it, what the KDS was asked meanwhile, and what is wrong with that."""

    name: str
    outcome: Outcome
    asked: tuple[Asked, ...]
    wrong: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the step for programs."""
        return {
            "step": self.name,
            "status": self.outcome.status,
            "code": self.outcome.code,
            "kds_requests": len(self.asked),
        }


# What must hold of a step besides status and code, by what it is called when it does not.
Conditions = Callable[[Outcome, tuple[Asked, ...]], Mapping[str, bool]]


class Steps:
    """Tells one step after the other, and watches what the KDS is asked."""

    def __init__(self, show: Show, kds: SimulatedKds) -> None:
        self._show = show
        self._kds = kds
        self.all: list[Step] = []

    def step(
        self,
        name: str,
        what: str,
        ask: Callable[[], Outcome],
        *,
        status: int,
        code: str | None = None,
        conditions: Conditions = lambda _outcome, _asked: {},
    ) -> None:
        """Tell a step, and whether it ended as it must."""
        before = self._kds.asked()
        with self._show.trying(name):
            outcome = ask()
        asked = self._kds.log[before:]
        wrong = [held for held, holds in conditions(outcome, asked).items() if not holds]
        if (outcome.status, outcome.code) != (status, code):
            wrong.insert(0, f"{status} {code or 'keys'}")
        step = Step(name=name, outcome=outcome, asked=asked, wrong=tuple(wrong))
        self.all.append(step)
        if wrong:
            self._show.not_refused(name, ", ".join(wrong), _answer(outcome))
        else:
            self._show.done(f"{name}: {what}")
        self._show.fact("answer", _answer(outcome))
        self._show.fact("KDS requests", _requests(asked))


def _answer(outcome: Outcome) -> str:
    if outcome.payload is not None:
        text = f"200, {len(outcome.payload.keys)} keys"
    elif outcome.problem is None:
        text = "none"
    else:
        reasons = f" ({', '.join(outcome.problem.reasons)})" if outcome.problem.reasons else ""
        text = f"{outcome.problem.status} {outcome.problem.code}{reasons}"
    if outcome.retry_after is not None:
        text += f", come again in {outcome.retry_after} s"
    retries = outcome.retries
    return text + (f", after {retries} {'retry' if retries == 1 else 'retries'}" if retries else "")


def _requests(asked: tuple[Asked, ...]) -> str:
    if not asked:
        return "none"
    each = Counter((one.kind, "cut off" if one.status is None else str(one.status)) for one in asked)
    return ", ".join(
        f"{kind.value} {ending}" + (f" ({number})" if number > 1 else "")
        for (kind, ending), number in each.items()
    )

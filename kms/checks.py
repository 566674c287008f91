"""A check: one thing that was looked at, what came of it, and the words for those who may read them."""

from collections.abc import Iterable
from typing import NamedTuple


class Check(NamedTuple):
    """One named check of evidence or policy; a release makes some seventy, so it is the cheapest record.

    `name` says what was looked at (``vcek-signature``). `reason` is the stable code that a refused guest
    is given (``[a-z0-9-]+``); it never holds a value. `detail` is a sentence with values, for operators
    and the audit record only.
    """

    name: str
    passed: bool
    detail: str
    reason: str

    @classmethod
    def of(cls, name: str, passed: bool, detail: str, *, reason: str | None = None) -> "Check":
        """Make a check; `reason` is the code to give when it fails, by default the name."""
        return cls(name, passed, detail, reason or name)


def failures(checks: Iterable[Check]) -> tuple[str, ...]:
    """Give the reason codes of the checks that failed, each once, in order."""
    return tuple(dict.fromkeys(check.reason for check in checks if not check.passed))

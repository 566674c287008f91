"""Our clock beside those of others: it judges challenges, leases and certificates."""

from collections.abc import Mapping
from typing import Final

from kms.findings import Finding, failed, ok, unknown, warning

# Less is what a network and whole seconds make of two clocks that agree.
_NOTICED: Final = 5.0  # seconds
_WRONG: Final = 60.0
_REMEDY: Final = "set the clock that is wrong, and keep it right (chrony, systemd-timesyncd)"


def compared(ahead: Mapping[str, float]) -> Finding:
    """Judge how many seconds the clocks of others are before ours."""
    name = "clock"
    if not ahead:
        return unknown(name, "nobody was there to compare the clock with")
    seen = ", ".join(f"{who} {seconds:+.0f} s" for who, seconds in ahead.items())
    apart = max(map(abs, ahead.values()))
    if apart >= _WRONG:
        return failed(name, f"other clocks differ: {seen}", _REMEDY)
    if apart >= _NOTICED:
        return warning(name, f"other clocks differ: {seen}", _REMEDY)
    return ok(name, f"within {_NOTICED:g} seconds of others: {seen}")

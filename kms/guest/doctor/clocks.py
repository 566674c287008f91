"""This machine's own clock, judged by what cannot be younger than now."""

from datetime import UTC, datetime
from pathlib import Path

import kms
from kms.findings import Finding, failed, ok
from kms.guest.doctor.system import System

# systemd(1): its modification time is when the image was built, and the clock is never set before it.
_EPOCH = "/usr/lib/clock-epoch"


def clock(system: System, *, package: Path = Path(kms.__file__)) -> Finding:
    """Say whether the clock shows a time before this software, `package`, came into the image."""
    name, times = "clock", [package.stat().st_mtime]
    if system.exists(_EPOCH):
        times.append(system.at(_EPOCH).stat().st_mtime)
    built, now = max(times), system.now()
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now < built:
        made = f"{datetime.fromtimestamp(built, UTC):%Y-%m-%d %H:%M} UTC"
        remedy = "set the clock (a real-time clock for the VM, chrony): certificates are not valid yet"
        return failed(name, f"it shows {shown}, and this image was made later, {made}", remedy)
    return ok(name, f"it shows {shown}")

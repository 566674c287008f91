"""The page of results, ``docs/benchmarks.md``: what was measured, where, and what the ratios mean."""

import os
import platform
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.backends.openssl import backend

from bench.pairs import Case

_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_INTRODUCTION: Final = """\
# Benchmarks

Written by `python -m bench {arguments}`; `make bench` runs everything and only prints. Figures of another
machine say nothing about this software; ratios do, because all contestants of a row ran in turns, in one run.

- **Ratio**: the first contestant's time divided by that of the one in this line, the median over all turns.
  Below 1 it is faster. **Inverse**: of throughputs, the first one's divided by the other's.
- **Aim**: the greatest ratio, or for the first contestant the greatest figure, that we want.
- **floor**: a server on the same HTTP and TLS that does the parts of a release and nothing else: two
  requests, one P-384 verification, one HMAC and expansion, one signature, one seal, and a share of a durable
  commit that those who wait make together (`bench/server_floor.py`). It parses, checks and decides nothing.
- **P-384**: the verification of one report signature alone, as OpenSSL does it.
- **A release** of the server is a request for a challenge and a release request over a connection that is
  kept alive, with everything on: ledger, metrics, log, limits, the check of revision and epochs. The figure
  is the time from one release to the next, of all guests together; their evidence is signed beforehand.
- **Processor time** is what the kernel counted for the server's processes, background work included. Where
  guests, database and servers share few processors, it says more about two workers than throughput does.
"""


def page(cases: Iterable[Case], arguments: str) -> str:
    """Give the page as Markdown. `arguments` are those of the command that measured."""
    return "\n".join((_INTRODUCTION.format(arguments=arguments), *_machine(), "", *_table(cases), ""))


def figure(case: Case, value: float) -> str:
    """Write a figure of a case with its unit."""
    return _time(value) if case.unit == "s" else f"{value:.0f} {case.unit}"


def _table(cases: Iterable[Case]) -> Iterator[str]:
    yield "| What | Who | Median | Ratio | Inverse | Aim | Met |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for case in cases:
        for who in case.seconds:
            name = case.name if who == case.ours else ""
            yield f"| {name} | {who} | {figure(case, case.median(who))} | {' | '.join(_judged(case, who))} |"


def _judged(case: Case, who: str) -> tuple[str, str, str, str]:
    if who == case.ours:
        if case.limit is None:
            return "", "", "", ""
        return "", "", figure(case, case.limit), _yes(case.median(who) <= case.limit)
    ratio = case.ratio(who)
    aim = case.aims.get(who)
    judged = ("", "") if aim is None else (f"{aim:.2f}", _yes(ratio <= aim))
    return f"{ratio:.2f}", f"{1 / ratio:.2f}", *judged


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _machine() -> Iterator[str]:
    yield f"Measured on {datetime.now(UTC):%Y-%m-%d}:"
    yield ""
    yield f"- {os.cpu_count()} processors: {_said('/proc/cpuinfo', 'model name')}"
    yield f"- memory: {_said('/proc/meminfo', 'MemTotal')}; {platform.system()} {platform.release()}"
    yield (
        f"- Python {platform.python_version()}, {backend.openssl_version_text()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


def _said(file: str, name: str) -> str:
    """Give what a file of the kernel's says under a name, the first time."""
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _time(seconds: float) -> str:
    scale, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{seconds / scale:.2f} {unit}"

"""``python -m bench``: everything side by side, and whether the aims are met."""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import collateral, keys, measurement, policy, server, verification
from bench.page import figure, page
from bench.pairs import Case

_PARTS = ("measurement", "verification", "keys", "collateral", "policy", "server")


def main() -> int:
    """Print a table, and write the numbers to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare with others.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each contestant (default 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write medians and ratios there as well")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write docs/benchmarks.md there")
    args = parser.parse_args()
    if unknown := sorted(set(args.parts) - set(_PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}")
    # Said of every AMD certificate (docs/decisions/0005).
    warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")
    measured = []
    for case in _cases(args.parts or _PARTS, args.rounds):
        measured.append(case)
        _print(case)
    if args.json is not None:
        args.json.write_text(json.dumps([_described(case) for case in measured], indent=2) + "\n")
    if args.page is not None:
        arguments = " ".join([*args.parts, f"--rounds {args.rounds}", f"--page {args.page}"])
        args.page.write_text(page(measured, arguments), encoding="utf-8")
    missed = [case.name for case in measured if not case.met()]
    print("every aim is met" if not missed else f"aims not met: {'; '.join(missed)}")
    return 0


def _cases(parts: Sequence[str], rounds: int) -> Iterator[Case]:
    if "measurement" in parts:
        with tempfile.TemporaryDirectory() as folder:
            yield from measurement.cases(Path(folder), rounds)
    if "verification" in parts:
        yield from verification.cases(rounds)
    if "keys" in parts:
        yield from keys.cases(rounds)
    if "collateral" in parts:
        with tempfile.TemporaryDirectory() as folder:
            yield from collateral.cases(Path(folder), rounds)
    if "policy" in parts:
        with tempfile.TemporaryDirectory() as folder:
            yield from policy.cases(Path(folder), rounds)
    if "server" in parts:
        with tempfile.TemporaryDirectory() as folder:
            yield from server.cases(Path(folder), max(1, rounds // 4))


def _print(case: Case) -> None:
    print(f"{case.name}{'' if case.limit is None else f' (aim: at most {figure(case, case.limit)})'}")
    for who in case.seconds:
        line = f"  {who:<16} {figure(case, case.median(who)):>10}"
        if who != case.ours:
            line += f"   ours is {case.ratio(who):.3f} of it"
            if who in case.aims:
                line += f" (aim: at most {case.aims[who]:.2f})"
        print(line)
    sys.stdout.flush()


def _described(case: Case) -> dict[str, object]:
    others = [who for who in case.seconds if who != case.ours]
    return {
        "name": case.name,
        "rounds": len(case.seconds[case.ours]),
        "unit": case.unit,
        "median": {who: case.median(who) for who in case.seconds},
        "ratio_to": {who: case.ratio(who) for who in others},
        "aims": dict(case.aims),
        "limit": case.limit,
        "met": case.met(),
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""``kms collateral fetch``: ask AMD's key distribution service before the first guest does."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kms.cli.collateral_store import add_config, with_stores
from kms.cli.collateral_wanted import add_arguments, wanted_of
from kms.cli.output import OK, REFUSED, WRONG_USE, WrongUse, print_json
from kms.cli.parsers import Group, seconds
from kms.cli.reading import read_settings
from kms.errors import CollateralUnavailable, CollateralUnknown, NobodyToAsk
from kms.snp.kds_paths import Wanted

if TYPE_CHECKING:
    from kms.kds.service import CollateralService
    from kms.settings import Settings
    from kms.wiring import Stores

_CLIENT = "command line"  # has a share of the requests, as every guest address
_LONGEST_WAIT = 60.0  # seconds between two tries, whatever a service asks for


class _Outcome(NamedTuple):
    wanted: Wanted
    outcome: str  # stored, unknown, unavailable
    detail: str = ""


def add(group: Group) -> None:
    """Add ``kms collateral fetch``."""
    command = group.add(
        "fetch",
        summary="ask the key distribution services, and store what verifies",
        description="Ask the key distribution services of the settings, and store what verifies: the"
        " certificates of chips with their chain and revocation list, or a line's chain and list alone. What"
        " is stored already is not asked for. Exit status: 0 all stored, 1 something does not exist, 2"
        " something could not be had.",
        example="kms collateral fetch --report report.bin",
    )
    add_arguments(command)
    command.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=seconds,
        default=120.0,
        help="for all of it, waits between tries included (default 120)",
    )
    add_config(command)
    command.set_defaults(run=_fetch)


def _fetch(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments.config)
    wanted = list(dict.fromkeys(wanted_of(arguments, settings.crl)))
    if not wanted:
        raise WrongUse("say what: --report, --url, --line, or --chip with --product and --tcb")

    def tell(each: _Outcome) -> None:
        if not arguments.json:
            detail = f": {each.detail}" if each.detail else ""
            print(f"{each.outcome}: {each.wanted.path}{detail}", flush=True)

    outcomes = with_stores(settings, lambda stores: _ask(settings, stores, wanted, arguments.deadline, tell))
    if arguments.json:
        print_json(
            {
                "results": [
                    {"path": each.wanted.path, "outcome": each.outcome, "detail": each.detail}
                    for each in outcomes
                ]
            }
        )
    found = {each.outcome for each in outcomes}
    if "unavailable" in found:
        return WRONG_USE
    return REFUSED if "unknown" in found else OK


async def _ask(
    settings: "Settings",
    stores: "Stores",
    wanted: list[Wanted],
    deadline: float,
    tell: Callable[[_Outcome], None],
) -> list[_Outcome]:
    import time

    from kms.trust import load_roots
    from kms.wiring import collateral_service

    service = collateral_service(settings, stores, load_roots(settings.development_roots))
    # Not started: in the background it would also renew lists that nobody named.
    outcomes: list[_Outcome] = []
    until = time.monotonic() + deadline
    try:
        for each in wanted:
            if time.monotonic() < until:
                outcome = await _ask_one(service, each, until)
            else:
                outcome = _Outcome(each, "unavailable", "not asked for: the deadline has passed")
            tell(outcome)
            outcomes.append(outcome)
    finally:
        await service.stop()
    return outcomes


async def _ask_one(service: "CollateralService", wanted: Wanted, until: float) -> _Outcome:
    """Ask until there is an answer. The services say themselves how long to wait; AMD's likes ten seconds."""
    import asyncio
    import time

    while True:
        try:
            await service.fetch(wanted, _CLIENT)
        except CollateralUnknown as error:
            return _Outcome(wanted, "unknown", error.detail)
        except CollateralUnavailable as error:
            wait = min(max(error.retry_after, 1.0), _LONGEST_WAIT)
            if isinstance(error, NobodyToAsk) or time.monotonic() + wait > until:
                return _Outcome(wanted, "unavailable", error.detail)
            await asyncio.sleep(wait)
        else:
            return _Outcome(wanted, "stored")

"""How epochs, generations of the identity, and the guests that took them are said to people."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from kms.cli.saying import MOST, Line, each_of, optional_text, texts, when
from kms.strict_json import Fields

_STYLES: Final = {"current": "green", "scheduled": "cyan", "retired": "dim"}
_MOST_SHOWN: Final = 50  # of the guests that a refusal names
_EPOCH: Final = re.compile(r"[1-9][0-9]{0,14}")  # below 2^53
_NO_CURRENT: Final = "NO epoch is current: no guest gets a key"


def keys_lines(answer: Fields) -> Iterator[Line]:
    """Say every epoch, what was never adopted, and every generation of the identity.

    Where the root does not answer, the epochs are said, and that the rest is not known.
    """
    for epoch in each_of(answer, "epochs"):
        yield _epoch(epoch)
    if answer.take("current") is None:
        yield Line(_NO_CURRENT, "bold red")
    if (root := optional_text(answer, "root")) is not None:
        yield Line(
            f"the root key does not answer now ({root}): what only it can tell is left out", "bold red"
        )
    for version in answer.nullable("not_adopted", lambda name: _numbers(answer, name)) or ():
        yield Line(
            f"version {version} of the root exists at its provider and was never adopted:"
            " no key is made of it until `kms keys rotate` adopts it",
            "yellow",
        )
    for generation in each_of(answer.object("identity"), "generations"):
        yield _generation(generation)


def epoch_lines(answer: Fields) -> Iterator[Line]:
    """Say the epoch that was made, or given another time."""
    yield _epoch(answer.object("epoch"))


def retired_lines(answer: Fields) -> Iterator[Line]:
    """Say the epoch that was retired, and whom that leaves behind."""
    yield _epoch(answer.object("epoch"))
    left_behind = list(left_behind_lines(answer))
    if left_behind:
        yield Line("left behind:", "yellow")
        yield from left_behind


def new_generation_lines(answer: Fields) -> Iterator[Line]:
    """Say the new generation of the identity, and what happens next."""
    yield Line(f"identity, generation {answer.integer('generation')}: {answer.text('identity')}")
    yield Line(
        "servers use it once they were started again; guests whose image pins the one before follow the"
        " hand-over that it signed; pin the new one in images that you make from now on"
    )


def left_behind_lines(answer: Fields) -> Iterator[Line]:
    """Say whom the end of an epoch leaves behind, or may: nothing where that is nobody."""
    guests, count = list(each_of(answer, "guests")), answer.integer("count")
    for guest in guests[:_MOST_SHOWN]:
        who, took = _who(guest.text("app_id"), guest), ", ".join(map(str, _numbers(guest, "epochs")))
        keys = ", ".join(f"{key.text('name')}@{key.text('scope')}" for key in each_of(guest, "keys"))
        yield Line(f"  {who}: took epoch {took} of {keys}, last seen {when(guest.text('last_seen'))}")
    yield from _more(count - len(guests[:_MOST_SHOWN]))
    pinned = answer.nullable("pinned", lambda name: texts(answer, name))
    if pinned is None:
        yield Line("  apps that the policy in force pins to it, if any: it cannot be asked")
    for app in pinned or ():
        yield Line(f"  app {app}: pinned to it by the policy in force")
    yield from _gaps(answer)


def rotation_lines(answer: Fields, keys: Fields) -> Iterator[Line]:
    """Say by app how many guests are of which epoch, then who is still of an older one than the current.

    `keys` is what the office said of the epochs.
    """
    current, totals = keys.nullable("current", keys.integer), _by_epoch(answer)
    by_app: dict[str, Counter[int]] = {}
    stragglers = []
    for guest in each_of(answer, "guests"):
        app, epoch, last_seen = guest.text("app_id"), guest.integer("epoch"), guest.text("last_seen")
        by_app.setdefault(app, Counter())[epoch] += 1
        if current is not None and epoch < current:
            text = f"  {_who(app, guest)}: still of epoch {epoch}, last seen {when(last_seen)}"
            stragglers.append(Line(text))
    yield from _table(by_app, totals)
    since, count = when(answer.text("since")), answer.integer("count")
    yield Line(f"{count} guest(s) in {answer.integer('records')} record(s) since {since}", "dim")
    if (listed := sum(map(Counter.total, by_app.values()))) < count:
        yield Line(f"by app only the {listed} that are furthest behind: see --app", "yellow")
    yield from _gaps(answer)
    if current is None:
        yield Line(_NO_CURRENT, "bold red")
        return
    behind = sum(guests for epoch, guests in totals.items() if epoch < current)
    if behind:
        yield Line(
            f"{behind} guest(s) are still of an older epoch than {current}, the current one:", "yellow"
        )
        yield from stragglers
        yield from _more(behind - len(stragglers))
    elif count:
        yield Line(f"every guest is of epoch {current}, the current one", "green")


def _more(left_out: int) -> Iterator[Line]:
    if left_out > 0:
        yield Line(f"  and {left_out} more")


def _gaps(answer: Fields) -> Iterator[Line]:
    if damaged := answer.integer("damaged"):
        yield Line(f"{damaged} record(s) cannot be read any more: guests may be missing here", "red")
    if not answer.boolean("complete"):
        yield Line("NOT ALL: there are more records than are read at once; only the latest were", "red")


def _epoch(epoch: Fields) -> Line:
    state, made_at, active_from = epoch.text("state"), epoch.text("made_at"), epoch.text("active_from")
    text = f"epoch {epoch.integer('epoch')}: {state}, made {when(made_at)} by {epoch.text('made_by')}"
    # In one form, so that they sort as texts.
    if active_from > made_at:
        text += f", active from {when(active_from)}"
    retired_at, retired_by = optional_text(epoch, "retired_at"), optional_text(epoch, "retired_by")
    if retired_at is not None:
        text += f", retired {when(retired_at)} by {retired_by}"
    return Line(text, _STYLES.get(state, ""))


def _generation(generation: Fields) -> Line:
    made_at, made_by = optional_text(generation, "made_at"), optional_text(generation, "made_by")
    made = "as old as the root" if made_at is None else f"made {when(made_at)} by {made_by}"
    number, identity = generation.integer("generation"), optional_text(generation, "identity")
    return Line(f"identity, generation {number}: {identity or 'not known now'}, {made}")


def _numbers(answer: Fields, name: str) -> list[int]:
    values = answer.array(name, at_most=MOST)
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) != len(values):
        answer.fail(f"`{name}` must be a list of numbers")
    return numbers


def _who(app: str, guest: Fields) -> str:
    instance, chip = optional_text(guest, "instance_id"), optional_text(guest, "chip_id")
    return (
        f"app {app}"
        + (f", instance {instance}" if instance is not None else "")
        + (f", chip {chip[:16]}…" if chip is not None else "")
    )


def _by_epoch(answer: Fields) -> Counter[int]:
    counts = Counter[int]()
    for epoch, guests in answer.members("by_epoch").items():
        if not _EPOCH.fullmatch(epoch) or not isinstance(guests, int):
            answer.fail("`by_epoch` must be numbers of guests by epoch")
        counts[int(epoch)] = guests
    return counts


def _table(by_app: Mapping[str, Counter[int]], totals: Counter[int]) -> Iterator[Line]:
    if not totals:
        yield Line("no guest took a key in this time")
        return
    epochs, width = sorted(totals), max(map(len, ["app", *by_app]))
    heads = ["guests", *(f"epoch {epoch}" for epoch in epochs)]
    yield Line("  ".join([f"{'app':<{width}}", *heads]), "dim")
    for name, counts in [*sorted(by_app.items()), ("all", totals)]:
        numbers = [counts.total(), *(counts[epoch] for epoch in epochs)]
        cells = [f"{number:>{len(head)}}" for head, number in zip(heads, numbers, strict=True)]
        yield Line("  ".join([f"{name:<{width}}", *cells]))

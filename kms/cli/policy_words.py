"""How policies, changes of them and guests are said to people."""

from collections.abc import Iterator
from typing import Final

from kms.cli.saying import Line, each_of, optional_text, texts, when
from kms.strict_json import Fields

_STYLES: Final = {"widens": "yellow", "narrows": "cyan", "neither": ""}
_NO_FILE: Final = "(stored revision):"  # kms.policy.revision
_MARKS: Final = {"widens": "+", "narrows": "-", "neither": "."}


def difference_line(effect: str, document: str, text: str) -> Line:
    """Say one difference, as "+ widens   app payments: chip 38d1… added"."""
    return Line(f"{_MARKS.get(effect, '?')} {effect:<8} {document}: {text}", _STYLES.get(effect, ""))


def diff_lines(diff: Fields) -> Iterator[Line]:
    """Say a DIFF; "no difference" where there is none."""
    some = False
    for change in each_of(diff, "changes"):
        some = True
        yield difference_line(change.text("effect"), change.text("document"), change.text("text"))
    if not some:
        yield Line("no difference")


def change_lines(change: Fields) -> Iterator[Line]:
    """Say a CHANGE, as it stands in the history."""
    sequence, made_at = change.integer("sequence"), change.text("made_at")
    kind, intent, author = change.text("kind"), change.text("intent"), change.text("author")
    yield Line(f"{sequence:>4}  {change.text('revision')}")
    yield Line(f"      {when(made_at)}  {kind}, {intent}s, by {author}", "dim")
    if message := change.text("message"):
        yield Line(f"      {message}")
    if signed := signers(change):
        yield Line(f"      signed by {', '.join(signed)}", "dim")


def signers(change: Fields) -> list[str]:
    """Name the operators whose signatures of a CHANGE or PROPOSAL count."""
    found = []
    for signature in each_of(change, "signatures"):
        key = optional_text(signature, "key")
        if key is not None and signature.take("valid") is True:
            found.append(key)
    return found


def finding_lines(findings: Fields, *, said: str) -> Iterator[Line]:
    """Say FINDINGS as lint does: file, line, column, severity, message.

    Of documents that are no file there is no place to look at, and nothing to add where `said` says it.
    """
    for each in each_of(findings, "findings"):
        place = f"{each.text('file')}:{each.integer('line')}:{each.integer('column')}: "
        severity, message = each.text("severity"), each.text("message")
        if place.startswith(_NO_FILE):
            place = ""
        if place or message not in said:
            yield Line(f"{place}{severity}: {message}", "red" if severity == "error" else "yellow")


def _group_lines(group: Fields) -> Iterator[Line]:
    """Say one GROUP of guests: who, how many, why, and a release to look at."""
    app = optional_text(group, "app") or optional_text(group, "app_id") or "no app"
    image = optional_text(group, "image") or "an unknown image"
    chip = optional_text(group, "chip_id")
    on = "no chip" if chip is None else f"chip {chip[:16]}…"
    guests, records = group.integer("guests"), group.integer("records")
    last, example = group.text("last_seen"), group.text("example")
    yield Line(f"  app {app}, image {image}, {on}: {', '.join(texts(group, 'reasons'))}")
    yield Line(
        f"      {guests} guest(s), {records} record(s), last {when(last)}, for example {example}", "dim"
    )


def rehearsal_lines(answer: Fields) -> Iterator[Line]:
    """Say a WHAT_IF: who would newly be refused or allowed, and how much was judged."""
    refused = list(each_of(answer, "newly_refused"))
    allowed = list(each_of(answer, "newly_allowed"))
    for title, groups, style in (
        ("newly REFUSED", refused, "bold red"),
        ("newly allowed", allowed, "yellow"),
    ):
        if groups:
            yield Line(f"{title}:", style)
            for group in groups:
                yield from _group_lines(group)
    judged, unjudged = answer.integer("judged"), answer.integer("unjudged")
    yield Line(
        f"since {when(answer.text('since'))}: {judged} decision(s) judged again,"
        f" {answer.integer('still_allowed')} still allowed, {answer.integer('still_refused')} still refused"
    )
    if unjudged:
        yield Line(f"{unjudged} cannot be judged again: they proved nothing, or not enough was recorded")
    if answer.take("complete") is not True:
        yield Line("NOT ALL: there are more decisions than are judged at once; ask for a shorter time", "red")
    if not refused:
        yield Line("nobody is newly refused", "green")

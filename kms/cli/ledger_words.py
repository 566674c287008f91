"""How entries of the ledger, and what is wrong with them, are said."""

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kms.cli.saying import Line, fields, optional_text, when
from kms.encoding import from_base64
from kms.errors import KmsError
from kms.strict_json import Fields, JsonError, JsonValue, parse

if TYPE_CHECKING:
    from kms.ledger.checkpoint import Checkpoint
    from kms.ledger.findings import Report

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,14}")  # below 2^53
_GONE: Final = "not in the record any more"


def index_of(text: str) -> int:
    """Read an index: 0 or more."""
    if not _INDEX.fullmatch(text):
        raise argparse.ArgumentTypeError("takes a number, 0 or more")
    return int(text)


def entry_line(item: Fields) -> Line:
    """Say an entry of an answer in a line."""
    index = item.take("index")
    number = "not in a checkpoint yet" if index is None else str(index)
    entry_id, text = optional_text(item, "id"), optional_text(item, "entry")
    if entry_id is None or text is None:
        return Line(f"{number}  {_GONE}", "red")
    try:
        what, style = _summary(fields(parse(from_base64(text)), "entry"))
    except (ValueError, JsonError, KmsError):
        return Line(f"{number}  {entry_id}  an entry that cannot be read", "red")
    return Line(f"{number}  {what}  {entry_id}", style)


def _summary(entry: Fields) -> tuple[str, str]:
    if entry.text("kind") == "action":
        outcome, target = entry.text("outcome"), optional_text(entry, "target")
        what = f"{entry.text('operator')}: {entry.text('action')}{f' {target}' if target else ''}: {outcome}"
        return f"{when(entry.text('at'))}  {what}", "" if outcome == "done" else "yellow"
    outcome, code = entry.text("outcome"), optional_text(entry, "code")
    proven = entry.take("boot_info")
    app = fields(proven, "boot_info").take("app_id") if isinstance(proven, dict) else None
    of_app = f" app {app}" if isinstance(app, str) else ""
    what = f"{outcome}{of_app}{f': {code}' if code else ''}"
    return f"{when(entry.text('decided_at'))}  {what}", "" if outcome == "released" else "yellow"


def checkpoint_json(checkpoint: "Checkpoint | None") -> JsonValue:
    """Give a checkpoint as a JSON object."""
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def report_json(report: "Report") -> dict[str, JsonValue]:
    """Give what a verification found as a JSON object."""
    return {
        "sound": report.sound,
        "checkpoint": checkpoint_json(report.checkpoint),
        "waiting": report.waiting,
        "findings": [
            {"kind": each.kind.value, "index": each.index, "id": each.id, "sentence": each.sentence}
            for each in report.findings
        ],
        "left_out": report.left_out,
        "checkpoints_left_out": report.checkpoints_left_out,
    }


def report_lines(report: "Report") -> Iterator[Line]:
    """Say what a verification found, a line each."""
    for each in report.findings:
        where = "" if each.index is None else f" at index {each.index}"
        of = "" if each.id is None else f" ({each.id})"
        yield Line(f"{each.kind}{where}{of}: {each.sentence}", "red")
    if report.left_out:
        yield Line(f"and {report.left_out} more of the same kinds", "red")
    if report.checkpoints_left_out:
        yield Line(f"{report.checkpoints_left_out} stored checkpoints, between others, were not looked at")
    if report.checkpoint is None:
        yield Line("there is no checkpoint that the ledger's key signed", "red")
        return
    size, root = report.checkpoint.size, report.checkpoint.root.hex()
    waiting = f"; {report.waiting} wait for the next checkpoint" if report.waiting else ""
    if report.sound:
        yield Line(f"sound: {size} entries are as they were written, root {root}{waiting}", "green")
    else:
        yield Line(f"NOT SOUND: as to the checkpoint of {size} entries, root {root}{waiting}", "red")

"""Reads the corpus as it is stored: the forged bytes, and what must come of them."""

import json
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from kms.encoding import b64url
from kms.strict_json import JsonValue

FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownList:
    """A revocation list that the server knows: DER, and the layout (`milan-vcek`) whose path it is from."""

    der: bytes
    path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A stored case. `reasons` are empty where it must verify, and then there is no `code`."""

    name: str
    code: str | None
    reasons: tuple[str, ...]
    report: bytes
    evidence: dict[str, JsonValue]
    mode: str
    lists: tuple[KnownList, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What every case is judged by."""

    at: datetime
    request: bytes
    max_age: timedelta
    roots: dict[str, bytes]


def corpus() -> Corpus:
    """Give what every case is judged by."""
    head = _load("corpus.json")
    return Corpus(
        at=datetime.fromisoformat(head["at"]),
        request=head["request"].encode(),
        max_age=timedelta(days=head["max_age_days"]),
        roots={product: bytes.fromhex(pin) for product, pin in head["roots"].items()},
    )


def cases() -> list[Case]:
    """Give every stored case, those of a layout together."""
    found = []
    for file in sorted((FOLDER / "cases").glob("*.json")):
        stored = json.loads(file.read_text())
        honest = b64decode(stored["honest_report"])
        found += [_case(row, honest) for row in stored["cases"]]
    return found


def _case(row: dict[str, Any], honest: bytes) -> Case:
    report = _report(row.get("report", {}), honest)
    evidence: dict[str, JsonValue] = {"tee": "sev-snp", "report": b64url(report)}
    if row.get("certificates"):
        evidence["certificates"] = [b64url(_named("certificates.json", each)) for each in row["certificates"]]
    revocation = row.get("revocation", {"mode": "when-available", "lists": []})
    lists = tuple(
        KnownList(der=_named("revocation_lists.json", each["list"]), path=each["path"])
        for each in revocation["lists"]
    )
    return Case(
        name=row["name"],
        code=row["expect"].get("code"),
        reasons=tuple(row["expect"].get("reasons", ())),
        report=report,
        evidence={**evidence, **row.get("evidence", {})},
        mode=revocation["mode"],
        lists=lists,
    )


def _report(difference: str | dict[str, str], honest: bytes) -> bytes:
    if isinstance(difference, str):
        return b64decode(difference)
    report = bytearray(honest)
    for offset, data in difference.items():
        changed = bytes.fromhex(data)
        report[int(offset, 16) : int(offset, 16) + len(changed)] = changed
    return bytes(report)


@cache
def _load(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / file).read_text())
    return loaded


def _named(file: str, name: str) -> bytes:
    return b64decode(_load(file)[name])

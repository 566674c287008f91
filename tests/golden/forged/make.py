"""Write the corpus of forged evidence again: ``python -m tests.golden.forged.make``.

The files hold the forged bytes and what must come of them; nothing but their recipes decides either. CI makes
them again and compares.

- `corpus.json`: the moment at which everything is judged, the request that reports are bound to, and the
  pinned roots (SHA-256 of their DER SubjectPublicKeyInfo).
- `cases/<layout>.json`: a case on each line. A report is the layout's `honest_report` with the bytes at the
  offsets that `report` names replaced, or, where its length differs, `report` itself. `evidence` holds
  members of the wire form beside, or instead of, the rest.
- `certificates.json`, `revocation_lists.json`: DER by name, the name being that of the first case with it.
"""

import json
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kms.request import report_data
from kms.simulator.authorities import Role
from kms.snp.product import Product
from kms.snp.report import LENGTH
from tests.golden.forged.corpus import ALL_LAYOUTS, recipes
from tests.golden.forged.draft import AT, DAY, Evidence, Layout, Rules
from tests.golden.forged.genuine import Guest, authority_key, genuine, spki_sha256
from tests.golden.forged.recipes import Recipe

FOLDER: Final = Path(__file__).parent
REQUEST: Final = b'{"challenge":"the corpus is bound to these bytes, and they need not be a request"}'
GUEST: Final = Guest(
    measurement=b"measurement of the corpus".ljust(48, b"."),
    host_data=b"host data of the corpus".ljust(32, b"."),
    report_data=report_data(REQUEST),
)


def files() -> dict[str, str]:
    """Give every file of the corpus: its name below this folder, and its text."""
    certificates = _Named()
    lists = _Named()
    made = {f"cases/{layout.name}.json": _layout_file(layout, certificates, lists) for layout in ALL_LAYOUTS}
    pins = {product.value: spki_sha256(authority_key(product, Role.ARK)).hex() for product in Product}
    head = {
        "at": AT.isoformat(),
        "request": REQUEST.decode(),
        "max_age_days": Rules().max_age // DAY,
        "roots": pins,
    }
    return {
        "corpus.json": json.dumps(head, indent=1) + "\n",
        **made,
        "certificates.json": json.dumps(certificates.by_name, indent=1) + "\n",
        "revocation_lists.json": json.dumps(lists.by_name, indent=1) + "\n",
    }


class _Named:
    """Gives each value the name that it was first seen under."""

    def __init__(self) -> None:
        self.by_name: dict[str, str] = {}
        self._names: dict[bytes, str] = {}

    def name(self, value: bytes, name: str) -> str:
        if value not in self._names:
            self._names[value] = name
            self.by_name[name] = b64encode(value).decode()
        return self._names[value]


def _layout_file(layout: Layout, certificates: _Named, lists: _Named) -> str:
    honest = genuine(layout, GUEST).report()
    rows = [json.dumps(_row(recipe, honest, certificates, lists)) for recipe in recipes(layout)]
    head = json.dumps({"layout": layout.name, "honest_report": b64encode(honest).decode()}, indent=1)
    # A case a line: what a change of a recipe changes can be read in a diff.
    return head.removesuffix("\n}") + ',\n "cases": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"


def _row(recipe: Recipe, honest: bytes, certificates: _Named, lists: _Named) -> dict[str, Any]:
    evidence = recipe.draft(GUEST).evidence()
    row: dict[str, Any] = {"name": recipe.name, "expect": recipe.expect.to_json()}
    if evidence.report != honest:
        row["report"] = _difference(evidence.report, honest)
    members = dict(evidence.members)
    if "certificates" not in members:
        row["certificates"] = [
            certificates.name(der, f"{recipe.name}/{label}") for label, der in evidence.certificates
        ]
    elif members["certificates"] is None:
        del members["certificates"]
    if members:
        row["evidence"] = members
    rules = _rules(recipe, evidence, lists)
    return {**row, **({"revocation": rules} if rules else {})}


def _difference(report: bytes, honest: bytes) -> str | Mapping[str, str]:
    if len(report) != LENGTH:
        return b64encode(report).decode()
    return dict(_runs(report, honest))


def _runs(report: bytes, honest: bytes) -> Iterator[tuple[str, str]]:
    start: int | None = None
    # Runs that are nearer than this to each other are shorter as one.
    nearness = 8
    differing = [at for at in range(LENGTH) if report[at] != honest[at]]
    for number, at in enumerate(differing):
        start = at if start is None else start
        if number + 1 == len(differing) or differing[number + 1] - at > nearness:
            yield f"{start:#05x}", report[start : at + 1].hex()
            start = None


def _rules(recipe: Recipe, evidence: Evidence, lists: _Named) -> dict[str, Any] | None:
    rules = evidence.rules
    if rules == Rules():
        return None
    named = [
        {
            "list": lists.name(each.der, f"{recipe.name}/list-{number}"),
            "path": None if each.of is None else each.of.name,
        }
        for number, each in enumerate(rules.lists, 1)
    ]
    return {"mode": rules.mode, "lists": named}


def write() -> None:
    """Write every file."""
    for name, text in files().items():
        file = FOLDER / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write()

"""``kms collateral advisories``: AMD's bulletins as this version knows them, and what shows their fixes."""

import argparse
from typing import NamedTuple

from kms.cli.output import OK, print_json
from kms.cli.parsers import Parser
from kms.packaged import load_advisories
from kms.snp.advisories import Advisories, Figure
from kms.strict_json import JsonValue

_EPILOG = """\
`forbid_advisories` of a policy denies a guest whose platform is open to a bulletin, and one whose report
cannot tell because the bulletin is not attestable.

example:
  kms collateral advisories
"""


class AdvisoryRow(NamedTuple):
    """What one bulletin means for one product. Without `not_attestable`, the figures are the whole proof."""

    id: str
    title: str
    cves: tuple[str, ...]
    published: str | None
    url: str
    product: str
    figures: tuple[Figure, ...]
    not_attestable: str | None


def advisory_table(advisories: Advisories) -> list[AdvisoryRow]:
    """Give a row for each bulletin and product, by id."""
    return [
        AdvisoryRow(
            id=each.id,
            title=each.title,
            cves=each.cves,
            published=each.published,
            url=each.url,
            product=product.value,
            figures=concern.figures,
            not_attestable=concern.not_attestable,
        )
        for each in advisories
        for product, concern in each.concerns.items()
    ]


def main(argv: list[str]) -> int:
    """Print the table; always 0."""
    arguments = parser().parse_args(argv)
    rows = advisory_table(load_advisories())
    if arguments.json:
        print_json({"advisories": [_json(row) for row in rows]})
    else:
        _print(rows)
    return OK


def parser() -> Parser:
    """Give the command's parser."""
    command = Parser(
        prog="kms collateral advisories",
        description="List AMD's security bulletins about SEV-SNP: for each product what a report must show of"
        " the fix, with the source of every figure, or why no report can.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return command


def _print(rows: list[AdvisoryRow]) -> None:
    last = ""
    for row in rows:
        if row.id != last:
            if last:
                print()
            print(f"{row.id}  {row.title}")
            print("  " + ", ".join(filter(None, (*row.cves, row.published, row.url))))
            last = row.id
        for figure in row.figures:
            print(f"  {row.product}: {figure}")
            print(f"    {'secondary source' if figure.secondary else 'source'}: {figure.source}")
        if row.not_attestable is not None:
            print(f"  {row.product}: not attestable: {row.not_attestable}")


def _json(row: AdvisoryRow) -> dict[str, JsonValue]:
    return {
        "id": row.id,
        "title": row.title,
        "cves": list(row.cves),
        "published": row.published,
        "url": row.url,
        "product": row.product,
        "figures": [
            {"shows": str(each), "source": each.source, "secondary": each.secondary} for each in row.figures
        ],
        "not_attestable": row.not_attestable,
    }

"""docs/reference/advisories.md, from the data. ``python -m tests.docs.advisories_page`` writes it anew."""

from itertools import groupby
from pathlib import Path

from kms.cli.collateral_advisories import AdvisoryRow, advisory_table
from kms.packaged import load_advisories
from kms.snp.advisories import Figure
from kms.snp.product import Product

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "advisories.md"

_HEAD = """\
# Advisories

AMD's security bulletins about SEV-SNP, and what an attestation report can show of their fixes. The
tables below are made from `kms/snp/advisories.toml` by `python -m tests.docs.advisories_page`; a test
compares. `kms collateral advisories` prints the same.

## What is judged

For each bulletin that concerns the product of a report, all **figures** must be shown:

- *component at least n*: of the reported **and** of the committed TCB, component by component. Only the
  reported one is bound to the endorsement key; what is not committed, the host may take back after the
  report is signed.
- *firmware at least a.b.c*: version and build (decimal) of the current and of the committed SEV
  firmware.
- *platform bit*: of PLATFORM_INFO.
- *mitigation bit*: of both mitigation vectors, for what was open while the guest was loaded may have
  been used then. Reports before version 5 have no vectors, and so show no mitigation.

Figures for a CPU (`family/model/stepping`) count for that CPU only: microcode levels of two steppings
are two countings. A CPU that has none of a bulletin's figures is not attestable for it; a version 2
report, which names no CPU, must show the figures of all.

A bulletin is **open** when a figure is missing, **fixed** when all are shown. It is **not attestable**
where no public figure was found, or where the figures are necessary but not enough (the table then has
both): a report can show that it is open, and never that it is fixed.

BootInfo says it in two members: `advisories` are the ids that are open, `tcb_status` is `out-of-date` if
there are any, else `up-to-date`, or `unknown` for a CPU for which no bulletin has a figure. Bulletins
that are not attestable do not count: with them, nothing would ever be up to date. That four TCB versions
are equal, or that a TCB is the newest that somebody has seen, plays no part.

## What a policy does with it

By itself, nothing: `tcb_status` and `advisories` are recorded. `forbid_advisories: [AMD-SB-3015]` in a
document of kind `app` denies ([reasons](policy.md#checks-and-reason-codes))

- `advisory-forbidden`: a named bulletin is open;
- `advisory-not-attestable`: it is not attestable for this CPU, or the data does not know it. Whoever
  forbids a bulletin asks for proof, and there is none. `kms policy lint` warns of such ids;
- `advisories-not-assessed`: the recorded BootInfo was made by a version that assessed nothing.

For what is not attestable there are other documents: minimum levels, platform bits and mitigation masks
in `kind: tcb`, `smt`, `ciphertext_hiding`, `page_swap_disabled` and `firmware_minimum` in `kind: guest`,
and lists of `chips` that you know. Against the extraction of Milan's root seed (AMD-SB-3045) no minimum
helps: leave the product out.

## Where the figures are from

AMD's bulletins were not read for this data; AMD's CVE records, Linux, and others who read the bulletins
were. *Source* is AMD's own record, or code that AMD's engineers wrote or reviewed. *Secondary source* is
anybody else: check it against the bulletin before you rely on it. Titles are ours. AMD changes bulletins
after the day, and this data is as old as this version; a bulletin that is newer is not in it.

## At a glance

"""


def page() -> str:
    """Give the page as it must be."""
    rows = advisory_table(load_advisories())
    products = [product.value for product in Product]
    lines = [
        _HEAD.rstrip("\n"),
        "",
        f"| bulletin | {' | '.join(products)} |",
        "|---" * (len(products) + 1) + "|",
    ]
    for name, group in groupby(rows, key=lambda row: row.id):
        concerned = {row.product: row for row in group}
        cells = [_cell(concerned.get(product)) for product in products]
        lines.append(f"| [{name}](#{name.lower()}) | {' | '.join(cells)} |")
    lines += ["", "## Bulletins", ""]
    for name, group in groupby(rows, key=lambda row: row.id):
        of_bulletin = list(group)
        row = of_bulletin[0]
        about = "; ".join(filter(None, (", ".join(row.cves), row.published)))
        lines += [
            f"### {name}",
            "",
            f"{row.title}. [Bulletin]({row.url}){f' ({about})' if about else ''}",
            "",
        ]
        lines += ["| product | figure | source |", "|---|---|---|"]
        for each in of_bulletin:
            lines += [f"| {each.product} | {figure} | {_source(figure)} |" for figure in each.figures]
            if each.not_attestable is not None:
                lines.append(f"| {each.product} | not attestable | {_text(each.not_attestable)} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _cell(row: AdvisoryRow | None) -> str:
    if row is None:
        return "-"
    figures = "; ".join(str(figure) for figure in row.figures)
    if row.not_attestable is None:
        return figures
    return f"{figures}; not attestable" if figures else "not attestable"


def _source(figure: Figure) -> str:
    return f"{'secondary: ' if figure.secondary else ''}{_text(figure.source)}"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

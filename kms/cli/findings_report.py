"""What the doctors found, said to people or to programs."""

from collections.abc import Iterator, Sequence
from typing import Final

from kms.cli.output import OK, REFUSED, print_json
from kms.cli.saying import Line, say
from kms.findings import Finding

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red", "unknown": "cyan"}


def tell(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print every finding, and give the exit status: `REFUSED` where something failed."""
    failures = sum(each.failed for each in findings)
    if as_json:
        print_json({"healthy": not failures, "checks": [_document(each) for each in findings]})
    else:
        say(line for each in findings for line in _lines(each))
        say([Line(f"{failures} of {len(findings)} checks failed" if failures else "nothing failed")])
    return REFUSED if failures else OK


def _document(each: Finding) -> dict[str, str]:
    return {
        "name": each.name,
        "status": each.status.value,
        "detail": each.detail,
        "remedy": each.remedy,
    }


def _lines(each: Finding) -> Iterator[Line]:
    status = each.status.value
    yield Line(f"{status:<8} {each.name:<20} {each.detail}", _STYLES[status])
    if each.remedy:
        yield Line(f"{'':<29} → {each.remedy}")

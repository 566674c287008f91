"""The corpus of forged evidence: each case is refused for what is wrong with it, and for nothing else.

The bytes are stored beside what must come of them (`tests/golden/forged/`), and made by a script that these
tests run again. `tests/api/test_forged_releases.py` tries the same forgeries as a client.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kms.checks import failures
from kms.errors import MalformedEvidence
from kms.evidence.sev_snp import parse_evidence
from kms.request import report_data
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.revocation import Revocation, RevocationMode, load_revocation_list
from kms.snp.roots import TrustedRoots
from kms.snp.verify import Unverified, VerifiedReport, check_report_data, verify
from tests.golden.forged import make, reading

CORPUS = reading.corpus()
CASES = reading.cases()
ROOTS = TrustedRoots(pins={pin: Product(name) for name, pin in CORPUS.roots.items()})
SNP = Path(__file__).parents[2] / "kms" / "snp"

# Modules whose every refusal must be in the corpus, by check and by reason.
JUDGES = ("verify.py", "chain.py", "leaf.py", "revocation.py")
READERS = ("report.py", "certificate_table.py", "endorsement.py", "revocation_list.py")
# Never alone: without a pinned root there is no product, and names are those of a product's line.
NEVER_ALONE = {
    "root-unknown": {"chain-names", "product"},
    # The report's signature is checked all the same, with a key of no use.
    "signer-none": {"endorsement-certificate"},
}


def line_of(path: str | None) -> Line | None:
    if path is None:
        return None
    product, signer = path.split("-")
    return Line(Signer(signer), Product(product))


def judge(case: reading.Case) -> tuple[str | None, tuple[str, ...], VerifiedReport | None]:
    """Judge in the order of a release: format, request, authenticity."""
    try:
        evidence = parse_evidence(case.evidence)
        bound = check_report_data(evidence.report, report_data(CORPUS.request))
        if not bound.passed:
            return "evidence-untrusted", failures([bound]), None
        known = tuple(load_revocation_list(each.der, line=line_of(each.path)) for each in case.lists)
        revocation = Revocation(
            mode=RevocationMode(case.mode),
            max_age=CORPUS.max_age,
            lists=(*known, *evidence.revocation_lists),
        )
        outcome = verify(evidence.report, evidence.certificates, ROOTS, CORPUS.at, revocation)
    except MalformedEvidence as error:
        return "malformed-evidence", (error.reason,), None
    if isinstance(outcome, Unverified):
        return "evidence-untrusted", failures(outcome.checks), None
    return None, (), outcome


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_comes_of_it(case: reading.Case) -> None:
    code, reasons, verified = judge(case)
    assert (code, reasons) == (case.code, case.reasons)
    if verified is not None:
        product, signer = case.name.split("/")[0].split("-")
        assert (verified.product.value, verified.signer.value) == (product, signer)
        assert (verified.csp_id is None) is (signer == "vcek")


def test_the_corpus_is_what_its_script_makes() -> None:
    """Byte for byte: ``python -m tests.golden.forged.make`` writes it again."""
    made = make.files()
    stored = {
        str(file.relative_to(make.FOLDER)): file.read_text()
        for file in make.FOLDER.rglob("*.json")
        if file.name != "worthless_keys.json"
    }
    assert set(stored) == set(made)
    for name, text in made.items():
        assert stored[name] == text, name


def test_the_corpus_is_large_and_its_names_are_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    by_layout: dict[str, set[str]] = defaultdict(set)
    for case in CASES:
        layout, title = case.name.split("/")
        if case.code is not None:
            by_layout[layout].add(title)
    assert set(by_layout) == {"milan-vcek", "milan-vlek", "turin-vcek", "turin-vlek"}
    assert all(len(titles) >= 60 for titles in by_layout.values())


def test_genuine_evidence_is_in_the_corpus_too() -> None:
    verified = {case.name.split("/")[0] for case in CASES if case.code is None}
    assert verified == {f"{product.value}-{signer.value}" for product in Product for signer in Signer}


@pytest.mark.parametrize("layout", ["milan-vcek", "milan-vlek", "turin-vcek", "turin-vlek"])
def test_every_reason_stands_alone_in_some_case(layout: str) -> None:
    """One at a time: were a check of that reason taken away, that case would verify."""
    alone = {case.reasons[0] for case in CASES if case.name.startswith(layout) and len(case.reasons) == 1}
    together = [set(case.reasons) for case in CASES if case.name.startswith(layout) and case.reasons]
    of_others = {"hwid", "hwid-mismatch", "chip-id-zero"} if layout.endswith("vlek") else {"csp-id"}
    for reason in reasons_of(JUDGES) - of_others:
        if reason in NEVER_ALONE:
            assert {reason, *NEVER_ALONE[reason]} in together, reason
        else:
            assert reason in alone, reason


def test_every_way_of_being_malformed_is_in_the_corpus() -> None:
    seen = {case.reasons for case in CASES if case.code == "malformed-evidence"}
    assert {(reason,) for reason in reasons_of(READERS)} <= seen


def test_reasons_are_found_in_the_source() -> None:
    """The two tests above look for nothing if the source is written in another way."""
    assert reasons_of(JUDGES) >= {
        "chip-key-masked", "root-unknown", "root-signature", "chain-names", "hwid", "hwid-mismatch", "csp-id",
        "certificate-tcb", "report-signature", "report-data-mismatch", "certificate-revoked",
        "revocation-list-missing", "endorsement-certificate",
    }  # fmt: skip
    assert reasons_of(READERS) >= {
        "report-length", "reserved-bytes", "signature-range", "tcb-reserved", "certificate-table",
        "certificate-unreadable", "revocation-list-unreadable",
    }  # fmt: skip


def reasons_of(modules: tuple[str, ...]) -> set[str]:
    """Give every reason that these modules can refuse with, read from their source."""
    return {reason for name in modules for reason in _reasons(ast.parse((SNP / name).read_text()))}


def _reasons(tree: ast.Module) -> Iterator[str]:
    constants = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        if ast.unparse(node.func) == "Check.of":
            # A check that is written as passed refuses nobody.
            if isinstance(node.args[1], ast.Constant) and node.args[1].value is True:
                continue
            given = given or [node.args[0]]
        for value in given:
            yield from _words(value, constants)


def _words(value: ast.expr, constants: Mapping[str, object]) -> Iterator[str]:
    """Give the words that an expression may stand for: a literal, a constant's name, or one of two."""
    match value:
        case ast.Constant(value=str(word)):
            yield word
        case ast.Name(id=name) if name in constants:
            yield str(constants[name])
        case ast.IfExp(body=body, orelse=orelse):
            yield from _words(body, constants)
            yield from _words(orelse, constants)
        case _:
            pytest.fail(f"a reason that cannot be read from the source: {ast.unparse(value)}")

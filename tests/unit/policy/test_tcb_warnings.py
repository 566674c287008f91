"""Minimums below known bulletins: warned of where it is certain, once for each component."""

import re
from dataclasses import replace

import pytest

from kms.packaged import load_advisories
from kms.policy.findings import Severity
from kms.policy.lint import lint
from kms.snp.advisories import Advisories, assess, cpu_text
from kms.snp.advisory_file import parse_advisories
from kms.snp.product import Cpuid, Product
from kms.snp.tcb import TcbVersion, TcbVersions, component_names
from tests.unit.policy.samples import BOOT_INFO

ADVISORIES = parse_advisories(
    """
    [[advisory]]
    id = "AMD-SB-1"
    title = "of one component, on every CPU"
    url = "https://example.com/1"
    milan = {figure = [{tcb = {snp = 24}, source = "this test"}]}

    [[advisory]]
    id = "AMD-SB-2"
    title = "another level for each CPU"
    url = "https://example.com/2"
    [[advisory.genoa.figure]]
    tcb = {microcode = 84}
    cpus = ["0x19/0x11/1"]
    source = "this test"
    [[advisory.genoa.figure]]
    tcb = {microcode = 79}
    cpus = ["0x19/0x11/2"]
    source = "this test"
    [[advisory.genoa.figure]]
    tcb = {microcode = 25}
    cpus = ["0x19/0xa0/2"]
    source = "this test"

    [[advisory]]
    id = "AMD-SB-3"
    title = "a later one of the same component"
    url = "https://example.com/3"
    [[advisory.genoa.figure]]
    tcb = {microcode = 86}
    cpus = ["0x19/0x11/1"]
    source = "this test"

    [[advisory]]
    id = "AMD-SB-4"
    title = "firmware, mitigations and what no report shows"
    url = "https://example.com/4"
    milan = {figure = [{firmware = "1.55.22", source = "x"}, {mitigation_bits = [1], source = "x"}]}
    genoa = {not_attestable = "nobody knows"}

    [[advisory]]
    id = "AMD-SB-5"
    title = "a platform bit"
    url = "https://example.com/5"
    milan = {figure = [{platform = ["alias-check-complete"], source = "x"}]}
    turin = {figure = [{platform = ["alias-check-complete"], source = "x"}]}
    """.replace("AMD-SB-", "AMD-SB-900")
)
REQUIRED = "platform: {require: [alias-check-complete]}\n"


def warnings(products: str, rest: str = REQUIRED, *, advisories: Advisories = ADVISORIES) -> list[str]:
    text = f"kind: tcb\nname: fleet\nproducts:\n{products}\n{rest}"
    found = lint({"p.yaml": text.encode()}, development=False, advisories=advisories).findings
    assert all(each.severity is Severity.WARNING for each in found), found
    return [f"{each.line}:{each.column} {each.message}" for each in found]


def test_a_component_below_a_figure() -> None:
    assert warnings("  milan: {bootloader: 0, tee: 0, snp: 23, microcode: 0}") == [
        "4:39 snp 23 lets in milan machines that are open to AMD-SB-9001; needed: 24"
    ]
    assert not warnings("  milan: {bootloader: 0, tee: 0, snp: 24, microcode: 0}")


def test_one_warning_names_all_bulletins_and_what_does_for_all_of_them() -> None:
    (found,) = warnings("  genoa: {bootloader: 0, tee: 0, snp: 0, microcode: 70}")
    assert found == (
        "4:53 microcode 70 lets in genoa machines that are open to AMD-SB-9002, AMD-SB-9003;"
        " needed: 86 on 0x19/0x11/1 and 79 on 0x19/0x11/2"
    )


def test_levels_of_other_cpus_are_other_countings() -> None:
    """84 does for Genoa-X and Bergamo, whose figures are lower; only the first stepping is short of 86."""
    (found,) = warnings("  genoa: {bootloader: 0, tee: 0, snp: 0, microcode: 84}")
    assert found.endswith("open to AMD-SB-9003; needed: 86 on 0x19/0x11/1")


def test_an_exact_model_is_judged_by_its_own_figures_and_its_line_no_longer_is() -> None:
    both = (
        "  genoa: {{bootloader: 0, tee: 0, snp: 0, microcode: 86}}\n"
        "  genoa/0xa0: {{bootloader: 0, tee: 0, snp: 0, microcode: {level}}}"
    )
    assert not warnings(both.format(level=25))
    (found,) = warnings(both.format(level=24))
    assert found.startswith("5:58 microcode 24 lets in genoa/0xa0 machines")
    (line,) = warnings("  genoa: {bootloader: 0, tee: 0, snp: 0, microcode: 20}")
    assert "25 on 0x19/0xa0/2" in line
    of_model = "\n  genoa/0xa0: {bootloader: 0, tee: 0, snp: 0, microcode: 25}"
    (line,) = warnings(f"  genoa: {{bootloader: 0, tee: 0, snp: 0, microcode: 20}}{of_model}")
    assert "0xa0" not in line


def test_a_platform_bit_is_warned_of_once_for_all_products() -> None:
    products = (
        "  milan: {bootloader: 0, tee: 0, snp: 24, microcode: 0}\n"
        "  turin: {fmc: 0, bootloader: 0, tee: 0, snp: 0, microcode: 0}"
    )
    (found,) = warnings(products, "platform:\n  require: [ecc]\n")
    assert found == (
        "7:3 without `platform: {require: [alias-check-complete]}`"
        " machines are let in that are open to AMD-SB-9005"
    )
    assert [each.partition(" ")[0] for each in warnings(products, "")] == ["1:1"]
    assert not warnings("  genoa: {bootloader: 0, tee: 0, snp: 0, microcode: 86}", "")


def test_a_document_that_cannot_be_read_is_not_warned_of() -> None:
    text = "kind: tcb\nname: fleet\nproducts:\n  milan: {bootloader: 0, tee: 0, snp: 0}\n"
    found = lint({"p.yaml": text.encode()}, development=False, advisories=ADVISORIES).findings
    assert [each.severity for each in found] == [Severity.ERROR]


CPUS = [
    (Product.MILAN, Cpuid(0x19, 1, 1)),
    (Product.MILAN, Cpuid(0x19, 1, 2)),
    (Product.GENOA, Cpuid(0x19, 0x11, 1)),
    (Product.GENOA, Cpuid(0x19, 0x11, 2)),
    (Product.GENOA, Cpuid(0x19, 0xA0, 2)),
    (Product.TURIN, Cpuid(0x1A, 2, 1)),
]


@pytest.mark.parametrize(("product", "cpuid"), CPUS)
def test_by_the_real_data_a_machine_at_the_minimum_is_open_to_what_is_named(
    product: Product, cpuid: Cpuid
) -> None:
    levels = dict.fromkeys(component_names(product), 3)
    written = ", ".join(f"{name}: {level}" for name, level in levels.items())
    data = load_advisories()
    found = warnings(f"  {product}/{cpuid.model:#04x}: {{{written}}}", advisories=data)
    version = TcbVersion(**levels)
    versions = TcbVersions(current=version, reported=version, committed=version, launch=version)
    machine = replace(BOOT_INFO, product=product, cpuid=cpuid, tcb=versions)
    # Of a model's steppings, each has its own figures.
    of_this_cpu = [each for each in found if " on " not in each or cpu_text(cpuid) in each]
    named = set(re.findall("AMD-SB-[0-9]+", " ".join(of_this_cpu)))
    assert named
    assert named <= set(assess(data, machine).advisories)

"""AMD's bulletins: the data, what a report shows of each, and data files that are not believed."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kms.packaged import load_advisories
from kms.snp.advisories import (
    NO_ADVISORIES,
    Advisories,
    Platform,
    Standing,
    TcbStatus,
    assess,
)
from kms.snp.advisory_file import AdvisoriesInvalid, parse_advisories
from kms.snp.flags import PLATFORM_BITS, PlatformInfo
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions

MILAN_B1, MILAN_X = Cpuid(0x19, 0x01, 1), Cpuid(0x19, 0x01, 2)


@dataclass(frozen=True)
class Shown:
    """What a report shows: a `kms.snp.advisories.Platform`."""

    product: Product
    cpuid: Cpuid | None
    tcb: TcbVersions
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    platform_info: PlatformInfo
    launch_mitigations: int | None
    current_mitigations: int | None


def level(**levels: int) -> TcbVersion:
    return TcbVersion(**{"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, **levels})


def tcbs(version: TcbVersion, **others: TcbVersion) -> TcbVersions:
    return replace(
        TcbVersions(current=version, reported=version, committed=version, launch=version), **others
    )


def firmware(text: str) -> FirmwareVersion:
    major, minor, build = (int(part) for part in text.split("."))
    return FirmwareVersion(major=major, minor=minor, build=build)


def milan(**changes: Any) -> Platform:
    base = Shown(
        product=Product.MILAN,
        cpuid=MILAN_B1,
        tcb=tcbs(level()),
        current_firmware=firmware("1.55.29"),
        committed_firmware=firmware("1.55.29"),
        platform_info=PlatformInfo(1 << PLATFORM_BITS["alias-check-complete"]),
        launch_mitigations=0b110,
        current_mitigations=0b110,
    )
    return replace(base, **changes)


def data(figures: str, *, more: str = "") -> Advisories:
    return parse_advisories(
        f"""
        [[advisory]]
        id = "AMD-SB-3015"
        title = "a bulletin"
        url = "https://example.com"
        milan = {{figure = [{figures}]{more}}}
        """
    )


def standing(advisories: Advisories, platform: Platform) -> Standing:
    return advisories.standing("AMD-SB-3015", platform)


def at_least(**levels: int) -> str:
    inside = ", ".join(f"{name} = {value}" for name, value in levels.items())
    return f'{{tcb = {{{inside}}}, source = "s"}}'


class TestFigures:
    """Each figure at its edge, from both sides."""

    def test_levels_are_compared_one_by_one(self) -> None:
        """Field lesson 7: a high microcode level must not hide an old SNP firmware."""
        wanted = data(at_least(snp=24, microcode=200))
        assert standing(wanted, milan()) is Standing.FIXED
        assert standing(wanted, milan(tcb=tcbs(level(snp=23, microcode=255)))) is Standing.OPEN
        assert standing(wanted, milan(tcb=tcbs(level(snp=255, microcode=199)))) is Standing.OPEN

    @pytest.mark.parametrize("name", ["reported", "committed"])
    def test_reported_and_committed_both_count(self, name: str) -> None:
        """Reported is what the key is bound to; what is not committed the host may take back."""
        wanted = data(at_least(snp=24))
        assert standing(wanted, milan(tcb=tcbs(level(), **{name: level(snp=23)}))) is Standing.OPEN

    @pytest.mark.parametrize("name", ["current", "launch"])
    def test_other_tcb_versions_do_not(self, name: str) -> None:
        wanted = data(at_least(snp=24))
        assert standing(wanted, milan(tcb=tcbs(level(), **{name: level(snp=0)}))) is Standing.FIXED

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            ("1.55.22", Standing.FIXED),
            ("1.55.21", Standing.OPEN),
            ("1.56.0", Standing.FIXED),
            ("2.0.0", Standing.FIXED),
            ("1.54.255", Standing.OPEN),
            ("0.255.255", Standing.OPEN),
        ],
    )
    def test_firmware_is_ordered_from_left_to_right(self, version: str, expected: Standing) -> None:
        wanted = data('{firmware = "1.55.22", source = "s"}')
        new = firmware("9.0.0")
        assert standing(wanted, milan(current_firmware=firmware(version), committed_firmware=new)) is expected
        assert standing(wanted, milan(current_firmware=new, committed_firmware=firmware(version))) is expected

    @pytest.mark.parametrize("bit", PLATFORM_BITS)
    def test_a_platform_bit(self, bit: str) -> None:
        wanted = data(f'{{platform = ["{bit}"], source = "s"}}')
        only = 1 << PLATFORM_BITS[bit]
        assert standing(wanted, milan(platform_info=PlatformInfo(only))) is Standing.FIXED
        assert standing(wanted, milan(platform_info=PlatformInfo(0xFF & ~only))) is Standing.OPEN

    @pytest.mark.parametrize(
        ("launch", "current", "expected"),
        [
            (0b110, 0b110, Standing.FIXED),
            (0b111111, 0b110, Standing.FIXED),
            (0b010, 0b110, Standing.OPEN),
            (0b110, 0b100, Standing.OPEN),
            (0, 0, Standing.OPEN),
            (None, None, Standing.OPEN),
        ],
    )
    def test_mitigation_bits_at_launch_and_now(
        self, launch: int | None, current: int | None, expected: Standing
    ) -> None:
        """A report before version 5 has no such field, and so shows no mitigation."""
        wanted = data('{mitigation_bits = [1, 2], source = "s"}')
        shown = milan(launch_mitigations=launch, current_mitigations=current)
        assert standing(wanted, shown) is expected

    def test_all_figures_are_needed(self) -> None:
        wanted = data('{firmware = "1.55.22", source = "s"}, {mitigation_bits = [9], source = "s"}')
        assert standing(wanted, milan()) is Standing.OPEN


class TestCpus:
    """Levels of one stepping say nothing of another's."""

    WANTED = data(
        '{tcb = {snp = 24}, source = "s"},'
        '{tcb = {microcode = 0xdb}, cpus = ["0x19/0x01/1"], source = "s"},'
        '{tcb = {microcode = 0x44}, cpus = ["0x19/0x01/2"], source = "s"}'
    )

    @pytest.mark.parametrize(
        ("cpuid", "microcode", "expected"),
        [
            (MILAN_B1, 0xDB, Standing.FIXED),
            (MILAN_B1, 0xDA, Standing.OPEN),
            (MILAN_X, 0x44, Standing.FIXED),
            (MILAN_X, 0x43, Standing.OPEN),
            # Another stepping: the general figures are all that is known.
            (Cpuid(0x19, 0x01, 0), 0xFF, Standing.NOT_ATTESTABLE),
            # Version 2: it could be any of them.
            (None, 0xDB, Standing.FIXED),
            (None, 0xDA, Standing.OPEN),
        ],
    )
    def test_each_by_its_own(self, cpuid: Cpuid | None, microcode: int, expected: Standing) -> None:
        shown = milan(cpuid=cpuid, tcb=tcbs(level(microcode=microcode)))
        assert standing(self.WANTED, shown) is expected

    def test_general_figures_hold_for_unknown_cpus_too(self) -> None:
        shown = milan(cpuid=Cpuid(0x19, 0x01, 0), tcb=tcbs(level(snp=23)))
        assert standing(self.WANTED, shown) is Standing.OPEN


class TestNotAttestable:
    def test_without_a_figure_nothing_is_told(self) -> None:
        wanted = data("", more=', not_attestable = "no figure"')
        assert standing(wanted, milan()) is Standing.NOT_ATTESTABLE

    def test_necessary_figures_show_what_is_open_and_never_what_is_fixed(self) -> None:
        wanted = data(at_least(snp=24), more=', not_attestable = "part of it only"')
        assert standing(wanted, milan(tcb=tcbs(level(snp=23)))) is Standing.OPEN
        assert standing(wanted, milan()) is Standing.NOT_ATTESTABLE

    def test_other_products_are_not_concerned(self) -> None:
        assert standing(data(at_least(snp=255)), milan(product=Product.GENOA)) is Standing.NOT_CONCERNED

    def test_unknown_ids(self) -> None:
        assert NO_ADVISORIES.standing("AMD-SB-3015", milan()) is Standing.UNKNOWN


class TestAssessment:
    def test_up_to_date(self) -> None:
        found = assess(data(at_least(snp=24)), milan())
        assert (found.tcb_status, found.advisories) == (TcbStatus.UP_TO_DATE, ())

    def test_out_of_date_names_what_is_open(self) -> None:
        found = assess(data(at_least(snp=25)), milan())
        assert (found.tcb_status, found.advisories) == (TcbStatus.OUT_OF_DATE, ("AMD-SB-3015",))

    def test_lesson_7_equal_tcb_versions_are_not_up_to_date(self) -> None:
        shown = milan(tcb=tcbs(level(snp=3)))
        assert shown.tcb.current == shown.tcb.reported == shown.tcb.committed == shown.tcb.launch
        assert assess(data(at_least(snp=24)), shown).tcb_status is TcbStatus.OUT_OF_DATE

    def test_what_no_report_shows_does_not_count(self) -> None:
        unshown = data("", more=', not_attestable = "no figure"')
        assert assess(unshown, milan()) == assess(NO_ADVISORIES, milan())
        assert assess(unshown, milan()).tcb_status is TcbStatus.UNKNOWN

    def test_figures_for_other_silicon_alone_tell_nothing(self) -> None:
        other = data('{tcb = {microcode = 1}, cpus = ["0x19/0x01/2"], source = "s"}')
        assert assess(other, milan()).tcb_status is TcbStatus.UNKNOWN
        assert assess(other, milan(cpuid=MILAN_X)).tcb_status is TcbStatus.UP_TO_DATE

    def test_ids_are_in_order(self) -> None:
        old = Shown(
            product=Product.GENOA,
            cpuid=Cpuid(0x19, 0x11, 1),
            tcb=tcbs(level(snp=0, microcode=0)),
            current_firmware=firmware("1.51.0"),
            committed_firmware=firmware("1.51.0"),
            platform_info=PlatformInfo(0),
            launch_mitigations=None,
            current_mitigations=None,
        )
        found = assess(load_advisories(), old).advisories
        assert len(found) >= 5
        assert list(found) == sorted(found)


class TestPackagedData:
    """What is shipped. Each figure was looked up; the rest says why there is none."""

    NAMED = frozenset(
        {
            *(f"AMD-SB-{number}" for number in (3005, 3007, 3015, 3019, 3020, 3021, 3027, 3030, 3034)),
        }
    )

    def test_the_known_attacks_are_there(self) -> None:
        assert set(load_advisories().ids) >= self.NAMED

    def test_every_figure_has_a_source_that_can_be_found(self) -> None:
        figures = [
            figure
            for advisory in load_advisories()
            for concern in advisory.concerns.values()
            for figure in concern.figures
        ]
        assert len(figures) >= 30
        for figure in figures:
            assert re.search(r"https://\S+\.\S+|Linux, (?:arch|commit)", figure.source), figure.source
            if not figure.secondary:
                assert figure.source.startswith(("https://www.cve.org/CVERecord?id=", "Linux, ")), (
                    figure.source
                )

    def test_microcode_levels_name_their_cpu(self) -> None:
        """A level of one stepping would lock out, or let in, another."""
        for advisory in load_advisories():
            for concern in advisory.concerns.values():
                for figure in concern.figures:
                    assert ("microcode" in figure.tcb) == bool(figure.cpus), advisory.id

    def test_every_bulletin_is_linked(self) -> None:
        for advisory in load_advisories():
            assert advisory.url.lower().removesuffix(".html").endswith(advisory.id.lower())

    @pytest.mark.parametrize(
        ("cpuid", "microcode"),
        [(MILAN_B1, 0xDB), (MILAN_X, 0x44)],
    )
    def test_entrysign_on_milan(self, cpuid: Cpuid, microcode: int) -> None:
        advisories = load_advisories()
        fixed = milan(cpuid=cpuid, tcb=tcbs(level(snp=0x18, microcode=microcode)))
        assert advisories.standing("AMD-SB-3019", fixed) is Standing.FIXED
        for older in (level(snp=0x17, microcode=microcode), level(snp=0x18, microcode=microcode - 1)):
            shown = milan(cpuid=cpuid, tcb=tcbs(older))
            assert advisories.standing("AMD-SB-3019", shown) is Standing.OPEN

    def test_badram_needs_firmware_and_the_bit(self) -> None:
        advisories = load_advisories()
        old = {"current_firmware": firmware("1.55.21"), "committed_firmware": firmware("1.55.21")}
        assert advisories.standing("AMD-SB-3015", milan()) is Standing.FIXED
        assert advisories.standing("AMD-SB-3015", milan(**old)) is Standing.OPEN
        assert advisories.standing("AMD-SB-3015", milan(platform_info=PlatformInfo(0))) is Standing.OPEN


GOOD = """
[[advisory]]
id = "AMD-SB-3015"
title = "BadRAM"
cves = ["CVE-2024-21944"]
published = 2024-12-10
url = "https://example.com"

[[advisory.turin.figure]]
tcb = { fmc = 1 }
cpus = ["0x1a/0x02/1"]
source = "s"
"""


def test_the_good_file_is_good() -> None:
    (advisory,) = parse_advisories(GOOD)
    assert (advisory.published, advisory.cves) == ("2024-12-10", ("CVE-2024-21944",))
    (figure,) = advisory.concerns[Product.TURIN].figures
    assert (figure.tcb, figure.cpus, figure.secondary) == ({"fmc": 1}, (Cpuid(0x1A, 0x02, 1),), False)
    assert str(figure) == "fmc at least 1 on 0x1a/0x02/1"


REFUSED: dict[str, tuple[str, str, str]] = {
    "not TOML": ("[[advisory]]", "[[advisory", "not TOML"),
    "unknown member of the file": ("[[advisory]]", "version = 1\n[[advisory]]", "the file has no `version`"),
    "unknown member": ("title =", "titel =", "AMD-SB-3015 has no `titel`"),
    "not an id": ('"AMD-SB-3015"', '"SB-3015"', "`SB-3015` is not the id"),
    "not a CVE": ('"CVE-2024-21944"', '"2024-21944"', "is not a CVE id"),
    "a date-time": ("2024-12-10", "2024-12-10T00:00:00Z", "`published` is a date"),
    "unknown product": ("advisory.turin", "advisory.rome", "has no `rome`"),
    "unknown member of a figure": ("source =", "since = 1\nsource =", "has no `since`"),
    "no source": ('source = "s"', "", "either `source` or `secondary_source`"),
    "empty source": ('source = "s"', 'source = " "', "`source` is a text, and not empty"),
    "two sources": ('source = "s"', 'source = "s"\nsecondary_source = "t"', "either `source` or"),
    "no kind": ("tcb = { fmc = 1 }", "", "exactly one of"),
    "two kinds": ("tcb =", 'firmware = "1.55.22"\ntcb =', "exactly one of"),
    "unknown component": ("{ fmc = 1 }", "{ fmk = 1 }", "the TCB has no `fmk`"),
    "no component": ("{ fmc = 1 }", "{}", "names no component"),
    "level too great": ("{ fmc = 1 }", "{ fmc = 256 }", "`256` is not 0 to 255"),
    "level that is no number": ("{ fmc = 1 }", "{ fmc = true }", "`True` is not 0 to 255"),
    "firmware in two parts": ("tcb = { fmc = 1 }", 'firmware = "1.55"', "is not a firmware version"),
    "firmware in hexadecimal": ("tcb = { fmc = 1 }", 'firmware = "1.0x37.16"', "is not a firmware version"),
    "firmware part too great": ("tcb = { fmc = 1 }", 'firmware = "1.256.0"', "is not a firmware version"),
    "unknown platform bit": ("tcb = { fmc = 1 }", 'platform = ["alias"]', "no PLATFORM_INFO bit `alias`"),
    "no platform bit": ("tcb = { fmc = 1 }", "platform = []", "names no bit"),
    "mitigation bit too great": ("tcb = { fmc = 1 }", "mitigation_bits = [64]", "`64` is not 0 to 63"),
    "no mitigation bit": ("tcb = { fmc = 1 }", "mitigation_bits = []", "a list of bit numbers"),
    "CPU of another product": ("0x1a/0x02/1", "0x19/0x01/1", "is not a CPU of this product"),
    "CPU without a stepping": ("0x1a/0x02/1", "0x1a/0x02", "is not family/model/stepping"),
    "id twice": (GOOD, GOOD + GOOD, "AMD-SB-3015 is there twice"),
    "nothing about a product": (
        '[[advisory.turin.figure]]\ntcb = { fmc = 1 }\ncpus = ["0x1a/0x02/1"]\nsource = "s"',
        "[advisory.turin]",
        "neither a figure nor the reason",
    ),
    "no product": (
        '[[advisory.turin.figure]]\ntcb = { fmc = 1 }\ncpus = ["0x1a/0x02/1"]\nsource = "s"',
        "",
        "concerns no product",
    ),
    "empty": (GOOD, "", "no advisory at all"),
}


@pytest.mark.parametrize(("old", "new", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_is_not_so_is_refused(old: str, new: str, message: str) -> None:
    """Field lesson 25: what is misspelt must not be a rule that says nothing."""
    assert GOOD.count(old) == 1
    with pytest.raises(AdvisoriesInvalid, match=re.escape(message)):
        parse_advisories(GOOD.replace(old, new))


def test_fmc_is_turins_alone() -> None:
    with pytest.raises(AdvisoriesInvalid, match="the TCB has no `fmc`"):
        data(at_least(fmc=1))

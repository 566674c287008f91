"""The page of advisories is the data, and says what the code does."""

from kms.packaged import load_advisories
from kms.snp.advisories import Standing, TcbStatus
from tests.docs import advisories_page


def test_the_page_is_the_data() -> None:
    assert advisories_page.PAGE.read_text() == advisories_page.page(), "python -m tests.docs.advisories_page"


def test_every_bulletin_and_every_figure_is_on_it() -> None:
    page = advisories_page.PAGE.read_text()
    for advisory in load_advisories():
        assert f"### {advisory.id}\n" in page
        for concern in advisory.concerns.values():
            for figure in concern.figures:
                assert f"| {figure} |" in page
            assert concern.not_attestable is None or concern.not_attestable in page


def test_the_words_of_bootinfo_are_explained() -> None:
    page = advisories_page.PAGE.read_text()
    for status in TcbStatus:
        assert f"`{status}`" in page
    for standing in (Standing.OPEN, Standing.FIXED):
        assert f"**{standing}**" in page

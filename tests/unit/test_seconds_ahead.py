"""How far a server's clock is before ours, by the `Date` that it sends; whatever it sends."""

import pytest

from kms.https_client import seconds_ahead

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
NOW = 784_111_777.0  # the same moment


@pytest.mark.parametrize("difference", [0.0, 50.0, -90.0])
def test_a_date_is_compared_from_the_middle_of_its_second(difference: float) -> None:
    assert seconds_ahead(DATE, NOW - difference) == difference + 0.5


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "soon",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        f"Sun, 06 Nov {'9' * 30} 08:49:37 GMT",
        f"Sun, 06 Nov 1994 08:49:37 +{'9' * 30}",
    ],
)
def test_what_is_no_time_is_none(date: str | None) -> None:
    assert seconds_ahead(date, NOW) is None


@pytest.mark.parametrize("date", ["Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_the_first_and_the_last_moments_are_times(date: str) -> None:
    assert seconds_ahead(date, NOW) is not None

"""A slice of what `make fuzz` runs, other cases than those."""

from tests.fuzz import firmware


def test_mutations_are_measured_or_refused() -> None:
    outcome = firmware.run(range(1_000_000, 1_001_500))
    assert outcome.measured > 100
    # The mutations reach the checks behind the first ones.
    assert len(outcome.refused) >= 12
    assert outcome.slowest < firmware.BOUND * firmware.LENIENCE


def test_the_valid_ones_are_measured() -> None:
    for data in firmware.VALID:
        firmware.measure_everything(data)

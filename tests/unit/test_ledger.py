from datetime import UTC, datetime, timedelta

from kms.ledger.budget import StrangerBudget

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_strangers_write_so_much_a_minute_and_no_more() -> None:
    budget = StrangerBudget(3)
    assert [budget.take(NOW + timedelta(seconds=second)) for second in range(5)] == [True] * 3 + [False] * 2
    assert budget.left_out == 2
    assert budget.take(NOW + timedelta(seconds=60))


def test_a_clock_that_is_set_back_does_not_stop_the_record() -> None:
    budget = StrangerBudget(1)
    assert budget.take(NOW)
    assert budget.take(NOW - timedelta(hours=1))
    assert not budget.take(NOW - timedelta(hours=1))

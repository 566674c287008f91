"""A slice of what `make fuzz` runs, other cases than those."""

import pytest

from kms.snp.product import Product
from tests.fuzz import certificate_tables, certificates
from tests.fuzz.simulated import collateral

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the library's, about lengths of names


def check_tables(first: int, count: int) -> None:
    outcome = certificate_tables.run(range(first, first + count))
    assert outcome.read > count // 50
    reasons = {each.partition(":")[0] for each in outcome.refused}
    assert reasons == {"certificate-table", "certificate-unreadable", "revocation-list-unreadable"}
    # The mutations reach the checks behind the first ones.
    assert len(outcome.refused) >= 8
    assert outcome.slowest < certificate_tables.BOUND * certificate_tables.LENIENCE


def test_lesson_13_mutated_tables_are_read_or_malformed() -> None:
    check_tables(1_000_000, 4_000)


@pytest.mark.nightly
def test_lesson_13_a_hundred_thousand_mutated_tables() -> None:
    check_tables(2_000_000, 100_000)


@pytest.mark.parametrize("product", list(Product))
def test_both_readers_read_every_simulated_certificate_alike(product: Product) -> None:
    for data in collateral(product).certificates.values():
        read = certificates.ours(data)
        assert read is not None
        assert read == certificates.library(data)


def check_readers(first: int, count: int) -> None:
    outcome = certificates.run(range(first, first + count))
    assert outcome.both > count // 10
    assert outcome.refused > count // 10
    assert outcome.library_alone > 0


def test_our_reader_accepts_nothing_that_the_library_refuses() -> None:
    check_readers(1_000_000, 4_000)


@pytest.mark.nightly
def test_our_reader_accepts_nothing_that_the_library_refuses_at_length() -> None:
    check_readers(2_000_000, 100_000)

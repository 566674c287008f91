"""The garbage collector rests while something large is made, and works afterwards."""

import gc
from collections.abc import Iterator

import pytest

from kms.background import collector_at_rest


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


def test_it_rests_and_works_again() -> None:
    gc.enable()
    with collector_at_rest():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_it_works_again_after_an_error() -> None:
    gc.enable()
    with pytest.raises(RuntimeError), collector_at_rest():
        raise RuntimeError
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    with collector_at_rest():
        pass
    assert not gc.isenabled()


def test_garbage_of_that_time_is_found() -> None:
    class Node:
        itself: "Node"

    with collector_at_rest():
        node = Node()
        node.itself = node
        del node
    assert any(isinstance(each, Node) for each in gc.get_objects())
    gc.collect()
    assert not any(isinstance(each, Node) for each in gc.get_objects())

from kms.kds.turns import FairQueue


def serve(queue: FairQueue[str]) -> list[str]:
    """Serve everybody, always the first of whose turn it is."""
    order = []
    while len(queue):
        address, line = next(queue.lines())
        item = next(line)
        queue.served(address)
        queue.remove(item)
        order.append(item)
    return order


def test_turns_go_round_the_addresses() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1_000):
        queue.add("greedy", f"g{number}")
    queue.add("modest", "m0")
    queue.add("modest", "m1")
    assert serve(queue)[:5] == ["g0", "m0", "g1", "m1", "g2"]


def test_who_comes_back_comes_behind_the_others() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", "a0")
    queue.add("b", "b0")
    queue.served("a")
    queue.remove("a0")
    queue.add("a", "a1")
    assert serve(queue) == ["b0", "a1"]


def test_what_several_want_comes_with_the_first_of_their_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(50):
        queue.add("greedy", f"g{number}")
    queue.add("modest", "g49")
    assert serve(queue)[:3] == ["g0", "g49", "g1"]
    assert len(queue) == 0
    assert list(queue.lines()) == []


def test_an_item_stands_in_a_line_once_and_in_few_lines() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add(f"address {number}", "wanted")
        queue.add(f"address {number}", "wanted")
    assert len(queue) == 1
    assert len(list(queue.lines())) == 16
    queue.remove("wanted")
    queue.remove("wanted")
    assert "wanted" not in queue
    assert list(queue.lines()) == []


def test_how_many_come_before() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(10):
        queue.add("a", f"a{number}")
    for number in range(3):
        queue.add("b", f"b{number}")
    waiting = [*(f"a{number}" for number in range(10)), *(f"b{number}" for number in range(3))]
    ahead = {item: queue.ahead_of(item) for item in waiting}
    order = serve(queue)
    assert ahead == {item: order.index(item) for item in waiting}
    assert queue.ahead_of("nobody") == 0

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


def test_an_item_stands_in_a_line_once_and_leaves_all_lines_at_once() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(16):
        queue.add(f"address {number}", "wanted")
        queue.add(f"address {number}", "wanted")
    assert len(queue) == 1
    assert [list(line) for _, line in queue.lines()] == [["wanted"]] * 16
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
    ahead = {item: queue.ahead_of(item[0], item) for item in waiting}
    order = serve(queue)
    assert ahead == {item: order.index(item) for item in waiting}
    assert queue.ahead_of("nobody", "nothing") == 0


def test_an_item_leaves_a_line_but_not_its_last() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", "a0")
    queue.add("a", "wanted")
    queue.add("b", "wanted")
    queue.leave("c", "wanted")
    queue.leave("a", "nothing")
    queue.leave("a", "wanted")
    queue.leave("b", "wanted")
    assert [(address, list(line)) for address, line in queue.lines()] == [("a", ["a0"]), ("b", ["wanted"])]


def test_lines_are_compared_by_what_is_before_an_item_or_a_newcomer() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add("a", f"a{number}")
    queue.add("b", "a99")
    assert queue.before("a", "a0") == queue.before("b", "a99") == queue.before("c", "a99") == 0
    assert queue.before("a", "a3") == 3 * 2
    assert queue.before("b", "a0") == 1 * 2
    assert queue.before("a", "a64") == queue.before("a", "a99") == queue.before("a", "new") == 64 * 2

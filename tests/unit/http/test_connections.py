from dataclasses import dataclass, field

from kms.http.connections import Door


@dataclass(eq=False)
class Guest:
    network: str = "192.0.2.1"
    idle: bool = True
    dropped: list[bool] = field(default_factory=list)

    def drop(self) -> None:
        self.dropped.append(True)


def test_the_longest_idle_of_a_network_gives_way() -> None:
    door = Door(most=100, most_of_one=3)
    other = Guest("198.51.100.1")
    guests = [Guest() for _ in range(4)]
    assert door.admit(other)
    assert all(door.admit(guest) for guest in guests[:3])
    door.active(guests[0])
    assert door.admit(guests[3])
    assert [bool(guest.dropped) for guest in guests] == [False, True, False, False]
    assert not other.dropped


def test_who_is_being_served_is_never_dropped() -> None:
    door = Door(most=100, most_of_one=2)
    busy = [Guest(idle=False) for _ in range(2)]
    assert all(door.admit(guest) for guest in busy)
    assert not door.admit(Guest())
    assert door.admit(Guest("198.51.100.1"))
    assert not any(guest.dropped for guest in busy)
    door.leave(busy[0])
    assert door.admit(Guest())


def test_there_is_a_limit_for_all_together() -> None:
    door = Door(most=3, most_of_one=2)
    guests = [Guest(f"192.0.2.{number}") for number in range(4)]
    assert all(door.admit(guest) for guest in guests)
    assert [bool(guest.dropped) for guest in guests] == [True, False, False, False]


def test_leaving_twice_and_being_forgotten_is_harmless() -> None:
    door = Door(most=1, most_of_one=1)
    first, second = Guest(), Guest()
    assert door.admit(first)
    assert door.admit(second)
    assert first.dropped
    door.leave(first)
    door.active(first)
    door.leave(second)
    door.leave(second)
    assert not door.make_room()
    assert door._by_network == {}

"""The generations of the KMS identity, as the register has them while a server runs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from kms.errors import RootKeyUnavailable
from kms.identity_book import IdentityBook
from kms.keys.hand_over import follow
from kms.operator_ports import Generation, KeyRegister
from tests.roots import MemoryRoot

MADE_AT = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Register:
    """Only what the book asks of a `KeyRegister`."""

    later: list[Generation] = field(default_factory=list)

    async def generations(self) -> tuple[Generation, ...]:
        return tuple(self.later)

    def add(self) -> None:
        self.later.append(Generation(number=len(self.later) + 2, made_at=MADE_AT, made_by="test"))


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def root() -> MemoryRoot:
    return MemoryRoot()


@pytest.fixture
def book(root: MemoryRoot, register: Register) -> IdentityBook:
    return IdentityBook(root, cast("KeyRegister", register))


async def test_the_first_generation_is_there_without_a_row(book: IdentityBook) -> None:
    known = await book.known()
    assert known.public_keys == {(await book.identity(1)).public_key}
    assert known.hand_overs == ()
    assert await book.newest() is await book.identity(1)


async def test_a_generation_that_is_added_later_is_known_at_once(
    book: IdentityBook, register: Register
) -> None:
    """A server that was not restarted yet tells a guest how its identity was handed over to the new one."""
    first = await book.newest()
    await book.known()
    register.add()
    second = await book.newest()
    assert second.public_key != first.public_key
    known = await book.known()
    assert known.public_keys == {first.public_key, second.public_key}
    follow(first.public_key, known.hand_overs, second.public_key)
    register.add()
    follow(first.public_key, (await book.known()).hand_overs, (await book.newest()).public_key)


async def test_what_did_not_change_is_not_derived_again(
    book: IdentityBook, register: Register, root: MemoryRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    register.add()
    known = await book.known()

    async def away(*_: Any) -> bytes:
        raise RootKeyUnavailable("sealed", reason="root-key-sealed")

    monkeypatch.setattr(MemoryRoot, "prf", away)
    assert await book.known() is known
    register.add()
    with pytest.raises(RootKeyUnavailable):
        await book.known()

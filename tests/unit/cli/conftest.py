from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kms.administration.office import Office
from kms.settings import Settings
from tests.fake_office import FakeOffice


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOffice:
    """An office that remembers, in the place of the one on this machine's database."""
    fake = FakeOffice()

    @asynccontextmanager
    async def open_office(_: Settings) -> AsyncIterator[Office]:
        yield fake.office

    monkeypatch.setattr("kms.wiring.open_office", open_office, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake

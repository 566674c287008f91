from collections.abc import Iterator

import pytest

from kms.telemetry.exposition import remove_left_behind
from tests.servers.fixtures import vault

__all__ = ["vault"]


@pytest.fixture(scope="session", autouse=True)
def _no_metrics_are_left() -> Iterator[None]:
    """Tests kill servers, and who is killed leaves what workers share in memory."""
    yield
    remove_left_behind()

import pytest

from kms.buckets import Buckets
from kms.errors import RateLimited
from kms.guest_limits import ProvenLimits
from kms.identifiers import AppId, ChipId


@pytest.fixture
def limits() -> ProvenLimits:
    return ProvenLimits(chips=Buckets(1, 2, lambda: 0.0), apps=Buckets(1, 3, lambda: 0.0))


def test_each_chip_and_each_app_has_its_own(limits: ProvenLimits) -> None:
    for number in (1, 2):
        chip, app = ChipId(bytes([number]) * 64), AppId(bytes([number]) * 20)
        for _ in range(2):
            limits.take_chip(chip)
        with pytest.raises(RateLimited) as refused:
            limits.take_chip(chip)
        assert (refused.value.code, refused.value.reason) == ("rate-limited", "chip-rate-limited")
        assert refused.value.retry_after == 1
        for _ in range(3):
            limits.take_app(app)
        with pytest.raises(RateLimited) as refused:
            limits.take_app(app)
        assert refused.value.reason == "app-rate-limited"


def test_a_report_that_names_no_chip_is_not_counted_by_it(limits: ProvenLimits) -> None:
    for _ in range(100):
        limits.take_chip(None)


def test_what_servers_tell_each_other_has_room_for_every_id(limits: ProvenLimits) -> None:
    """A column of 64 characters, with the kind in front."""
    limits.take_chip(ChipId(b"\1" * 64))
    limits.take_app(AppId(b"\1" * 32))
    for buckets in (limits._chips, limits._apps):
        (key,) = buckets.heavy(1000, 10)
        assert len(f"c:{key}") <= 64

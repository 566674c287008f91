"""Which interface is asked: configfs-tsm where it is, the device where it is not, or what is named."""

from pathlib import Path

import pytest

from kms.guest.errors import EvidenceError
from kms.guest.hardware import EvidenceOptions, Interface, evidence_source
from kms.guest.sev_guest_device import SevGuestSource
from kms.guest.tsm import TsmSource

ASKED = bytes(64)


def _options(folder: Path, interface: Interface, *there: str) -> EvidenceOptions:
    for name in there:
        (folder / name).mkdir()
    return EvidenceOptions(tsm=folder / "tsm", device=folder / "device", interface=interface)


@pytest.mark.parametrize(
    ("interface", "there", "chosen"),
    [
        (Interface.AUTO, ("tsm", "device"), TsmSource),
        (Interface.AUTO, ("tsm",), TsmSource),
        (Interface.AUTO, ("device",), SevGuestSource),
        (Interface.TSM, ("device",), TsmSource),
        (Interface.DEVICE, ("tsm",), SevGuestSource),
    ],
)
def test_the_interface(tmp_path: Path, interface: Interface, there: tuple[str, ...], chosen: type) -> None:
    assert isinstance(evidence_source(_options(tmp_path, interface, *there)), chosen)


def test_neither_is_there(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError) as caught:
        evidence_source(_options(tmp_path, Interface.AUTO))
    assert caught.value.reason == "evidence-interface-missing"
    assert str(tmp_path / "tsm") in caught.value.detail
    assert str(tmp_path / "device") in caught.value.detail


def test_one_that_may_not_be_looked_at_is_chosen_and_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path) -> object:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", deny)
    assert isinstance(evidence_source(_options(tmp_path, Interface.AUTO)), TsmSource)


@pytest.mark.parametrize(
    ("interface", "reason"), [(Interface.TSM, "tsm-missing"), (Interface.DEVICE, "device-missing")]
)
def test_one_that_is_named_and_missing_is_not_replaced(
    tmp_path: Path, interface: Interface, reason: str
) -> None:
    source = evidence_source(_options(tmp_path, interface))
    with pytest.raises(EvidenceError) as caught:
        source.evidence(ASKED)
    assert caught.value.reason == reason


def test_the_privilege_level_and_the_paths_reach_the_source(tmp_path: Path) -> None:
    options = EvidenceOptions(device=tmp_path / "other", interface=Interface.DEVICE, privlevel=4)
    with pytest.raises(EvidenceError, match="privilege level 4"):
        evidence_source(options).evidence(ASKED)

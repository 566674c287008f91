"""Which launch is found among many images, and what is computed for it."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kms.evidence.launch import AllowedImages, Launch, LaunchFacts, LaunchFinder, MatchedLaunch, NamedApp
from kms.identifiers import AppId, ComposeHash, Measurement, OsImageHash
from kms.measurement.images import Binding, Image, LaunchHint
from kms.measurement.index import MeasurementIndex
from kms.measurement.launch import Machine, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.snp.verify import VerifiedReport
from tests.world import describe_image

APP = NamedApp(app_id=AppId(b"\xa1" * 20), compose_hash=ComposeHash(b"\xc1" * 32))
OTHER_APP = NamedApp(app_id=AppId(b"\xa2" * 20), compose_hash=ComposeHash(b"\xc2" * 32))
HINT = LaunchHint()
TEMPLATE = "console=ttyS0 app={app_id} compose={compose_hash}"


def image(name: str, cmdline: str | None = None, *enforces: Binding, **changes: Any) -> Image:
    description = describe_image(f"console=ttyS0 image={name}" if cmdline is None else cmdline)
    values: dict[str, Any] = {
        "name": name,
        "os_image_hash": os_image_hash(description.to_json()),
        "description": description,
        "enforces": frozenset(enforces),
        "vcpu_types": ("EPYC-v4",),
        "vcpus_minimum": 1,
        "vcpus_maximum": 4,
        "guest_features": (1,),
    }
    return Image(**values | changes)


class Allowed(AllowedImages):
    """A policy whose first app lists some of its images."""

    def __init__(self, *images: Image, own: tuple[Image, ...] = (), by_hash: bytes = b"") -> None:
        self._images, self._own, self._by_hash = images, own, by_hash

    @property
    def images(self) -> tuple[Image, ...]:
        return self._images

    def images_of(self, app_id: AppId) -> tuple[Image, ...]:
        return self._own if app_id == APP.app_id else ()

    def lists_image_hash(self, image_hash: OsImageHash) -> bool:
        return image_hash == self._by_hash


def shown(of: Image, cmdline: str | None = None) -> Measurement:
    machine = Machine(2, VCPU_TYPES["EPYC-v4"], 1)
    return launch_measurement(of.description, machine, cmdline=cmdline)


def find(
    finder: LaunchFinder, measurement: Measurement, hint: LaunchHint = HINT, app: NamedApp | None = APP
) -> Launch | None:
    verified = SimpleNamespace(report=SimpleNamespace(measurement=measurement))
    return finder.find(cast("VerifiedReport", verified), hint, app)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    computed: list[int] = []
    compute = MeasurementIndex.compute

    def count(self: MeasurementIndex, number: int) -> bool:
        did = compute(self, number)
        computed.extend([number] if did else [])
        return did

    monkeypatch.setattr(MeasurementIndex, "compute", count)
    return computed


def test_the_apps_own_images_are_computed_first_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = counted(monkeypatch)
    listed = [image(f"os-{number}") for number in range(5)]
    finder = LaunchFinder(Allowed(*listed, own=(listed[3],)))
    found = find(finder, shown(listed[3]))
    assert found is not None
    assert (found.image, found.vcpus) == ("os-3", 2)
    assert computed == [3]
    assert not finder.only_looks_up(HINT, None)
    other = find(finder, shown(listed[1]))
    assert other is not None
    assert other.image == "os-1"
    assert sorted(computed) == [0, 1, 2, 3, 4]
    assert finder.only_looks_up(HINT, None)
    assert find(finder, Measurement(bytes(48))) is None


def test_what_several_documents_of_one_launch_all_enforce_counts() -> None:
    both = (Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG)
    first, second = image("os-a", "same", *both), image("os-b", "same", Binding.HOST_DATA)
    finder = LaunchFinder(Allowed(second, first))
    found = find(finder, shown(first))
    assert found is not None
    assert (found.image, found.enforces) == ("os-a", frozenset({Binding.HOST_DATA}))
    hinted = find(finder, shown(first), LaunchHint(image="os-b"))
    assert hinted is not None
    assert (hinted.image, hinted.enforces) == ("os-b", frozenset({Binding.HOST_DATA}))
    # Of those that the app lists, only what they enforce.
    listed = find(LaunchFinder(Allowed(second, first, own=(first,))), shown(first))
    assert listed is not None
    assert (listed.image, listed.enforces) == ("os-a", frozenset(both))


def test_a_later_revision_computes_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = counted(monkeypatch)
    listed = [image(f"os-{number}") for number in range(4)]
    before = LaunchFinder(Allowed(*listed))
    before.fill()
    computed.clear()
    # Read anew, and equal; one is gone and one is new, one may run on fewer machines.
    fewer = image("os-0", vcpus_maximum=1)
    later = LaunchFinder(Allowed(fewer, image("os-1"), image("os-2"), image("os-9")), before)
    later.fill()
    assert len(computed) == 2
    for each in (image("os-1"), image("os-9")):
        found = find(later, shown(each))
        assert found is not None
        assert found.image == each.name
    assert find(later, shown(listed[3])) is None
    assert find(later, shown(fewer)) is None
    assert find(before, shown(listed[0])) is not None


def test_images_that_are_gone_do_not_pile_up() -> None:
    finder = LaunchFinder(Allowed())
    for number in range(20):
        finder = LaunchFinder(Allowed(image(f"os-{number}")), finder)
        finder.fill()
    assert len(finder._index) <= 4


def test_others_get_their_turn_after_each_image() -> None:
    turns: list[None] = []
    listed = [image(f"os-{number}") for number in range(3)]
    finder = LaunchFinder(Allowed(*listed), after_each=lambda: turns.append(None))
    finder.fill()
    finder.fill()
    assert len(turns) == 3


def test_command_lines_are_filled_in_for_the_named_app() -> None:
    template = image("os-t", TEMPLATE, Binding.CMDLINE)
    measurement = shown(template, template.filled_cmdline(APP.app_id, ComposeHash(b"\xc1" * 32)))
    own, others = LaunchFinder(Allowed(template, own=(template,))), LaunchFinder(Allowed(template))
    for finder in (own, others):
        found = find(finder, measurement)
        assert found is not None
        assert found.cmdline_app == (APP.app_id, APP.compose_hash)
        assert find(finder, measurement, app=OTHER_APP) is None
        assert find(finder, measurement, app=None) is None
        assert find(finder, shown(template)) is None
        assert not finder.only_looks_up(HINT, APP)
        assert finder.only_looks_up(HINT, None)


def test_nobody_proves_nothing_about_another_apps_command_line() -> None:
    """A stranger names an app and a compose hash: each would be a table for each image with placeholders."""
    template, plain = image("os-t", TEMPLATE, Binding.CMDLINE), image("os-p")
    measurement = shown(template, template.filled_cmdline(APP.app_id, ComposeHash(b"\xc1" * 32)))
    assert LaunchFinder(Allowed(template, plain, own=(template,))).may_show(measurement, HINT, APP)
    stranger = LaunchFinder(Allowed(template, plain))
    assert not stranger.may_show(measurement, HINT, APP)
    assert stranger.may_show(shown(plain), HINT, APP)
    assert find(stranger, measurement) is not None


@pytest.mark.parametrize("cmdline", ["console=ttyS0", TEMPLATE])
def test_an_image_that_a_guest_describes(cmdline: str) -> None:
    described = image("unnamed", cmdline)
    hint = LaunchHint(description=described.description.to_json())
    filled = None
    if described.has_placeholders:
        filled = described.filled_cmdline(APP.app_id, ComposeHash(b"\xc1" * 32))
    finder = LaunchFinder(Allowed(by_hash=described.os_image_hash))
    found = find(finder, shown(described, filled), hint)
    assert found is not None
    assert (found.image, found.os_image_hash) == (None, described.os_image_hash)
    assert find(finder, shown(described, filled)) is None
    assert find(LaunchFinder(Allowed()), shown(described, filled), hint) is None
    assert not finder.only_looks_up(hint, None)


def find_again(finder: LaunchFinder, measurement: Measurement, before: LaunchFacts | None) -> MatchedLaunch:
    found = finder.find_again(measurement, before, APP)
    assert found is not None
    return found


def test_a_launch_is_found_again_as_it_was_found_and_proves_nothing() -> None:
    """Only a verified report makes a `Launch`: a measurement from a record must never release a key."""
    both = (Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG)
    first, second = image("os-a", "same", *both), image("os-b", "same", Binding.HOST_DATA)
    template = image("os-t", TEMPLATE, Binding.CMDLINE)
    filled = shown(template, template.filled_cmdline(APP.app_id, ComposeHash(b"\xc1" * 32)))
    for finder in (
        LaunchFinder(Allowed(second, first, template)),
        LaunchFinder(Allowed(second, first, template, own=(first, template))),
    ):
        for measurement, hint in (
            (shown(first), HINT),
            (shown(first), LaunchHint(image="os-b")),
            (filled, HINT),
        ):
            found = find(finder, measurement, hint)
            assert found is not None
            again = find_again(finder, measurement, found)
            assert not isinstance(again, Launch)
            members = [each.name for each in fields(MatchedLaunch)]
            assert [getattr(again, name) for name in members] == [getattr(found, name) for name in members]
        assert find_again(finder, shown(first), None).image == "os-a"
        assert finder.find_again(Measurement(bytes(48)), None, APP) is None


def test_an_image_that_a_guest_described_is_found_again_by_its_hash_alone() -> None:
    described = image("unnamed")
    hint = LaunchHint(description=described.description.to_json())
    allowed = LaunchFinder(Allowed(by_hash=described.os_image_hash))
    found = find(allowed, shown(described), hint)
    assert found is not None
    again = find_again(allowed, shown(described), found)
    assert (again.image, again.os_image_hash, again.enforces) == (None, found.os_image_hash, found.enforces)
    assert (again.vcpus, again.vcpu_type, again.guest_features) == (2, found.vcpu_type, 1)
    assert LaunchFinder(Allowed()).find_again(shown(described), found, APP) is None
    assert allowed.find_again(shown(described), None, APP) is None
    # Once a document describes it, the measurement decides again, and what the document says it enforces.
    documented = LaunchFinder(Allowed(image("os-1", described.description.cmdline, Binding.HOST_DATA)))
    assert find_again(documented, shown(described), found).image == "os-1"
    # A guest that was found by a document was never seen describing its launch.
    assert allowed.find_again(shown(described), find(documented, shown(described)), APP) is None

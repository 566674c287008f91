"""The images of the policy in force, page by page, and every measurement that one may show."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest

from kms.administration.images import ImageAdministration
from kms.errors import MalformedRequest, NotFound
from kms.evidence.launch import Launch, NamedApp
from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.images import LaunchHint, MeasurementTable
from kms.operators import Role
from kms.policy.compiled import Policy
from kms.snp.verify import VerifiedReport
from tests.unit.operator_samples import MemoryActions, actor, journal
from tests.unit.policy.samples import documents, policy_of
from tests.world import describe_image, image_document

T = TypeVar("T")

APP = documents()["app"]
VIEWER = actor(Role.VIEWER)
TEMPLATE = "app={app_id} compose={compose_hash}"
COMPOSES = ["0a" * 32, "0b" * 32]


class InForce:
    """Implements `kms.ports.Policies` and `ActivePolicy` for one policy, which is only looked at."""

    def __init__(self, policy: Policy | None) -> None:
        self._policy = policy

    @property
    def policy(self) -> Policy:
        assert self._policy is not None
        return self._policy

    async def active(self) -> "InForce | None":
        return None if self._policy is None else self

    async def refresh(self) -> None:
        raise NotImplementedError

    async def find_launch(
        self, verified: VerifiedReport, hint: LaunchHint, app: NamedApp | None
    ) -> Launch | None:
        raise NotImplementedError

    async def may_show(self, claimed: Measurement, hint: LaunchHint, app: NamedApp | None) -> bool:
        raise NotImplementedError


async def at_once(work: Callable[[], T], /) -> T:
    return work()


def office(policy: Policy | None, actions: MemoryActions | None = None) -> Any:
    """Give an `ImageAdministration`, whose answers are JSON."""
    return ImageAdministration(
        policies=InForce(policy), journal=journal(actions or MemoryActions()), beside=at_once
    )


def with_images(*images: dict[str, Any], apps: tuple[dict[str, Any], ...] = (), **more: Any) -> Policy:
    base = documents()
    base |= {kind: {**base[kind], **changes} for kind, changes in more.items()}
    app = {**base.pop("app"), "chips": "any"}
    return policy_of([app, *apps, *images, *base.values()])


def template(name: str = "os-t") -> dict[str, Any]:
    return image_document(name, describe_image(TEMPLATE), enforces=["cmdline"], vcpus={"min": 1, "max": 3})


def app(number: int, **changes: Any) -> dict[str, Any]:
    name, own = f"app-{number}", f"{number:02x}" * 20
    return {**APP, "name": name, "id": own, "chips": "any", "images": ["os-t"], **changes}


async def pages(ask: Callable[..., Awaitable[dict[str, Any]]], member: str) -> list[Any]:
    """Read all pages, one after the other."""
    found: list[Any] = []
    after: str | None = None
    while True:
        page = await ask(after=after)
        found += page[member]
        after = page["next"]
        if after is None:
            return found


async def test_images_are_listed_by_name_and_page() -> None:
    images = [image_document(f"os-{n}", describe_image(seed=b"%d" % n)) for n in (3, 1, 2)]
    work = office(with_images(*images))
    whole = await work.images(VIEWER, after=None, limit=50)
    assert [each["name"] for each in whole["images"]] == ["demo-os-1", "os-1", "os-2", "os-3"]
    assert whole["next"] is None
    for limit in (1, 2, 3, 4):
        found = await pages(partial(work.images, VIEWER, limit=limit), "images")
        assert found == whole["images"]


async def test_what_is_said_of_an_image() -> None:
    hashed = image_document("os-1", describe_image())["os_image_hash"]
    images = (
        image_document("os-1", describe_image(), expires_at="2027-01-31T00:00:00Z"),
        image_document("os-2", describe_image(seed=b"2")),
    )
    apps = (app(1, images=["os-1"]), app(2, images=[hashed]), app(3, images=["os-1", hashed]))
    work = office(with_images(*images, apps=apps, revoked={"images": ["os-2"]}))
    listed = (await work.images(VIEWER, after="demo-os-1", limit=50))["images"]
    assert listed == [
        {
            "name": "os-1",
            "os_image_hash": hashed,
            "vmm": "qemu",
            "enforces": ["dstack-mr-config", "host-data"],
            "vcpu_types": ["EPYC-v4", "EPYC-Milan"],
            "vcpus": {"min": 1, "max": 8},
            "guest_features": ["0x1"],
            "apps": ["app-1", "app-2", "app-3"],
            "revoked": False,
            "expires_at": "2027-01-31T00:00:00.000000Z",
        },
        {**listed[0], "name": "os-2", "os_image_hash": listed[1]["os_image_hash"]}
        | {"apps": [], "revoked": True, "expires_at": None},
    ]


async def test_an_image_that_measures_as_a_revoked_one_is_revoked() -> None:
    same = describe_image()
    images = (image_document("os-1", same), image_document("os-2", same, vcpus={"min": 1, "max": 2}))
    listed = (
        await office(with_images(*images, revoked={"images": ["os-2"]})).images(
            VIEWER, after="demo-os-1", limit=50
        )
    )["images"]
    assert [each["revoked"] for each in listed] == [True, True]


async def test_every_measurement_is_listed_once_in_order() -> None:
    written = image_document("os-1", describe_image())
    policy = with_images(written)
    work = office(policy)
    image = policy.image("os-1")
    assert image is not None
    expected = [
        {
            "measurement": measurement.hex(),
            "vcpus": named.machine.vcpus,
            "vcpu_type": named.vcpu_type,
            "guest_features": hex(named.machine.guest_features),
        }
        for measurement, named in MeasurementTable(image)
    ]
    assert len(expected) == 16
    for name in ("os-1", written["os_image_hash"]):
        whole = await work.measurements(VIEWER, name, after=None, limit=500)
        assert whole == {
            "image": "os-1",
            "os_image_hash": written["os_image_hash"],
            "measurements": expected,
            "next": None,
        }
    for limit in (1, 5, 15, 16):
        found = await pages(
            partial(work.measurements, VIEWER, "os-1", limit=limit),
            "measurements",
        )
        assert found == expected


async def test_a_command_line_that_names_the_app_is_listed_for_each_app_and_compose() -> None:
    apps = (app(2, compose=COMPOSES[:1]), app(1, compose=COMPOSES), app(3, images=["demo-os-1"]))
    policy = with_images(template(), apps=apps)
    work = office(policy)
    image = policy.image("os-t")
    assert image is not None
    expected = []
    for number, compose in ((1, COMPOSES[0]), (1, COMPOSES[1]), (2, COMPOSES[0])):
        own = AppId.from_hex(f"{number:02x}" * 20)
        cmdline = image.filled_cmdline(own, ComposeHash.from_hex(compose))
        expected += [
            (f"app-{number}", compose, measurement.hex(), named.machine.vcpus, named.vcpu_type)
            for measurement, named in MeasurementTable(image, cmdline)
        ]
    for limit in (1, 4, 7, 500):
        found = await pages(
            partial(work.measurements, VIEWER, "os-t", limit=limit),
            "measurements",
        )
        rows = [
            tuple(row[name] for name in ("app", "compose_hash", "measurement", "vcpus", "vcpu_type"))
            for row in found
        ]
        assert rows == expected
    assert "note" not in await work.measurements(VIEWER, "os-t", after=None, limit=1)


async def test_what_cannot_be_listed_is_said() -> None:
    apps = (app(1, compose="any"), app(2, compose=COMPOSES[:1]))
    listing = await office(with_images(template(), apps=apps)).measurements(
        VIEWER, "os-t", after=None, limit=50
    )
    assert {row["app"] for row in listing["measurements"]} == {"app-2"}
    assert listing["note"] == "the command line names the app's compose, and these allow any: app-1"
    nobody = await office(with_images(template())).measurements(VIEWER, "os-t", after=None, limit=50)
    assert nobody["measurements"] == []
    assert (
        nobody["note"] == "the command line names the app, and no app lists this image: nothing can show it"
    )


@pytest.mark.parametrize("after", ["", "-1", "1.0", "x", "²", "9" * 13, " 1"])
async def test_a_cursor_that_was_never_given(after: str) -> None:
    with pytest.raises(MalformedRequest):
        await office(with_images()).measurements(VIEWER, "demo-os-1", after=after, limit=1)


async def test_beyond_the_end_there_is_nothing() -> None:
    listing = await office(with_images()).measurements(VIEWER, "demo-os-1", after="9" * 12, limit=1)
    assert (listing["measurements"], listing["next"]) == ([], None)


async def test_no_such_image() -> None:
    for policy in (with_images(), None):
        with pytest.raises(NotFound):
            await office(policy).measurements(VIEWER, "os-9", after=None, limit=1)


async def test_without_a_policy_there_are_no_images_and_reading_is_not_recorded() -> None:
    actions = MemoryActions()
    assert await office(None, actions).images(VIEWER, after=None, limit=1) == {"images": [], "next": None}
    await office(with_images(), actions).measurements(VIEWER, "demo-os-1", after=None, limit=1)
    assert actions.recorded == []

"""The images of the policy in force, and every measurement that one may show."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from kms.administration.beside import Beside
from kms.administration.office import Json
from kms.administration.permission import Journal
from kms.errors import MalformedRequest, NotFound
from kms.identifiers import ComposeHash
from kms.ledger.entries import timestamp
from kms.measurement.images import Image, MeasurementTable
from kms.measurement.listing import image_json, measurement_rows
from kms.operators import Actor, Permission
from kms.policy.compiled import Policy
from kms.policy.documents import AppDocument
from kms.ports import Policies
from kms.strict_json import JsonValue

_READ: Final = "image-read"
_LONGEST_CURSOR: Final = 12  # digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAdministration:
    """Implements `kms.administration.office.ImageWork`."""

    policies: Policies
    journal: Journal
    beside: Beside

    async def images(self, actor: Actor, *, after: str | None, limit: int) -> Json:
        """Give the image documents, by name; see `ImageWork.images`."""
        policy = await self._policy(actor)
        if policy is None:
            return {"images": [], "next": None}
        named = {image.name or "": image for image in policy.images}
        names = [name for name in sorted(named) if after is None or name > after][: limit + 1]
        apps = _apps_by_image(policy)
        shown: list[JsonValue] = [_image(policy, named[name], apps) for name in names[:limit]]
        return {"images": shown, "next": names[limit - 1] if len(names) > limit else None}

    async def measurements(self, actor: Actor, name: str, *, after: str | None, limit: int) -> Json:
        """Give every measurement that an image may show; see `ImageWork.measurements`.

        Of an image whose command line names the app, those of each app that lists it, with each compose hash
        that the app lists; ``note`` says for which app that cannot be told.

        Raises:
            NotFound: the policy in force documents no such image.
            MalformedRequest: `after` is not a cursor.

        """
        policy = await self._policy(actor)
        image = None if policy is None else policy.image(name)
        if policy is None or image is None:
            raise NotFound("the policy in force documents no such image", details={"image": name})
        start = _start(after)
        apps = _apps_listing(policy, image) if image.has_placeholders else ()
        rows = await self.beside(lambda: list(islice(_rows(image, apps, start), limit + 1)))
        shown: list[JsonValue] = [*rows[:limit]]
        listing: Json = {
            "image": image.name,
            "os_image_hash": image.os_image_hash.hex(),
            "measurements": shown,
            "next": str(start + limit) if len(rows) > limit else None,
        }
        note = _note(apps) if image.has_placeholders else None
        return listing if note is None else {**listing, "note": note}

    async def _policy(self, actor: Actor) -> Policy | None:
        await self.journal.require(actor, Permission.READ_POLICY, _READ)
        active = await self.policies.active()
        return None if active is None else active.policy


def _image(policy: Policy, image: Image, apps: dict[str, list[str]]) -> Json:
    documents = policy.image_documents(image.os_image_hash)
    expiry = next(each.expires_at for each in documents if each.name == image.name)
    revoked = policy.revocations
    by = {*apps.get(image.name or "", ()), *apps.get(image.os_image_hash.hex(), ())}
    return {
        **image_json(image),
        "vmm": image.description.vmm.value,
        "apps": [*sorted(by)],
        "revoked": image.name in revoked.image_names or image.os_image_hash in revoked.image_hashes,
        "expires_at": None if expiry is None else timestamp(expiry),
    }


def _apps_by_image(policy: Policy) -> dict[str, list[str]]:
    """Give the names of the apps that list an image, by its name or hash as they list it."""
    apps: dict[str, list[str]] = defaultdict(list)
    for app in policy.apps:
        for name in app.images:
            apps[name].append(app.name)
        for image_hash in app.image_hashes:
            apps[image_hash.hex()].append(app.name)
    return apps


def _apps_listing(policy: Policy, image: Image) -> tuple[AppDocument, ...]:
    listing = (
        app for app in policy.apps if image.name in app.images or image.os_image_hash in app.image_hashes
    )
    return tuple(sorted(listing, key=lambda app: app.name))


def _rows(image: Image, apps: tuple[AppDocument, ...], start: int) -> Iterator[Json]:
    """Give the measurements from one on; of the command lines before it none is measured."""
    fillings: list[tuple[AppDocument, ComposeHash] | None] = [None]
    if image.has_placeholders:
        fillings = [(app, compose) for app in apps for compose in sorted(app.compose.items)]
    first, skipped = divmod(start, len(MeasurementTable(image)))
    return islice(chain.from_iterable(_filled(image, each) for each in fillings[first:]), skipped, None)


def _filled(image: Image, filling: tuple[AppDocument, ComposeHash] | None) -> Iterator[Json]:
    if filling is None:
        yield from measurement_rows(image, None)
        return
    app, compose = filling
    for row in measurement_rows(image, (app.id, compose)):
        yield {"app": app.name, "compose_hash": compose.hex(), **row}


def _note(apps: tuple[AppDocument, ...]) -> str | None:
    if not apps:
        return "the command line names the app, and no app lists this image: nothing can show it"
    unlisted = [app.name for app in apps if app.compose.anything]
    if not unlisted:
        return None
    return f"the command line names the app's compose, and these allow any: {', '.join(unlisted)}"


def _start(after: str | None) -> int:
    if after is None:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) <= _LONGEST_CURSOR):
        raise MalformedRequest("`after` is not what `next` gave")
    return int(after)

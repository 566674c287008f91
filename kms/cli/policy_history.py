"""What is and was in force, and which revision the beginning of a name means."""

from typing import TYPE_CHECKING, Final

from kms.cli.output import WrongUse
from kms.cli.reading import is_revision
from kms.cli.saying import fields, optional_text
from kms.errors import NotFound
from kms.strict_json import JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Files, Office
    from kms.operators import Actor

_PAGE: Final = 500  # changes in one answer, at most
_LOOKED_THROUGH: Final = 500  # changes, for what the beginning of a name means


async def fetch_changes(office: "Office", actor: "Actor", limit: int) -> list[JsonValue]:
    """Fetch so many changes of what was in force, newest first."""
    found: list[JsonValue] = []
    before: int | None = None
    while len(found) < limit:
        page = fields(
            await office.policies.history(actor, before=before, limit=min(_PAGE, limit - len(found))),
            "history",
        )
        found += page.array("changes", at_most=_PAGE)
        following = page.take("next")
        if not isinstance(following, int):
            break
        before = following
    return found


async def whole_name(office: "Office", actor: "Actor", name: str) -> str:
    """Give the whole name of the revision whose name begins so, of those that were lately in force.

    Whoever answers chooses which that is. So nothing is signed by it.

    Raises:
        NotFound: there is none.
        WrongUse: there are several.

    """
    if is_revision(name):
        return name
    found = set[str]()
    for change in await fetch_changes(office, actor, _LOOKED_THROUGH):
        read = fields(change, "change")
        found.update((read.text("revision"), optional_text(read, "previous") or ""))
    begun = sorted(each for each in found if each.startswith(name) and is_revision(each))
    if not begun:
        raise NotFound(
            f"none of the last {_LOOKED_THROUGH} changes is of a revision that begins with {name}:"
            " name it whole, or see `kms policy history`"
        )
    if len(begun) > 1:
        raise WrongUse(f"{name} is the beginning of {len(begun)} revisions: {', '.join(begun)}")
    return begun[0]


async def whole_candidate(office: "Office", actor: "Actor", new: "str | Files") -> "str | Files":
    """Give a policy as an office takes it; raises as `whole_name`."""
    return await whole_name(office, actor, new) if isinstance(new, str) else new


async def revision_in_force(office: "Office", actor: "Actor") -> str:
    """Give the name of what is in force.

    Raises:
        NotFound: nothing is.

    """
    status = fields(await office.policies.status(actor), "status")
    active = status.take("active")
    if active is None:
        raise NotFound("no policy is in force: see `kms policy status`")
    return fields(active, "active").text("revision")

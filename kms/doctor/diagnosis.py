"""Looking at one part of a server, whatever is wrong with it."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from kms.errors import KmsError
from kms.findings import Finding, failed, refused, unlookable

Diagnoses: TypeAlias = list[Finding]


async def examined(
    name: str, look: Callable[[], Awaitable[Iterable[Finding]]], *, remedy: str = ""
) -> Diagnoses:
    """Look, whatever happens: a doctor who falls over the first broken part never sees the second.

    `remedy` is what to do about what was refused without one. A server does not start on what nobody can
    look at, so that is a failure too.
    """
    try:
        return [*await look()]
    except KmsError as error:
        return [refused(name, error, remedy)]
    except Exception as error:  # noqa: BLE001 -- what is broken may break in any way
        return [failed(name, unlookable(name, error).detail, remedy)]

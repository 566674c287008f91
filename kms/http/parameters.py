"""Parameters of routes, in paths and queries: one declaration for what is read and what is described."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Generic, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

from kms.errors import MalformedRequest

T = TypeVar("T")


# Compared by identity: it is the key under which its value is found.
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parameter(Generic[T]):
    """A parameter of the path or the query: how it is read, and how it is described.

    `read` raises ValueError with words that do not repeat the value. Without a `default` it must be there.
    """

    name: str
    read: Callable[[str], T]
    description: str
    schema: Mapping[str, object]
    example: object
    default: T | EllipsisType = ...

    def describe(self, place: str) -> dict[str, object]:
        """Give its OpenAPI parameter object."""
        return {
            "name": self.name,
            "in": place,
            "required": self.default is ...,
            "description": self.description,
            "schema": dict(self.schema),
            "example": self.example,
        }


def read_path(parameters: Sequence[Parameter[Any]], request: Request) -> dict[Parameter[Any], object]:
    """Read the parameters of a path. A path that can name nothing is not there: 404."""
    try:
        return {each: each.read(request.path_params[each.name]) for each in parameters}
    except ValueError:
        raise HTTPException(404) from None


def read_query(parameters: Sequence[Parameter[Any]], request: Request) -> dict[Parameter[Any], object]:
    """Read a query.

    Raises:
        MalformedRequest: a parameter that is unknown, missing, given twice or not what it must be.

    """
    given: dict[str, str] = {}
    for name, text in request.query_params.multi_items():
        if name not in {each.name for each in parameters}:
            known = ", ".join(f"`{each.name}`" for each in parameters)
            # Only a plain word is named: nothing else comes back to whoever sent it.
            named = f" `{name}`" if name.isidentifier() and name.isascii() and len(name) <= 64 else ""
            raise MalformedRequest(f"query: unknown parameter{named}; known: {known or 'none'}")
        if name in given:
            raise MalformedRequest(f"query: `{name}` is given twice")
        given[name] = text
    values: dict[Parameter[Any], object] = {}
    for each in parameters:
        if each.name in given:
            try:
                values[each] = each.read(given[each.name])
            except ValueError as error:
                raise MalformedRequest(f"query: `{each.name}` {error}") from None
        elif each.default is ...:
            raise MalformedRequest(f"query: `{each.name}` is missing")
        else:
            values[each] = each.default
    return values

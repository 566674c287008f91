"""A mirror: the store over the key distribution service's own paths, for other verifiers.

It gives what is stored and never asks anybody. What it gives was verified when it was stored, and whoever
takes it verifies again: certificates and lists carry their own signatures, so plain HTTP loses nothing but
privacy (who asks for which chip). Paths: VCEK specification 57230, "KDS interface" (`kms.snp.kds_paths`).
"""

from typing import Final, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kms.errors import KmsError, Unavailable
from kms.identifiers import ChipId
from kms.kds.answers import (
    CERTIFICATE_TYPE,
    CHAIN_TYPE,
    LIST_TYPE,
    chain_of,
    chain_pem,
    list_of,
    vcek_at,
)
from kms.ports import StoredCertificate, StoredRevocationList
from kms.snp.kds_paths import ChainOf, RevocationListOf, VcekOf, Wanted, parse_path
from kms.snp.product import Product

_LONGEST_QUERY: Final = 256  # bytes; five parameters need some sixty
# Seconds. Certificates stay as they are, and are signed anew at times; a new list must get about.
_CERTIFICATE_AGE: Final = 24 * 3600
_LIST_AGE: Final = 3600
_RETRY_AFTER: Final = 5
# What is missing may come with the next import.
_NOT_KEPT: Final = {"Cache-Control": "no-store"}


class ReadOnlyStore(Protocol):
    """What the mirror reads of a `kms.ports.CollateralStore`."""

    async def authorities(self) -> tuple[StoredCertificate, ...]:
        """As `kms.ports.CollateralStore`."""
        ...

    async def revocation_lists(self) -> tuple[StoredRevocationList, ...]:
        """As `kms.ports.CollateralStore`."""
        ...

    async def vceks(self, product: Product | None, chip_id: ChipId) -> tuple[StoredCertificate, ...]:
        """As `kms.ports.CollateralStore`."""
        ...


def create_mirror(store: ReadOnlyStore) -> Starlette:
    """Build the application. It answers GET and HEAD, and 404 for whatever is not stored."""

    async def answer(request: Request) -> Response:
        if _has_body(request):
            # It would be read by nobody, and hold up whoever comes next on the connection.
            return Response(status_code=413, headers={"Connection": "close", **_NOT_KEPT})
        found = await _find(store, _wanted(request))
        if found is None:
            return Response(status_code=404, headers=_NOT_KEPT)
        body, media_type, age = found
        headers = {
            "Cache-Control": f"public, max-age={age}",
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
        }
        return Response(b"" if request.method == "HEAD" else body, media_type=media_type, headers=headers)

    async def refuse(_: Request, error: Exception) -> Response:
        # Without the framework's words: nobody here reads prose.
        if isinstance(error, HTTPException):
            headers = {**(error.headers or {}), **_NOT_KEPT}
            return Response(status_code=error.status_code, headers=headers)
        after = error.retry_after if isinstance(error, Unavailable) else _RETRY_AFTER
        return Response(status_code=503, headers={"Retry-After": str(after), **_NOT_KEPT})

    route = Route("/{path:path}", answer, methods=["GET", "HEAD"])
    return Starlette(routes=[route], exception_handlers={HTTPException: refuse, KmsError: refuse})


def _has_body(request: Request) -> bool:
    return (
        request.headers.get("content-length", "0") != "0"
        or request.headers.get("transfer-encoding") is not None
    )


def _wanted(request: Request) -> Wanted | None:
    if len(request.scope["query_string"]) > _LONGEST_QUERY:
        return None
    pairs = request.query_params.multi_items()
    query = dict(pairs)
    # A parameter given twice is two questions.
    return parse_path(request.scope["path"], query) if len(query) == len(pairs) else None


async def _find(store: ReadOnlyStore, wanted: Wanted | None) -> tuple[bytes, str, int] | None:
    match wanted:
        case VcekOf(product=product, chip_id=chip_id, tcb=tcb):
            leaf = vcek_at(tcb, await store.vceks(product, chip_id))
            return None if leaf is None else (leaf.der, CERTIFICATE_TYPE, _CERTIFICATE_AGE)
        case ChainOf(line=line):
            chain = chain_of(line, await store.authorities())
            return None if chain is None else (chain_pem(chain), CHAIN_TYPE, _CERTIFICATE_AGE)
        case RevocationListOf(line=line):
            stored = list_of(line, await store.revocation_lists())
            return None if stored is None else (stored.list.der, LIST_TYPE, _LIST_AGE)
        case _:
            return None

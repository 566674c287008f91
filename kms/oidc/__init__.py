"""Operators who come with a token of an OpenID Connect provider: its keys, and what its tokens must say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kms.oidc.fetching import ProviderHttp
from kms.oidc.issuer import Issuer
from kms.oidc.keys import IssuerKeys, OidcUnavailable
from kms.oidc.tokens import OidcTokens

__all__ = ["Issuer", "OidcTokens", "OidcUnavailable", "open_oidc"]


@asynccontextmanager
async def open_oidc(issuer: Issuer) -> AsyncIterator[OidcTokens]:
    """Open the verification of a provider's tokens; nothing is asked of it until the first one comes."""
    http = ProviderHttp()
    try:
        yield OidcTokens(issuer, IssuerKeys(issuer, http))
    finally:
        await http.close()

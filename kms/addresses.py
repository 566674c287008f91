"""Client addresses: whose limits and shares one counts against."""

import ipaddress
from functools import lru_cache
from typing import Final

_IPV6_PREFIX: Final = 64  # what one customer has all of


@lru_cache(maxsize=4096)  # each request asks several times, and parsing is slow
def network_of(address: str) -> str:
    """Give what one customer has: an IPv4 address, or an IPv6 /64. What is no address stands for itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))

"""Which addresses a provider may have: none within this network, unless an administrator has named its host."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_TRANSLATED: Final = tuple(
    ipaddress.ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
"""IPv4 addresses in IPv6 clothes, which Python calls global: NAT64, 6to4, Teredo."""

_NUMBER: Final = re.compile(r"(?:0[xX][0-9A-Fa-f]*|\d+)")


def host_problem(host: str) -> str | None:
    """Return why a host may not be asked, or None for a name that has to be looked up first.

    A name whose last part is a number is an address to many resolvers: 2130706433 and 0x7f.1 are 127.0.0.1.
    """
    try:
        return forbidden(host)
    except ValueError:
        name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return "this machine"
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return "an address in another form; write it as a.b.c.d"
    return None


def forbidden(address: str) -> str | None:
    """Return why an address may not be connected to, or None. Raises ValueError for what is no address.

    Refused: loopback, private, link-local (cloud metadata), shared (100.64/10), multicast, reserved, and their mapped forms.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return forbidden(str(found.ipv4_mapped))
        if any(found in network for network in _TRANSLATED):
            return "a translated address"
    if found.is_loopback:
        return "a loopback address"
    if found.is_link_local:
        return "a link-local address"
    if found.is_multicast or not found.is_global:
        return "an address that is not public"
    return None

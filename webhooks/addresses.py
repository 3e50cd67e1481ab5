"""Which addresses a webhook may go to: public ones, and those of networks that the operator named.

A URL comes from a request, so it must not lead this machine to what only this machine can reach (SSRF).
However a host is spelled, what counts are the addresses that it resolves to; all of them must pass, and
the connection is then made to one of exactly those.
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpx

from db.errors import InvalidInput

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Of `socket.getaddrinfo`'s shape.
Lookup = Callable[[str, int], Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]]

LONGEST_URL = 2048
SCHEMES = {"http": 80, "https": 443}

# IANA's registries of special-purpose addresses. Listed here, since the standard library's `is_global`
# differs between the versions of Python that we run on.
NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's metadata, at an address that looks public
            "169.254.0.0/16",  # link-local, and with it the metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "2001::/23",  # Teredo and other protocols of the IETF
            "2001:db8::/32",
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
# All other IPv6 is local, multicast, reserved, or an IPv4 address in disguise.
GLOBAL_UNICAST = IPv6Network("2000::/3")
# IPv6 networks that lead to the IPv4 address inside, and how many bits lie to the right of it.
WITH_IPV4_INSIDE = {
    IPv6Network("::/96"): 0,  # IPv4-compatible
    IPv6Network("::ffff:0:0/96"): 0,  # IPv4-mapped
    IPv6Network("::ffff:0:0:0/96"): 0,  # IPv4-translated
    IPv6Network("64:ff9b::/96"): 0,  # NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}


def check_url(text: str, *, param: str = "url") -> httpx.URL:
    """Read a webhook's URL.

    Raises:
        InvalidInput: it is no http or https URL, or holds a password.
    """
    if len(text) > LONGEST_URL:
        raise InvalidInput(f"{param} must have at most {LONGEST_URL} characters.", param=param)
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidInput(f"{param} is not a URL: {error}", param=param) from None
    if url.scheme not in SCHEMES or not host:
        raise InvalidInput(f"{param} must begin with https:// or http://, and name a host.", param=param)
    if url.userinfo:
        raise InvalidInput(
            f"{param} must not hold a user name or a password: deliveries are signed instead.", param=param
        )
    if url.port == 0:
        raise InvalidInput(f"{param} must not name port 0.", param=param)
    return url


def port_of(url: httpx.URL) -> int:
    return url.port or SCHEMES[url.scheme]


def look_up(host: str, port: int) -> Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def permitted_addresses(
    url: httpx.URL, allowed: Sequence[Network], *, param: str = "url", lookup: Lookup = look_up
) -> list[str]:
    """Resolve a URL's host; each address that it has, in the order to try them.

    Args:
        allowed: networks that may be reached although they are not public.
    Raises:
        InvalidInput: the host has no address, or one that may not be reached. Which one is not said: a
            request must not learn what this machine's names resolve to.
    """
    host = url.raw_host.decode("ascii")
    try:
        rows = lookup(host, port_of(url))
    except (OSError, UnicodeError):
        rows = []
    addresses = list(dict.fromkeys(str(row[4][0]).partition("%")[0] for row in rows))
    if not addresses:
        raise InvalidInput(
            f"{param}: the host {host!r} cannot be resolved. Check its spelling, and this server's DNS.",
            param=param,
        )
    if not all(is_permitted(ip_address(address), allowed) for address in addresses):
        raise InvalidInput(
            f"{param}: the host {host!r} has an address that is not public. Name a public one, or let the "
            "operator add its network to LATHE_WEBHOOK_ALLOWED_NETWORKS.",
            param=param,
            code="address_not_permitted",
        )
    return addresses


def is_permitted(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether a webhook may go to an address."""
    inside = _ipv4_inside(address)
    meant = address if inside is None else inside
    return is_public(address) or any(meant in network or address in network for network in allowed)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet. An IPv4 address in IPv6 is judged as itself."""
    inside = _ipv4_inside(address)
    if inside is not None:
        return is_public(inside)
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return not any(address in network for network in NOT_PUBLIC)


def _ipv4_inside(address: Address) -> IPv4Address | None:
    for network, bits in WITH_IPV4_INSIDE.items():
        if address in network:
            return IPv4Address((int(address) >> bits) & 0xFFFF_FFFF)
    return None

"""Where a request comes from: the peer, or what trusted proxies say of it (rule R20)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from spotledger.errors import SettingInvalid

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Stands for a peer without an address, as one on a Unix socket.
NO_ADDRESS = ipaddress.IPv4Address(0)
#: Hops of X-Forwarded-For that are looked at, from the right.
FORWARDED_HOPS_MAX = 20

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", re.ASCII)


def parse_address(text: str) -> IpAddress | None:
    """Return the address *text* stands for (a port behind it is ignored), an IPv4-mapped one as IPv4; or None."""
    match = _WITH_PORT.fullmatch(text)
    host = text if match is None else match[1] or match[2]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            # The zone says which of our own interfaces; addresses are compared without it.
            return ipaddress.IPv6Address(int(address))
    return address


def parse_network(text: str) -> IpNetwork:
    """
    Return the network that *text* (an address or CIDR, without host bits) stands for, an IPv4-mapped one as IPv4.

    Raises:
        ValueError: It stands for none.
    """
    if not isinstance(text, str):  # the standard library would take 7 for 0.0.0.7
        raise ValueError("not a text")  # noqa: TRY004 - one kind of error for the caller
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED.prefixlen:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


def parse_networks(texts: Iterable[str]) -> tuple[IpNetwork, ...]:
    """Return the networks that *texts* (addresses or CIDR) stand for; raise SettingInvalid where one does not."""
    networks = []
    for text in texts:
        try:
            networks.append(parse_network(text.strip()))
        except ValueError as error:
            raise SettingInvalid(
                f"trusted_proxies: {text!r} is neither an address nor a network such as 10.1.0.0/16."
            ) from error
    return tuple(networks)


class AddressResolver:
    """Find the address that counts for a request."""

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = parse_networks(trusted_proxies)

    def is_trusted(self, address: IpAddress) -> bool:
        """Tell whether *address* is a trusted proxy."""
        return any(address in network for network in self._trusted)

    def resolve(self, peer: str, forwarded_for: Callable[[], Iterable[str]]) -> IpAddress:
        """
        Return the address that a request came from.

        Args:
            peer: ``host:port`` of the connection.
            forwarded_for: Gives the values of all X-Forwarded-For headers; asked only for trusted peers.

        Returns:
            The peer, unless it is a trusted proxy: then the right-most forwarded address that is none.
            What stands left of that was said by strangers. Where the list can't be read any further, the
            last proxy counts.
        """
        address = parse_address(peer) or NO_ADDRESS
        if not self._trusted or not self.is_trusted(address):
            return address
        hops = [hop.strip() for value in forwarded_for() for hop in value.split(",")]
        for hop in reversed(hops[-FORWARDED_HOPS_MAX:]):
            forwarded = parse_address(hop)
            if forwarded is None:
                break
            address = forwarded
            if not self.is_trusted(address):
                break
        return address

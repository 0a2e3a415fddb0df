"""The address that a request comes from: the peer's, or the one that trusted proxies forward (rule R20)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from spotledger.errors import SettingInvalid

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The address of a peer that has none, such as one on a Unix socket.
NO_ADDRESS = ipaddress.IPv4Address(0)
#: How many hops of X-Forwarded-For are read, from the right.
FORWARDED_HOPS_MAX = 20

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
#: The bits of an IPv6 address that its user chooses.
_HOST_BITS = 64
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", re.ASCII)


def parse_address(text: str) -> IpAddress | None:
    """Return the address in *text*, ignoring a port, an IPv4-mapped address as IPv4; None if it is no address."""
    match = _WITH_PORT.fullmatch(text)
    host = text if match is None else match[1] or match[2]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        # Addresses are compared without their zone, which names one of our own interfaces.
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


def counted_as(address: IpAddress) -> str:
    """
    Return whom a limit counts a request from *address* against.

    One customer of a provider has a whole /64 of IPv6 and may use another address for each request, so it counts as
    one. An IPv4 address counts by itself.
    """
    if address.version == 4:
        return str(address)
    return f"{ipaddress.IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)}/{128 - _HOST_BITS}"


class Peer(NamedTuple):
    """Where a request comes from: its address, the same as text, and whom limits and replay count (an IPv6 /64)."""

    address: IpAddress
    text: str
    counted: str


def peer_at(address: IpAddress) -> Peer:
    """Return the peer at *address*."""
    return Peer(address, text := str(address), text if address.version == 4 else counted_as(address))


def parse_network(text: str) -> IpNetwork:
    """
    Return the network in *text* (an address, or CIDR without host bits), an IPv4-mapped network as IPv4.

    Raises:
        ValueError: *text* is neither.
    """
    if not isinstance(text, str):  # the standard library would read 7 as 0.0.0.7
        raise ValueError("not a text")  # noqa: TRY004 - one kind of error for the caller
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED.prefixlen:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


def parse_networks(texts: Iterable[str]) -> tuple[IpNetwork, ...]:
    """Return the networks in *texts* (addresses or CIDR); raise SettingInvalid if one is neither."""
    networks = []
    for text in texts:
        try:
            networks.append(parse_network(text.strip()))
        except ValueError as error:
            raise SettingInvalid(
                f"trusted_proxies: {text!r} is neither an address nor a network; 10.1.0.0/16 would pass."
            ) from error
    return tuple(networks)


class AddressResolver:
    """Finds the address that counts for a request."""

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = parse_networks(trusted_proxies)

    def is_trusted(self, address: IpAddress) -> bool:
        """Say whether *address* is a trusted proxy."""
        return any(address in network for network in self._trusted)

    def resolve(self, peer: str, forwarded_for: Callable[[], Iterable[str]]) -> IpAddress:
        """
        Return the address that a request came from.

        Args:
            peer: ``host:port`` of the connection.
            forwarded_for: Returns the values of all X-Forwarded-For headers; called only for trusted peers.

        Returns:
            The peer's address, unless it is a trusted proxy: then the rightmost forwarded address that is not a
            trusted proxy. Anything to the left of it may be forged. If the list cannot be read that far, the last
            proxy counts.
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

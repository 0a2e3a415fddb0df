"""Client addresses: how they are read, and which forwarded ones are believed."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from spotledger.errors import SettingInvalid
from spotledger.security.addresses import (
    FORWARDED_HOPS_MAX,
    NO_ADDRESS,
    AddressResolver,
    counted_as,
    parse_address,
    parse_network,
    peer_at,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("unknown", None),
        ("192.0.2.256", None),
        ("192.0.2.1/24", None),
        ("0300.0.2.1", None),
        ("١٩٢.0.2.1", None),
        ("192.0.2.1:port", None),
        ("[192.0.2.1", None),
    ],
)
def test_address_is_read_in_every_form_that_proxies_send(text: str, expected: str | None) -> None:
    """With and without port and brackets; IPv4 in IPv6 clothes is IPv4; anything else is no address."""
    address = parse_address(text)
    assert address == (None if expected is None else ipaddress.ip_address(expected))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1:5", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1:5", ["198.51.100.1, 203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1:5", ["198.51.100.1", "203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ("10.0.0.1:5", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1:5", [], "10.0.0.1"),
        ("10.0.0.1:5", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1:5", ["203.0.113.1, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1:5", ["203.0.113.1:99"], "203.0.113.1"),
        ("[::ffff:10.0.0.1]:5", ["[2001:db8::1]:99"], "2001:db8::1"),
        ("192.0.2.9:5", ["203.0.113.1"], "192.0.2.9"),
        ("", ["203.0.113.1"], str(NO_ADDRESS)),
    ],
)
def test_forwarded_address_is_the_right_most_stranger(peer: str, forwarded: list[str], expected: str) -> None:
    """Only what trusted proxies appended is believed, from the right, as far as it can be read."""
    resolver = AddressResolver(["10.0.0.0/8"])
    assert str(resolver.resolve(peer, lambda: forwarded)) == expected


def test_forwarded_addresses_are_read_from_the_right_up_to_a_bound() -> None:
    """What stands to the left of so many trusted hops counts as little as what cannot be read."""
    resolver = AddressResolver(["10.0.0.0/8"])
    for hops, expected in ((FORWARDED_HOPS_MAX - 1, "203.0.113.1"), (FORWARDED_HOPS_MAX, "10.9.0.0")):
        forwarded = ", ".join(["203.0.113.1", *(f"10.9.0.{number}" for number in range(hops))])
        assert str(resolver.resolve("10.0.0.1:5", lambda text=forwarded: [text])) == expected


def test_forwarded_addresses_are_not_looked_at_for_strangers() -> None:
    """Neither where no proxy is trusted, nor for a peer that is none of them."""

    def never() -> list[str]:
        raise AssertionError("it was looked at")

    for resolver in (AddressResolver(), AddressResolver(["10.0.0.0/8"])):
        assert str(resolver.resolve("192.0.2.1:5", never)) == "192.0.2.1"


def test_peer_that_is_not_trusted_is_told_apart() -> None:
    """A network is trusted with all its addresses, in either family."""
    resolver = AddressResolver([" 10.0.0.0/8 ", "2001:db8::1"])
    for text, trusted in (("10.255.0.1", True), ("11.0.0.1", False), ("2001:db8::1", True), ("2001:db8::2", False)):
        assert resolver.is_trusted(ipaddress.ip_address(text)) is trusted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/95", None),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("::/0", "::/0"),
        ("10.1.2.3/16", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_network_is_an_address_or_has_no_host_bits(text: Any, expected: str | None) -> None:
    """An IPv4 network in IPv6 clothes is IPv4; what is no text is no network."""
    if expected is not None:
        assert str(parse_network(text)) == expected
        return
    with pytest.raises(ValueError, match=r"." if isinstance(text, str) else r"^not a text$"):
        parse_network(text)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
def test_peer_has_its_address_as_text_and_whom_limits_count(text: str) -> None:
    """For replay protection the whole address, for limits the /64 of IPv6."""
    address = ipaddress.ip_address(text)
    assert peer_at(address) == (address, text, counted_as(address))


def test_trusted_proxy_that_is_no_network_is_refused() -> None:
    """A setting that names no network is refused by its name."""
    with pytest.raises(
        SettingInvalid, match=r"trusted_proxies: '10\.0\.0\.1/8' is neither .*10\.1\.0\.0/16 would pass"
    ):
        AddressResolver(["10.0.0.1/8"])


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
    ],
)
def test_limits_count_ipv6_by_64_bits(address: str, counted: str) -> None:
    """Whoever has a /64 cannot use each of its addresses as another caller."""
    found = parse_address(address)
    assert found is not None
    assert counted_as(found) == counted

"""Client addresses: how they are read, and which forwarded ones are believed."""

from __future__ import annotations

import ipaddress

import pytest

from spotledger.errors import SettingInvalid
from spotledger.security.addresses import NO_ADDRESS, AddressResolver, counted_as, parse_address


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


def test_trusted_proxy_that_is_no_network_is_refused() -> None:
    """A setting that names no network is refused by its name."""
    with pytest.raises(SettingInvalid, match="trusted_proxies"):
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

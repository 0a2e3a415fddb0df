"""The gate's checks, one by one: what each refusal says, which time counts, and what is noted of whom."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest

from spotledger.errors import (
    AccessKeyExpired,
    AccessKeyRevoked,
    AccessKeyUnknown,
    AddressNotAllowed,
    LimitExceeded,
    NonceRefused,
    PermissionMissing,
    ReplayRefused,
    SignatureRefused,
)
from spotledger.security.access_keys import ReadyKey
from spotledger.security.addresses import Peer, parse_address, peer_at
from spotledger.security.gate import Gate, GateSettings, SignedRequest
from support_public import KEY, NONCE, SECRET, Service, service

UNLIMITED = dict.fromkeys(("asset_limit_per_second", "account_limit_per_second", "address_limit_per_minute"), 0)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A ledger with access keys."""
    with service(tmp_path_factory.mktemp("gate") / "data") as made:
        yield made


def gate_of(public: Service, wall_ms: int | None = None, **settings: Any) -> Gate:
    """Return a gate of its own over the access keys, without limits that are not asked for."""
    return Gate(public.key_ring, GateSettings(**{**UNLIMITED, **settings}), lambda: wall_ms)


def at(text: str) -> Peer:
    """Return the peer at this address."""
    address = parse_address(text)
    assert address is not None
    return peer_at(address)


PEER = at("192.0.2.7")


def signed(accesskey: str = KEY, stamp_ms: int = NONCE, secret: str = SECRET, texts: int = 1) -> SignedRequest:
    """Return a signed request; of several texts that may be signed, the last one is."""
    signature = hmac.new(secret.encode(), b"text %d" % texts, hashlib.sha256).digest()
    return SignedRequest(accesskey, stamp_ms, signature, tuple(b"text %d" % (number + 1) for number in range(texts)))


def admitted(gate: Gate, request: SignedRequest, *, now_ms: int = NONCE, peer: Peer = PEER) -> ReadyKey:
    """Have the gate admit a request, and return its access key."""
    return asyncio.run(gate.admit(request, peer, "read", gate.account_limit, now_ms))[0]


def test_request_with_a_valid_signature_is_admitted_and_its_use_noted(public: Service) -> None:
    """Whichever of its texts was signed; a refused one is not noted."""
    gate = gate_of(public)
    public.key_ring.used.clear()
    for texts in (1, 2):
        assert admitted(gate, signed(texts=texts)).customer == "alice"
    assert public.key_ring.used == {KEY: NONCE}
    public.key_ring.used.clear()
    with pytest.raises(SignatureRefused):
        admitted(gate, signed(secret="0" * 64))
    assert public.key_ring.used == {}


def test_first_of_two_texts_counts_as_well_as_the_second(public: Service) -> None:
    """A signature of the first is not undone by the second."""
    one = signed()
    assert admitted(gate_of(public), one._replace(texts=(*one.texts, b"another"))).customer == "alice"
    with pytest.raises(SignatureRefused):
        admitted(gate_of(public), one._replace(texts=(b"another", b"and another")))


@pytest.mark.parametrize(
    ("wall_ms", "stamps"),
    [(None, {-30_001: False, -30_000: True, 5_000: True, 5_001: False}), (100_000, {69_999: False, 70_000: True})],
)
def test_nonce_has_to_fit_one_of_the_clocks(public: Service, wall_ms: int | None, stamps: dict[int, bool]) -> None:
    """That which counts, or the wall clock while it is not trusted."""
    gate = gate_of(public, None if wall_ms is None else NONCE + wall_ms)
    for offset, fits in {**stamps, **({} if wall_ms is None else {105_000: True, 105_001: False})}.items():
        if fits:
            gate.check(signed(stamp_ms=NONCE + offset), PEER, "read", NONCE)
        else:
            with pytest.raises(NonceRefused):
                gate.check(signed(stamp_ms=NONCE + offset), PEER, "read", NONCE)


@pytest.mark.parametrize(
    ("offset", "side"), [(-40_000, "40000 ms behind"), (9_000, "9000 ms ahead of"), (5_001, "5001 ms ahead of")]
)
def test_refusal_of_a_nonce_says_by_how_much_it_is_wrong(public: Service, offset: int, side: str) -> None:
    """And what would pass; the time of the service is a detail for programs."""
    with pytest.raises(NonceRefused) as refused:
        gate_of(public).check(signed(stamp_ms=NONCE + offset), PEER, "read", NONCE)
    assert refused.value.message == (
        f"The nonce is {side} the server's time, {NONCE}; at most 30000 ms behind and 5000 ms ahead would pass."
    )
    assert refused.value.details == {"server_time_ms": NONCE}


@pytest.mark.parametrize(("past_ms", "counts"), [(1_000, 1_000), (30_000, 30_000), (60_000, 30_000), (None, 30_000)])
def test_request_may_ask_for_a_shorter_window_and_for_no_longer_one(
    public: Service, past_ms: int | None, counts: int
) -> None:
    """The setting is the longest that counts."""
    gate = gate_of(public)
    assert gate.settings.nonce_past_ms == 30_000
    asyncio.run(gate.admit(signed(stamp_ms=NONCE - counts), PEER, "read", gate.account_limit, NONCE, past_ms=past_ms))
    with pytest.raises(NonceRefused, match=f"at most {counts} ms behind"):
        asyncio.run(
            gate.admit(signed(stamp_ms=NONCE - counts - 1), PEER, "read", gate.account_limit, NONCE, past_ms=past_ms)
        )


@pytest.mark.parametrize(("changes", "passes_again"), [(False, True), (True, False)])
def test_signature_is_good_once_for_a_call_that_changes_something(
    public: Service, changes: bool, passes_again: bool
) -> None:
    """A read may be repeated from the same address, as by a client that got no answer."""
    gate = gate_of(public)

    def ask() -> None:
        asyncio.run(gate.admit(signed(), PEER, "read", gate.account_limit, NONCE, changes=changes))

    ask()
    if passes_again:
        ask()
        return
    with pytest.raises(ReplayRefused):
        ask()


def test_access_key_ends_at_its_time_and_when_it_is_revoked(public: Service) -> None:
    """To the millisecond; revoked comes before expired."""
    gate, expiring, revoked = gate_of(public), "e" * 8, "f" * 8
    public.add_key(expiring, expires_ms=NONCE)
    public.add_key(revoked, expires_ms=NONCE, revoked_ms=1)
    assert gate.check(signed(expiring, NONCE - 1), PEER, "read", NONCE - 1).customer == "alice"
    with pytest.raises(AccessKeyExpired):
        gate.check(signed(expiring), PEER, "read", NONCE)
    with pytest.raises(AccessKeyRevoked):
        gate.check(signed(revoked), PEER, "read", NONCE)


def test_access_key_that_is_bound_is_refused_from_elsewhere(public: Service) -> None:
    """Whatever the signature; from its address it is refused for the next reason."""
    gate, bound = gate_of(public), "a" * 8
    public.add_key(bound, addresses=("203.0.113.0/24", "2001:db8::/32"), permissions=("trade",))
    for peer in ("203.0.114.1", "2001:db9::1"):
        with pytest.raises(AddressNotAllowed):
            gate.check(signed(bound), at(peer), "read", NONCE)
    for peer in ("203.0.113.255", "2001:db8::1"):
        with pytest.raises(SignatureRefused):
            gate.check(signed(bound, secret="0" * 64), at(peer), "read", NONCE)
        message = "The access key lacks the permission read, which this call needs."
        with pytest.raises(PermissionMissing, match=f"^{message}$"):
            gate.check(signed(bound, NONCE - 60_000), at(peer), "read", NONCE)
        gate.check(signed(bound), at(peer), "trade", NONCE)


@pytest.mark.parametrize(
    ("accesskey", "is_told"), [("0a" * 20, True), ("F" * 64, True), ("0" * 39, False), ("g" * 40, False)]
)
def test_secret_that_is_sent_as_access_key_is_told(public: Service, accesskey: str, is_told: bool) -> None:
    """From 40 hex digits on; the message does not repeat it."""
    with pytest.raises(AccessKeyUnknown) as refused:
        gate_of(public).check(signed(accesskey), PEER, "read", NONCE)
    told = (
        "The accesskey sent looks like a secret; send the access key, which is a UUID such as "
        "11111111-2222-4333-8444-555555555555. If it is your secret, have its access key revoked."
    )
    assert (refused.value.message == told) is is_told
    assert accesskey not in refused.value.message


@pytest.mark.parametrize("accesskey", ["", "x" * 65, "a b", "a'b", "a%", "ä" * 8, "a\n", "../a"])
def test_what_cannot_be_an_access_key_is_unknown_without_a_look_into_the_store(
    public: Service, accesskey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters, digits and hyphens, 64 of them at most."""
    looked: list[str] = []
    monkeypatch.setattr(public.key_ring, "ready", looked.append)
    with pytest.raises(AccessKeyUnknown):
        gate_of(public).check(signed(accesskey), PEER, "read", NONCE)
    assert looked == []
    with pytest.raises(AccessKeyUnknown):
        gate_of(public).check(signed("x" * 64), PEER, "read", NONCE)
    assert looked == ["x" * 64]


def test_limit_that_is_exceeded_is_named_with_the_time_to_wait(public: Service) -> None:
    """That of the address before that of the account; a lock of another limit is told apart."""
    gate = gate_of(public, address_limit_per_minute=3, account_limit_per_second=1, lock_seconds=90)
    assert asyncio.run(gate.admit(signed(), PEER, "read", gate.account_limit, NONCE))[1] == 0
    with pytest.raises(LimitExceeded) as refused:
        admitted(gate, signed(), now_ms=NONCE + 1)
    assert refused.value.message == "This account sent more than 1 requests in 1 s; wait 90 s."
    assert refused.value.details == {"retry_after_s": 90, "limit": "account"}
    with pytest.raises(LimitExceeded, match=r"This account sent more than another limit allows; wait 90 s\."):
        asyncio.run(gate.admit(signed(), PEER, "read", gate.asset_limit, NONCE + 2))
    for admit in (
        lambda: gate.admit(signed(secret="0" * 64), PEER, "read", gate.account_limit, NONCE + 3),
        lambda: gate.enter(PEER, NONCE + 4),
    ):
        with pytest.raises(LimitExceeded) as refused:
            asyncio.run(admit())
        assert refused.value.message == "This address sent more than 3 requests in 60 s; wait 90 s."
        assert refused.value.details == {"retry_after_s": 90, "limit": "address"}


def test_unsigned_and_refused_requests_count_against_the_address(public: Service) -> None:
    """Up to the limit, all together; another address has a limit of its own."""
    gate = gate_of(public, address_limit_per_minute=3)
    asyncio.run(gate.enter(PEER, NONCE))
    gate.count(PEER, NONCE)
    asyncio.run(gate.enter(PEER, NONCE))
    with pytest.raises(LimitExceeded):
        asyncio.run(gate.enter(PEER, NONCE))
    asyncio.run(gate.enter(at("192.0.2.8"), NONCE))


def test_forwarded_addresses_are_asked_for_only_behind_trusted_proxies(public: Service) -> None:
    """The address of a connection is worked out once; behind a proxy it is worked out for each request."""

    def never() -> list[str]:
        raise AssertionError("it was asked for")

    for gate in (gate_of(public), gate_of(public, trusted_proxies=("10.0.0.0/8",))):
        first = gate.peer("192.0.2.1:5", never)
        assert first == at("192.0.2.1")
        assert gate.peer("192.0.2.1:6", never) is first
    proxied = gate_of(public, trusted_proxies=("10.0.0.0/8",))
    for forwarded in ("203.0.113.1", "2001:db8::1"):
        assert proxied.peer("10.0.0.1:5", lambda text=forwarded: [text]) == at(forwarded)
    assert gate_of(public).peer("10.0.0.1:5", never) == at("10.0.0.1")


def test_window_of_replay_protection_is_that_of_nonces(public: Service) -> None:
    """A signature is bound to its address for as long as its nonce passes."""
    gate = gate_of(public, nonce_past_ms=2_000, nonce_future_ms=1_000)
    request, other = signed(stamp_ms=NONCE + 1_000), at("198.51.100.1")
    admitted(gate, request)
    for step in (1_000, 2_000, 2_500):  # others come meanwhile
        admitted(gate, signed(stamp_ms=NONCE + step, texts=step), now_ms=NONCE + step)
    with pytest.raises(ReplayRefused):
        admitted(gate, request, now_ms=NONCE + 2_999, peer=other)


def test_gate_shares_nothing_and_has_nothing_to_start(public: Service) -> None:
    """A gate of one process waits for nobody."""
    gate = gate_of(public)
    assert gate.shared is None
    assert [it.name for it in (gate.asset_limit, gate.account_limit, gate.address_limit)] == [
        "assets",
        "account",
        "address",
    ]
    for waiting in (gate.start(), gate.stop()):
        with pytest.raises(StopIteration):
            waiting.send(None)


def test_lock_that_is_lifted_lets_in_again(public: Service) -> None:
    """Of a customer or of an address, whichever is named; no other process shares the locks of this gate."""
    gate = gate_of(public, address_limit_per_minute=2, account_limit_per_second=1)
    admitted(gate, signed())
    with pytest.raises(LimitExceeded, match="This account"):
        admitted(gate, signed())
    with pytest.raises(LimitExceeded, match="This address"):
        admitted(gate, signed())
    assert asyncio.run(gate.shared_locks()) is None
    asyncio.run(gate.lift("customer", "alice"))
    with pytest.raises(LimitExceeded, match="This address"):
        admitted(gate, signed())
    asyncio.run(gate.lift("address", PEER.counted))
    assert admitted(gate, signed()).customer == "alice"
    with pytest.raises(LimitExceeded, match="This account"):
        admitted(gate, signed())
    asyncio.run(gate.lift("address", "alice"))
    with pytest.raises(LimitExceeded, match="This"):
        admitted(gate, signed())


def test_requests_of_one_access_key_push_out_those_of_no_other(public: Service) -> None:
    """Each has room of its own in the replay memory."""
    gate, loud, other = gate_of(public, replay_capacity=4), "c" * 8, at("198.51.100.1")
    public.add_key(loud)
    admitted(gate, signed())
    for number in range(20):
        admitted(gate, signed(loud, NONCE - number, texts=number + 1))
    with pytest.raises(ReplayRefused):
        admitted(gate, signed(), peer=other)
    assert gate.replay.forgotten > 0


def test_clock_that_leaps_frees_no_signature(public: Service) -> None:
    """The replay memory goes by the steady clock that the gate is given."""
    settings = GateSettings(**UNLIMITED)
    gate, other = Gate(public.key_ring, settings, steady_ms=lambda: 7), at("198.51.100.1")
    admitted(gate, signed())
    for number, leap_ms in enumerate((3_600_000, 7_200_000)):
        admitted(gate, signed(stamp_ms=NONCE + leap_ms, texts=number + 2), now_ms=NONCE + leap_ms)
    with pytest.raises(ReplayRefused):
        admitted(gate, signed(), peer=other)


def test_locks_are_found_by_what_they_lock(public: Service) -> None:
    """The limits of accounts share one, and that of addresses has its own."""
    gate = gate_of(public, lock_seconds=7)
    assert {kind: locks.lock_ms for kind, locks in gate.locks.items()} == {"customer": 7_000, "address": 7_000}
    assert gate.address_limit.locks is gate.locks["address"]
    assert gate.asset_limit.locks is gate.account_limit.locks is gate.locks["customer"]
    assert gate.locks["address"] is not gate.locks["customer"]

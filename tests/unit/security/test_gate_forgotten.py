"""R12: a gate that does not remember what was admitted before refuses what may have been, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.errors import NonceRefused
from spotledger.security.access_keys import AccessKeyRecord, KeyRing, ReadyKey
from spotledger.security.addresses import parse_address, peer_at
from spotledger.security.gate import Gate, GateSettings, SignedRequest
from spotledger.security.signing import PreparedSecret

START = 1_700_000_000_000
ADDRESS = parse_address("192.0.2.7")
assert ADDRESS is not None
PEER = peer_at(ADDRESS)
SECRET = PreparedSecret("secret")


class OneKey(KeyRing):
    """A key ring with one access key, which needs no store."""

    def __init__(self, created_ms: int) -> None:
        self.used: dict[str, int] = {}
        record = AccessKeyRecord("key", "alice", ("read",), "", (), b"", created_ms)
        self._only = ReadyKey(record, SECRET)

    def ready(self, accesskey: str) -> ReadyKey | None:
        return self._only


def gate_of(created_ms: int = 0, wall_ms: Callable[[], int | None] = lambda: None, **more: Any) -> Gate:
    """Return a gate without limits."""
    limits = {"asset_limit_per_second": 0, "account_limit_per_second": 0, "address_limit_per_minute": 0}
    return Gate(OneKey(created_ms), GateSettings(**{**limits, **more}), wall_ms)


def admit(gate: Gate, stamp_ms: int, now_ms: int, *, changes: bool = False) -> None:
    """Have *gate* admit a request with the nonce *stamp_ms*."""
    text = b"nonce=%d" % stamp_ms
    request = SignedRequest("key", stamp_ms, SECRET.sign(text), (text,))
    asyncio.run(gate.admit(request, PEER, "read", gate.asset_limit, now_ms, changes=changes))


def admits(gate: Gate, stamp_ms: int, now_ms: int, *, changes: bool = False) -> bool:
    """Say whether *gate* admits it."""
    try:
        admit(gate, stamp_ms, now_ms, changes=changes)
    except NonceRefused:
        return False
    return True


def test_nonce_that_may_have_been_used_before_the_start_is_refused_with_what_would_pass() -> None:
    """The refusal names the least nonce that passes, which passes at once, and how long to wait without one."""
    gate = gate_of()
    gate.forget(START)
    with pytest.raises(NonceRefused) as refused:
        admit(gate, START + 100, START + 100)
    assert refused.value.details == {
        "server_time_ms": START + 100,
        "nonce_from_ms": START + 5_000,
        "retry_after_s": 5,
    }
    assert f"a nonce of at least {START + 5_000} would pass: use that, or sign again in 5 s" in str(refused.value)
    assert admits(gate, START + 5_000, START + 100)
    assert not admits(gate, START + 4_999, START + 30_000)
    assert admits(gate, START + 5_001, START + 5_001)


@given(used_after=st.integers(-10_000, 10_000), age=st.integers(-5_000, 30_000), later=st.integers(0, 60_000))
@settings(max_examples=300, deadline=None)
def test_no_nonce_that_passed_before_the_start_passes_after_it(used_after: int, age: int, later: int) -> None:
    """Whatever was admitted until the moment that is forgotten: none of it is admitted again."""
    before, after = gate_of(), gate_of()
    used_at = min(START + used_after, START - 1)
    if admits(before, used_at - age, used_at):
        after.forget(START)
        assert not admits(after, used_at - age, START + later)


@pytest.mark.parametrize(("created_ms", "passes"), [(START - 1, False), (START, True), (START + 50, True)])
def test_access_key_that_is_younger_than_the_start_is_not_refused(created_ms: int, passes: bool) -> None:
    """What was issued after the start was never used before it."""
    gate = gate_of(created_ms)
    gate.forget(START)
    assert admits(gate, START + 100, START + 100) is passes


def test_replay_off_refuses_only_what_changes_something() -> None:
    """Where replays pass anyway, nothing is forgotten; a call that changes something is still made once."""
    gate = gate_of(replay="off")
    gate.forget(START)
    assert admits(gate, START + 100, START + 100)
    assert not admits(gate, START + 200, START + 200, changes=True)
    assert admits(gate, START + 5_200, START + 5_200, changes=True)


def test_nonce_by_a_wall_clock_that_is_ahead_is_refused_up_to_its_time() -> None:
    """While the wall clock is not trusted, nonces pass by it too, so they may have been used up to its time."""
    wall_ms = START + 3_600_000
    gate = gate_of(wall_ms=lambda: wall_ms)
    gate.forget(START, wall_ms)
    assert not admits(gate, wall_ms + 100, START + 100)
    assert not admits(gate, START + 4_000, START + 100)
    assert admits(gate, wall_ms + 5_000, START + 100)
    assert admits(gate, START + 5_000, START + 200)


def test_nonce_that_passes_by_the_clock_that_counts_is_not_measured_by_the_wall_clock() -> None:
    """Up to the end of its window; the next one passed by the wall clock, and may have been used up to its time."""
    wall_ms = START + 35_000
    gate = gate_of(wall_ms=lambda: wall_ms)
    gate.forget(START, wall_ms)
    assert admits(gate, START + 5_000, START)
    assert not admits(gate, START + 5_001, START)
    assert admits(gate, START + 5_001, START + 1)


def test_what_is_forgotten_only_grows() -> None:
    """A second loss adds to the first; an earlier moment takes nothing back."""
    gate = gate_of()
    gate.forget(START + 1_000)
    gate.forget(START)
    assert gate.unremembered == (START + 1_000, 0)
    assert not admits(gate, START + 5_500, START + 2_000)
    gate.forget(START, START + 9_000)
    gate.forget(START + 2_000, START + 8_000)
    assert gate.unremembered == (START + 2_000, START + 9_000)

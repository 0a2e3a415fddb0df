"""The v1 wire: authentication, limits, and the order of refusals (rules R10 to R13 and R20)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_public import (
    FUNDS,
    NONCE,
    OTHER_PEER,
    PEER,
    REDIS,
    SECRET,
    Service,
    document,
    header,
    service,
    signed_query,
)


@pytest.fixture(autouse=True, params=["in process", "redis"])
def _counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the gate count by itself, and then over a Redis with nothing in it."""
    token = REDIS.set(request.getfixturevalue("redis_url") if request.param == "redis" else None)
    yield
    REDIS.reset(token)


def test_r10_refusals_come_in_their_order(tmp_path: Path) -> None:
    """R10: of several faults the first in the documented order is answered; correcting it shows the next."""
    with service(tmp_path, asset_limit_per_second=1, address_limit_per_minute=8) as public:
        public.add_key("b" * 8, SECRET, addresses=("203.0.113.0/24",), permissions=("trade",))
        peer = "203.0.113.5:1"

        def ask(key: str, secret: str, nonce: int, *, from_peer: str = peer, extra: str = "") -> tuple[int, str]:
            query = signed_query({"accesskey": key}, secret=secret, nonce=nonce)
            said = document(public.ask(query + extra, peer=from_peer))
            return said["code"], said["info"]

        wrong, late = "0" * 64, NONCE - 60_000
        assert ask("unknown", wrong, late, extra="&nonce=1")[0] == 400
        assert ask("unknown", wrong, late)[0] == 307
        assert ask("b" * 8, wrong, late, from_peer=PEER) == (307, "The access key may not be used from this address.")
        assert ask("b" * 8, wrong, late)[0] == 308
        code, info = ask("b" * 8, SECRET, late)
        assert (code, "permission" in info) == (307, True)
        public.add_key("c" * 8, SECRET)
        code, info = ask("c" * 8, SECRET, late)
        assert (code, "nonce" in info) == (400, True)
        assert ask("c" * 8, SECRET, NONCE)[0] == 200
        assert ask("c" * 8, SECRET, NONCE)[0] == 404
        assert ask("unknown", wrong, late)[0] == 307
        code, info = ask("unknown", wrong, late)
        assert (code, "This address" in info) == (404, True)
        assert ask("unknown", wrong, late, extra="&nonce=1")[0] == 400


@pytest.mark.parametrize(
    ("age_ms", "code"), [(30_000, 200), (30_001, 400), (0, 200), (-5_000, 200), (-5_001, 400), (10**11, 400)]
)
def test_r11_nonce_window_is_30_s_back_and_5_s_ahead(public: Service, age_ms: int, code: int) -> None:
    """R11: the nonce may lie 30 s in the past and 5 s in the future, to the millisecond."""
    said = document(public.ask(signed_query(nonce=NONCE - age_ms)))
    assert said["code"] == code
    assert code == 200 or str(NONCE) in said["info"]


def test_r11_nonce_window_can_be_set(tmp_path: Path) -> None:
    """R11: both ends of the window are settings."""
    with service(tmp_path, nonce_past_ms=1_000, nonce_future_ms=60_000, asset_limit_per_second=0) as public:
        assert [public.code(signed_query(nonce=NONCE + step)) for step in (-1_001, -1_000, 60_000, 60_001)] == [
            400,
            200,
            200,
            400,
        ]


def test_r11_nonces_may_fall_and_repeat(public: Service) -> None:
    """R11: a nonce need be neither growing nor unique: retries and two calls in one millisecond pass."""
    for nonce in (NONCE, NONCE - 5, NONCE, NONCE + 7):
        assert public.code(signed_query(nonce=nonce)) == 200
        assert public.code(signed_query({"account": "2"}, nonce=nonce), FUNDS) == 200


def test_r12_replay_from_another_address_is_refused(public: Service) -> None:
    """R12: the first use binds a signature to its address: a retry passes, the same request elsewhere does not."""
    query = signed_query()
    assert public.code(query) == 200
    assert public.code(query, peer="192.0.2.7:50000") == 200
    assert public.code(query, peer=OTHER_PEER) == 400
    text, _, signature = query.rpartition("&signature=")
    assert public.code(f"{text}&signature={signature.upper()}", peer=OTHER_PEER) == 400
    assert public.code(f"signature={signature}&{text}&", peer=OTHER_PEER) == 400
    assert public.code(signed_query(nonce=NONCE + 1), peer=OTHER_PEER) == 200


def test_r12_replay_is_remembered_for_the_whole_window(public: Service) -> None:
    """R12: a request signed ahead of time stays bound until its nonce leaves the window."""
    query = signed_query(nonce=NONCE + 5_000)
    assert public.code(query) == 200
    for step in (17_000, 17_000, 1_000):
        public.clock.now_ms += step
        assert public.code(signed_query(nonce=public.clock.now_ms)) == 200
        assert public.code(query, peer=OTHER_PEER) == 400
    assert "used before" in document(public.ask(query, peer=OTHER_PEER))["info"]


@pytest.mark.parametrize(("mode", "codes"), [("strict", [200, 400, 400]), ("off", [200, 200, 200])])
def test_r12_replay_can_be_strict_or_off(tmp_path: Path, mode: str, codes: list[int]) -> None:
    """R12: strict takes each signed request once, off takes it from anywhere."""
    with service(tmp_path, replay=mode, asset_limit_per_second=0) as public:
        query = signed_query()
        assert [public.code(query), public.code(query), public.code(query, peer=OTHER_PEER)] == codes


def test_r12_replay_memory_is_bounded_and_counts_what_it_forgot(tmp_path: Path) -> None:
    """R12: when the memory is full the oldest is forgotten and counted, and the newest are kept."""
    with service(tmp_path, replay_capacity=10, asset_limit_per_second=0) as public:
        queries = [signed_query(nonce=NONCE - n) for n in range(100)]
        assert {public.code(query) for query in queries} == {200}
        assert len(public.app.gate.replay) <= 10
        assert public.app.gate.replay.forgotten >= 90
        assert public.code(queries[-1], peer=OTHER_PEER) == 400


def test_r12_replay_does_not_count_against_the_account(tmp_path: Path) -> None:
    """R12, R20: someone who finds a URL in a log cannot lock its owner out with it."""
    with service(tmp_path) as public:
        query = signed_query()
        assert public.code(query) == 200
        assert {public.code(query, peer=OTHER_PEER) for _ in range(50)} == {400}
        assert public.code(signed_query(nonce=NONCE + 1)) == 200


def test_r13_issued_keys_are_uuids_and_secrets_256_bits(public: Service) -> None:
    """R13: an issued access key is a UUID and its secret 64 hex digits, and they work."""
    accesskey, secret = public.key_ring.create("bob", ["read"])
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", accesskey)
    assert re.fullmatch(r"[0-9a-f]{64}", secret)
    assert public.code(signed_query({"accesskey": accesskey}, secret=secret)) == 200


def test_r13_a_secret_sent_as_accesskey_is_told_and_not_repeated(
    public: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """R13: a secret sent as accesskey is refused as one, and no part of it is sent back or logged."""
    caplog.set_level(logging.DEBUG)
    _, secret = public.key_ring.create("bob", ["read"])
    for sent in (secret, SECRET):
        answer = public.ask(signed_query({"accesskey": sent}))
        assert document(answer)["code"] == 307
        assert "looks like a secret" in document(answer)["info"]
        assert sent[:8].encode() not in answer.body
        assert sent[:8] not in caplog.text


def test_r20_limit_of_an_account_and_its_lock(tmp_path: Path) -> None:
    """R20: the fourth asset call in a second locks the account for ten minutes, whatever key or address is used."""
    with service(tmp_path) as public:
        public.add_key("second-key")
        assert [public.code(signed_query()) for _ in range(4)] == [200, 200, 200, 404]
        assert public.code(signed_query({"accesskey": "second-key"}), peer=OTHER_PEER) == 404
        assert public.code(signed_query(), "/trade/api/v1/getAccounts") == 404
        public.add_key("bob-key", customer="bob")
        assert public.code(signed_query({"accesskey": "bob-key"})) == 200
        public.clock.now_ms += 599_999
        assert public.code(signed_query(nonce=public.clock.now_ms)) == 404
        public.clock.now_ms += 1
        assert public.code(signed_query(nonce=public.clock.now_ms)) == 200


def test_r20_window_begins_with_the_first_request(tmp_path: Path) -> None:
    """R20: three calls in any second pass, and the next second begins anew."""
    with service(tmp_path) as public:
        public.clock.now_ms = NONCE + 900
        codes = []
        for step in (0, 50, 50, 900, 999, 0, 1):
            public.clock.now_ms += step
            codes.append(public.code(signed_query(nonce=public.clock.now_ms)))
        assert codes == [200] * 7


def test_r20_other_signed_calls_have_ten_a_second(tmp_path: Path) -> None:
    """R20: calls that aren't about assets count against the account's own limit of ten."""
    with service(tmp_path) as public:
        path = "/trade/api/v1/getAccounts"
        assert [public.code(signed_query(), path) for _ in range(11)] == [200] * 10 + [404]


def test_r20_lock_holds_for_calls_whose_own_limit_is_off(tmp_path: Path) -> None:
    """R20: the account is locked, so a call without a limit of its own is refused too, with the time to wait."""
    with service(tmp_path, asset_limit_per_second=0, account_limit_per_second=1) as public:
        codes = [public.code(signed_query(), "/trade/api/v1/getAccounts") for _ in range(2)]
        refused = public.ask(signed_query())
    assert (codes, document(refused)["code"]) == ([200, 404], 404)
    assert (header(refused, "retry-after"), header(refused, "ratelimit")) == ("600", None)


def test_r20_only_valid_signatures_count_against_an_account(tmp_path: Path) -> None:
    """R20: knowing an access key is not enough to lock its owner out."""
    with service(tmp_path) as public:
        assert {public.code(signed_query(secret="0" * 64), peer=OTHER_PEER) for _ in range(100)} == {308}
        assert public.code(signed_query()) == 200


def test_r20_limit_of_an_address_locks_that_address_alone(tmp_path: Path) -> None:
    """R20: the 1001st request in a minute locks its address, whatever the requests were, and no other."""
    with service(tmp_path) as public:
        asked = [public.ask(path="/nothing/here") for _ in range(400)] + [public.ask("x") for _ in range(600)]
        assert len(asked) == 1000
        refused = public.ask(signed_query())
        assert (document(refused)["code"], header(refused, "retry-after")) == (404, "600")
        assert public.code(path="/trade/api/v1/getServerTime") == 404
        assert public.code(signed_query(), peer=OTHER_PEER) == 200
        public.clock.now_ms += 600_000
        assert public.code(signed_query(nonce=public.clock.now_ms)) == 200


def test_r20_forwarded_addresses_count_only_from_trusted_proxies(tmp_path: Path) -> None:
    """R20: X-Forwarded-For is believed from trusted proxies alone, and then its right-most stranger."""
    with service(tmp_path, address_limit_per_minute=2, trusted_proxies=("10.0.0.0/8",)) as public:

        def ask(forwarded: str, peer: str = "10.1.1.1:99") -> int:
            path = "/trade/api/v1/getServerTime"
            return public.code(path=path, headers=[("X-Forwarded-For", forwarded)], peer=peer)

        assert [ask("203.0.113.1") for _ in range(3)] == [200, 200, 404]
        assert ask("203.0.113.2") == 200
        assert ask("203.0.113.1, 203.0.113.2") == 200
        assert ask("203.0.113.1, 203.0.113.2, 10.9.9.9") == 404
        assert [ask(f"203.0.113.{n}", "192.0.2.1:1") for n in range(50, 53)] == [200, 200, 404]


def test_r20_address_lists_and_replay_use_the_forwarded_address(tmp_path: Path) -> None:
    """R20: behind a trusted proxy, address lists and replay go by the forwarded address as well."""
    with service(tmp_path, trusted_proxies=("10.0.0.1",)) as public:
        public.add_key("listed-1", addresses=("203.0.113.7",))
        query = signed_query({"accesskey": "listed-1"})

        def ask(query: str, forwarded: str, peer: str = "10.0.0.1:5") -> int:
            return public.code(query, headers=[("x-forwarded-for", forwarded)], peer=peer)

        assert ask(query, "203.0.113.7") == 200
        assert ask(query, "203.0.113.8") == 307
        assert ask(query, "203.0.113.7", "192.0.2.1:5") == 307
        assert ask(signed_query(), "203.0.113.7") == 200
        assert ask(signed_query(), "203.0.113.8") == 400


def test_r20_limit_of_zero_is_off(public: Service) -> None:
    """R20: a limit set to 0 does not count, and no header speaks of it."""
    answers = [public.ask(signed_query()) for _ in range(50)]
    assert {document(answer)["code"] for answer in answers} == {200}
    assert header(answers[0], "ratelimit-policy") is None


def test_r20_addresses_of_one_ipv6_64_count_as_one_in_limits_and_in_replay(tmp_path: Path) -> None:
    """R20, R12: a caller with a /64 has one limit, and a signature is bound to the /64 that used it first."""
    with service(tmp_path, asset_limit_per_second=0, address_limit_per_minute=3) as public:
        query = signed_query()
        assert public.code(query, peer="[2001:db8:1:2::1]:5000") == 200
        assert public.code(query, peer="[2001:db8:1:2::2]:5000") == 200
        assert public.code(query, peer="[2001:db8:1:3::1]:5000") == 400
        assert public.code(signed_query(nonce=NONCE + 1), peer="[2001:db8:1:2::3]:5000") == 200
        answer = document(public.ask(signed_query(nonce=NONCE + 2), peer="[2001:db8:1:2:ffff::4]:5000"))
        assert (answer["code"], "This address" in answer["info"]) == (404, True)
        assert public.code(signed_query(nonce=NONCE + 3), peer="[2001:db8:1:3::1]:5000") == 200

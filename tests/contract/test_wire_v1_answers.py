"""The v1 wire: what answers contain, and what they never reveal (rules R14 to R19, R21 and R22)."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from spotledger.errors import AccessKeyRevoked
from spotledger.security.cipher import Cipher
from support_public import (
    ALICE,
    BALANCE,
    KEY,
    NONCE,
    SECRET,
    Service,
    document,
    header,
    service,
    signed_query,
)


def sealed_by_another_master_key(public: Service) -> None:
    """Store an access key that this service can't open: the simplest trouble inside."""
    mine, public.cipher = public.cipher, Cipher(b"another master key of 32 bytes!!")
    public.add_key("sealed-otherwise")
    public.cipher = mine


REFUSED = [
    ("", 400, 400),
    (signed_query({"accesskey": "22222222-2222-4333-8444-555555555555"}), 307, 401),
    (signed_query(secret="0" * 64), 308, 401),
    (signed_query(nonce=1), 400, 400),
    (signed_query(nonce=NONCE - 10**6), 400, 400),
]


@pytest.mark.parametrize(("query", "code", "status"), REFUSED)
def test_r14_refusals_are_http_200_unless_problems_are_asked_for(
    public: Service, query: str, code: int, status: int
) -> None:
    """R14: HTTP 200 whatever the answer; with Accept: application/problem+json a true status and RFC 9457."""
    plain = public.ask(query)
    assert (plain.status, document(plain)["code"], header(plain, "content-type")) == (200, code, "application/json")
    problem = public.ask(query, headers=[("accept", "text/html, application/problem+json;q=0.9")])
    assert (problem.status, header(problem, "content-type")) == (status, "application/problem+json")
    said = document(problem)
    assert said["status"] == status
    assert said["request_id"] == header(problem, "x-request-id")
    assert {"type", "title", "detail", "code"} <= said.keys()


def test_r14_problem_is_asked_for_and_the_call_succeeds_the_answer_is_the_usual(public: Service) -> None:
    """R14: asking for problem details changes nothing about a success."""
    answer = public.ask(signed_query(), headers=[("accept", "application/problem+json")])
    assert (answer.status, header(answer, "content-type"), document(answer)["data"]) == (200, "application/json", ALICE)


def test_r15_amounts_are_plain_decimals_at_every_scale(public: Service) -> None:
    """R15: no exponent, at least two decimals, no zeros that say nothing, exact beyond 64 bits; code is a number."""
    public.ledger.list_coin("shib", 18, key="shib")
    public.ledger.list_coin("one", 0, key="one")
    public.ledger.deposit("bob", "shib", "12345678901234567890.000000000000000001", key="1")
    public.ledger.deposit("bob", "one", "7", key="2")
    public.ledger.deposit("bob", "usdt", "1.5", key="3")
    public.ledger.deposit("bob", "btc", "0.00000001", key="4")
    public.add_key("b" * 8, SECRET, "bob")
    said = document(public.ask(signed_query({"accesskey": "b" * 8})))
    assert type(said["code"]) is int
    assert {coin: sides["available"] for coin, sides in said["data"].items()} == {
        "btc": "0.00000001",
        "one": "7.00",
        "shib": "12345678901234567890.000000000000000001",
        "usdt": "1.50",
    }


def test_r16_refusal_says_its_text_three_times_and_has_no_data(public: Service) -> None:
    """R16: code and three times the same text, which tells what failed and what would pass."""
    for query, code, _ in REFUSED:
        said = document(public.ask(query))
        assert said.keys() == {"code", "info", "msg", "msgInfo"}
        assert said["code"] == code
        assert said["info"] == said["msg"] == said["msgInfo"]
        assert len(said["info"]) > 20


def test_r17_codes_of_access_keys(public: Service) -> None:
    """R17: 307 for a key that is unknown, revoked, expired, at a wrong address or without the permission."""
    keys = {
        "expired-1": {"expires_ms": NONCE},
        "revoked-1": {"revoked_ms": NONCE - 1},
        "address-1": {"addresses": ("203.0.113.0/24", "2001:db8::/32")},
        "trading-1": {"permissions": ("trade", "withdraw")},
    }
    texts = set()
    for accesskey, fields in keys.items():
        public.add_key(accesskey, **fields)
    for accesskey in [*keys, "unknown-1", "a\0b", "x" * 3000]:
        said = document(public.ask(signed_query({"accesskey": accesskey})))
        assert said["code"] == 307
        texts.add(said["info"])
    assert len(texts) == 5
    assert public.code(signed_query({"accesskey": "address-1"}), peer="203.0.113.9:1") == 200
    assert public.code(signed_query({"accesskey": "address-1"}, nonce=NONCE + 1), peer="[::ffff:203.0.113.9]:1") == 200


def test_r17_expiry_is_the_first_instant_that_is_refused(public: Service) -> None:
    """R17: a key works until the millisecond before it expires."""
    public.add_key("expiring-1", expires_ms=NONCE + 1)
    assert public.code(signed_query({"accesskey": "expiring-1"})) == 200
    public.clock.now_ms += 1
    assert public.code(signed_query({"accesskey": "expiring-1"})) == 307


def test_r17_revoked_key_stops_at_once(public: Service) -> None:
    """R17: a key that was in use a moment ago is refused from its revocation on; and so after a rotation."""
    assert public.code(signed_query()) == 200
    assert public.key_ring.revoke(KEY)
    assert document(public.ask(signed_query()))["info"] == AccessKeyRevoked().message
    accesskey, secret = public.key_ring.create("alice", ["read"])
    assert public.code(signed_query({"accesskey": accesskey}, secret=secret)) == 200
    renewed, renewed_secret = public.key_ring.rotate(accesskey)
    assert public.code(signed_query({"accesskey": accesskey}, secret=secret)) == 307
    assert public.code(signed_query({"accesskey": renewed}, secret=renewed_secret)) == 200


@pytest.mark.parametrize("path", ["/", "", "*", "/trade/api/v1/", "/trade/api/v2/getBalance", "/\ufffd", "/a" * 3000])
def test_r17_unknown_path_is_404_in_shape(public: Service, path: str) -> None:
    """R17: a path that isn't there is code 404 in the same shape."""
    assert document(public.ask(path=path)).keys() == {"code", "info", "msg", "msgInfo"}
    assert public.code(path=path) == 404


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "FOO"])
def test_r17_other_methods_are_404_in_shape(public: Service, method: str) -> None:
    """R17: a method that a call doesn't take is code 404 in the same shape."""
    assert document(public.ask(signed_query(), method=method)).keys() == {"code", "info", "msg", "msgInfo"}
    assert public.code(signed_query(), method=method) == 404
    assert public.ask(method=method, headers=[("accept", "application/problem+json")]).status == 405


def test_r17_trouble_inside_is_404_with_a_request_id(
    public: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R17: an unexpected exception is code 404 with a request id, without a trace; the places are in the log."""
    monkeypatch.setattr(type(public.ledger), "account", lambda ledger, account: {}[account])
    answer = public.ask(signed_query())
    said = document(answer)
    assert (answer.status, said["code"]) == (200, 404)
    assert str(header(answer, "x-request-id")) in said["info"]
    assert str(header(answer, "x-request-id")) in caplog.text
    assert b"Traceback" not in answer.body
    assert b".py" not in answer.body
    problem = public.ask(signed_query(), headers=[("accept", "application/problem+json")])
    assert (problem.status, document(problem)["code"]) == (500, "error")


def test_r17_access_key_whose_secret_does_not_open_is_404_in_shape(public: Service) -> None:
    """R17: damage, too, is code 404 in the shape, without a trace."""
    sealed_by_another_master_key(public)
    answer = public.ask(signed_query({"accesskey": "sealed-otherwise"}))
    assert (answer.status, document(answer)["code"]) == (200, 404)
    assert b"Traceback" not in answer.body


def test_r17_ledger_that_cannot_be_read_is_404_in_shape(public: Service) -> None:
    """R17: when the file can't be read, code 404 comes in the shape, and a true 503 where problems are asked for."""
    public.ledger.close()
    public.key_ring.forget()
    assert public.code(signed_query()) == 404
    assert public.ask(signed_query(), headers=[("accept", "application/problem+json")]).status == 503


def test_r18_info_of_a_success_can_be_set(tmp_path: Path, public: Service) -> None:
    """R18: info is success, or what the setting says, escaped as JSON demands."""
    assert document(public.ask(signed_query()))["info"] == "success"
    for info in ("Success", 'a"b\\成功'):
        with service(tmp_path / str(len(info)), success_info=info) as other:
            for path in (BALANCE, "/trade/api/v1/getAccounts", "/trade/api/v1/getServerTime"):
                assert document(other.ask(signed_query(), path))["info"] == info


def test_r19_headers_of_a_success(tmp_path: Path) -> None:
    """R19: no-store, a request id of its own, the ledger's position, and what is left of the limit."""
    with service(tmp_path) as public:
        first, second = public.ask(signed_query()), public.ask(signed_query())
    assert header(first, "cache-control") == "no-store"
    assert header(first, "x-request-id") != header(second, "x-request-id")
    assert header(first, "x-ledger-seq") == "6"
    assert header(first, "ratelimit-policy") == '"assets";q=3;w=1'
    assert [header(answer, "ratelimit") for answer in (first, second)] == ['"assets";r=2;t=1', '"assets";r=1;t=1']


def test_r19_ledger_position_moves_with_the_ledger(public: Service) -> None:
    """R19: X-Ledger-Seq is the entry that the balances stand for, and an answer is never older than it."""
    for number in range(1, 4):
        receipt = public.ledger.deposit("alice", "btc", "0.1", key=f"more-{number}")
        answer = public.ask(signed_query())
        assert header(answer, "x-ledger-seq") == str(receipt.seq)
        assert document(answer)["data"]["btc"]["available"] == f"0.{number}0"


def test_r19_retry_after_where_it_applies(tmp_path: Path) -> None:
    """R19: a refusal for too many requests says when to come again."""
    with service(tmp_path, lock_seconds=7) as public:
        answers = [public.ask(signed_query()) for _ in range(4)]
    assert [header(answer, "retry-after") for answer in answers] == [None, None, None, "7"]
    assert header(answers[3], "ratelimit") == '"assets";r=0;t=7'


def test_r19_gzip_only_where_asked_for(public: Service) -> None:
    """R19: a long body is compressed if Accept-Encoding asks for gzip, and never otherwise."""
    for number in range(30):
        public.ledger.list_coin(f"coin{number}", 8, key=f"coin{number}")
    plain = public.ask(signed_query())
    assert (header(plain, "content-encoding"), header(plain, "vary")) == (None, "accept-encoding")
    for asked in ("gzip", "deflate, gzip;q=0.5", "GZIP, br"):
        zipped = public.ask(signed_query(), headers=[("accept-encoding", asked)])
        assert header(zipped, "content-encoding") == "gzip"
        assert gzip.decompress(zipped.body) == plain.body
    for asked in ("", "identity", "gzip;q=0", "gzip; q=0.000", "x-gzip", "*"):
        assert public.ask(signed_query(), headers=[("accept-encoding", asked)]).body == plain.body


def test_r21_log_holds_nothing_secret(public: Service, caplog: pytest.LogCaptureFixture) -> None:
    """R21: at any level no log holds a query, a signature, a secret or a whole access key, trouble inside included."""
    caplog.set_level(logging.DEBUG)
    parameters = {"password": "hunter2hunter2"}
    queries = [
        signed_query(parameters),
        signed_query(parameters, secret="0" * 64),
        signed_query() + "&x=hunter2hunter2",
    ]
    for query in queries:
        public.ask(query)
        public.ask(query, "/v4/balances", headers=[("xt-validate-appkey", KEY), ("xt-validate-signature", "ab" * 32)])
        public.ask(query, f"/{query}")
    accesskey, secret = public.key_ring.create("bob", ["read"])
    sealed_by_another_master_key(public)
    troubling = signed_query({"accesskey": "sealed-otherwise", **parameters})
    assert public.code(troubling) == 404
    assert "does not open" in caplog.text
    queries.append(troubling)
    signatures = [query.rpartition("signature=")[2][:64] for query in queries]
    for hidden in (KEY, SECRET, accesskey, secret, "sealed-otherwise", "hunter2", *signatures, "accesskey="):
        assert hidden not in caplog.text


def test_r21_repr_of_what_holds_secrets_hides_them(public: Service) -> None:
    """R21: a record, a ready key and the cipher can be printed by accident without giving anything away."""
    record, ready = public.key_ring.get(KEY), public.key_ring.ready(KEY)
    assert ready is not None
    for shown in (repr(record), repr(ready), repr(ready.secret), repr(public.cipher), repr(public.key_ring)):
        assert KEY not in shown
        assert SECRET not in shown
        assert public.cipher.seal(KEY, SECRET).hex()[:8] not in shown


def test_r22_no_call_changes_anything(public: Service) -> None:
    """R22: whatever call a signed request is sent to, by whatever method, the journal stays as it is."""
    before = public.ledger.head
    for path in public.app._calls:
        for method in ("GET", "POST"):
            public.ask(signed_query({"account": "1"}), path, method=method)
            public.ask(method=method, path=path, body=signed_query({"account": "1"}).encode())
    assert public.ledger.head == before


def test_every_answer_is_compact_json(public: Service) -> None:
    """Each call answers one JSON object in UTF-8."""
    for path in public.app._calls:
        for query in ("", signed_query(), signed_query({"account": "2"})):
            assert isinstance(json.loads(public.ask(query, path).body.decode()), dict)


def test_r15_coins_with_marks_and_24_decimals_are_answered_whole(public: Service) -> None:
    """R15: usdt.e and lp-btc are coins by name beside usdt, and 24 decimals are shown to the last one."""
    for coin, scale in {"usdt.e": 6, "lp-btc": 24}.items():
        public.ledger.list_coin(coin, scale, key=f"coin-{coin}")
    public.ledger.deposit("alice", "lp-btc", "0.000000000000000000000001", key="least")
    public.ledger.freeze("alice", "lp-btc", "0.000000000000000000000001", key="least-frozen")
    assert document(public.ask(signed_query()))["data"] == {
        **ALICE,
        "lp-btc": {"freeze": "0.000000000000000000000001", "available": "0.00"},
        "usdt.e": {"freeze": "0.00", "available": "0.00"},
    }

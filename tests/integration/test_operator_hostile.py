"""Whatever is sent to the operator API, an answer of the documented shape comes back, and nothing unasked happens."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spotledger import errors
from spotledger.http import wire
from support_operator import Api, operator_api

CODES = {kind.code for kind in wire.TABLE}
PATHS = ["coins", "customers", "deposits", "holds", "holds/7/release", "withdrawals", "transfers", "keys", "tokens"]
FIELDS = ["customer", "coin", "scale", "amount", "account", "hold", "reference", "happened_ms", "expires_ms"]
FIELDS += ["from", "to", "permissions", "scopes", "addresses", "label", "key", "", "x"]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=80)
    | st.sampled_from(["alice", "usdt", "1", "0.5", "spot", "read", "1e5", "@external", "7", "ledger:read"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=7)
many = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One API for all examples: what they manage to write does no harm."""
    with operator_api(tmp_path_factory.mktemp("hostile") / "data") as made:
        made.set_up()
        yield made


def check_answer(answer: httpx2.Response) -> None:
    """Check that *answer* is a success, or a problem of the caller's making."""
    assert answer.headers["x-request-id"]
    if answer.status_code == 200:
        return
    assert 400 <= answer.status_code < 500, answer.text
    problem: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] in CODES
    assert problem["status"] == answer.status_code
    assert len(answer.content) < 4096


@many
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300), key=st.integers())
def test_any_bytes_as_a_body_are_answered(api: Api, path: str, body: bytes, key: int) -> None:
    """Bytes that are no JSON, or any JSON, are refused or done, never more than that."""
    check_answer(api.post(f"/v1/{path}", body, f"bytes{key}"))


@many
@given(path=st.sampled_from(PATHS), body=bodies)
def test_any_fields_with_any_values_are_answered(api: Api, path: str, body: dict[str, Any]) -> None:
    """Fields that exist with values that do not fit are refused by name."""
    check_answer(api.post(f"/v1/{path}", body))


@many
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD"]),
    path=st.lists(st.text(max_size=12) | st.sampled_from(["v1", "customers", "holds", "keys", "..", "."]), max_size=5),
    query=st.text(max_size=40),
)
def test_any_path_and_query_are_answered(api: Api, method: str, path: list[str], query: str) -> None:
    """Paths and queries of any text are answered; a HEAD has no body to look at."""
    url = "http://operator/" + "/".join(quote(part, safe="") for part in path) + "?" + quote(query, safe="=&")
    answer = api.request(method, url, headers=api.headers("any"))
    if method != "HEAD":
        check_answer(answer)


@many
@given(value=st.binary(max_size=80), name=st.sampled_from([b"authorization", b"idempotency-key", b"content-length"]))
def test_any_bytes_as_a_header_are_answered(api: Api, name: bytes, value: bytes) -> None:
    """Header values of any bytes are answered; an access is never had by accident."""
    headers = {key.lower().encode(): text.encode() for key, text in api.headers("any").items()} | {name: value}
    answer = api.request("POST", "/v1/deposits", headers=list(headers.items()), content=b"{}")
    check_answer(answer)
    assert answer.status_code == (401 if name == b"authorization" else 422)


def test_balances_after_all_of_it_are_whole(api: Api) -> None:
    """After the examples above the feed still has no gaps and adds up to zero."""
    after, total = 0, Decimal()
    while entries := api.get("/v1/entries", after_seq=after).json()["entries"]:
        assert [entry["seq"] for entry in entries] == list(range(after + 1, after + 1 + len(entries)))
        total += sum(Decimal(posting["amount"]) for entry in entries for posting in entry["postings"])
        after = entries[-1]["seq"]
    assert (after, total) == (api.seq, 0)


def test_problem_of_an_error_outside_the_table_is_internal() -> None:
    """An error without a row is 500, never the caller's mistake."""
    assert wire.row_of(errors.SpotledgerError).status == 500

"""Statements over HTTP: pages of JSON, and CSV that a spreadsheet opens and nothing in it obeys."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.history import statement
from spotledger.http.operator.history.csv_rows import row, text_cell
from spotledger.ledger.reads import LedgerReads
from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}
FORMULA = '=HYPERLINK("http://evil","x"), y'


@pytest.fixture(params=[65_536, 8], ids=["in-memory", "sealed"])
def api(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Api]:
    """An API over a ledger with a busy alice; its segments large, or sealed again and again."""
    with operator_api(tmp_path / "data", segment_entries=request.param) as made:
        made.set_up()
        for number in range(20):
            body = {**ALICE_USDT, "amount": "2.5", "reference": FORMULA}
            written = made.must("/v1/deposits", body, f"+d{number}")
            made.must("/v1/withdrawals", {**ALICE_USDT, "amount": "1.25"}, f"-w{number}")
        made.must("/v1/reversals", {"seq": written["seq"], "reason": "booked twice"}, "reversal")
        made.must("/v1/house-accounts", {"name": "receivables", "may_be_negative": True}, "open")
        for number in range(9):
            legs = [{**ALICE_USDT, "amount": "1"}, {"customer": "@receivables", "coin": "usdt", "amount": "-1"}]
            made.must("/v1/postings", {"legs": legs}, f"lent{number}")
        yield made


def statement_of(api: Api, customer: str = "alice", **params: Any) -> dict[str, Any]:
    """Return one page."""
    answer = api.get(f"/v1/customers/{customer}/statement", **params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def check_sums(page: dict[str, Any]) -> None:
    """Add up a page as a person would: opening and changes are what each line has after it, and closing."""
    sides = ("available", "freeze", "owes")
    now = {(row["account"], row["coin"]): [Decimal(row[side]) for side in sides] for row in page["opening"]}
    for line in page["lines"]:
        balances = now[line["account"], line["coin"]]
        for number, side in enumerate(sides):
            balances[number] += Decimal(line[side])
        assert balances == [Decimal(line[f"{side}_after"]) for side in sides]
    closing = {(row["account"], row["coin"]): [Decimal(row[side]) for side in sides] for row in page["closing"]}
    assert now == closing


def csv_of(api: Api, customer: str = "alice", **params: Any) -> bytes:
    """Return a statement as CSV."""
    headers = {**api.headers(), "Accept": "text/csv"}
    answer = api.run(api.http.get(f"/v1/customers/{customer}/statement", params=params, headers=headers))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert answer.headers["content-disposition"] == f'attachment; filename="statement-{customer}.csv"'
    found: bytes = answer.content
    return found


@pytest.mark.parametrize("customer", ["alice", "bob", "@external", "@fees", "@receivables"])
def test_statement_adds_up_and_says_what_is_there_now(api: Api, customer: str) -> None:
    """The closing of a statement without an end is the balances of now."""
    page = statement_of(api, customer)
    check_sums(page)
    assert (page["seq"], page["next"]) == (api.seq, None)
    balances = api.get(f"/v1/customers/{customer}/balances").json()["balances"]
    for closing in page["closing"]:
        if closing["account"] in ("spot", "house"):
            assert balances[closing["coin"]] == {"available": closing["available"], "freeze": closing["freeze"]}


def test_house_account_that_was_opened_has_a_statement_like_others(api: Api) -> None:
    """What it lent is below zero, and not owed, although its name begins like that of what customers owe."""
    page = statement_of(api, "@receivables")
    assert page["closing"] == [
        {"account": "house", "coin": "usdt", "available": "-9.00", "freeze": "0.00", "owes": "0.00"}
    ]
    assert {(line["kind"], line["account"], line["available"]) for line in page["lines"]} == {
        ("post", "house", "-1.00")
    }
    assert csv_of(api, "@receivables").count(b",post,house,usdt,-1.00,") == 9
    assert api.get("/v1/customers/@treasury/statement").status_code == 404
    assert api.get("/v1/customers/@receivables/statement", account="spot").status_code == 422


def test_pages_follow_each_other(api: Api) -> None:
    """The closing of a page is the opening of the next; together they have the lines of the whole."""
    whole = statement_of(api, coin="usdt")
    lines: list[Any] = []
    opening, after = whole["opening"], None
    while True:
        page = statement_of(api, coin="usdt", limit=7, **({} if after is None else {"after_seq": after}))
        check_sums(page)
        assert page["opening"] == opening
        lines += page["lines"]
        opening, after = page["closing"], page["next"]
        if after is None:
            break
    assert (lines, opening) == (whole["lines"], whole["closing"])


def test_period_begins_and_ends_where_it_says(api: Api) -> None:
    """Its start is inclusive and its end exclusive; neighbouring periods have each line once."""
    whole = statement_of(api)
    times = sorted({line["booked_ms"] for line in whole["lines"]})
    middle = times[len(times) // 2]
    first, second = statement_of(api, to_ms=middle), statement_of(api, from_ms=middle)
    check_sums(first)
    check_sums(second)
    assert first["lines"] + second["lines"] == whole["lines"]
    assert all(line["booked_ms"] < middle for line in first["lines"])
    assert {tuple(sorted(balance.items())) for balance in first["closing"]} <= {
        tuple(sorted(balance.items())) for balance in second["opening"]
    }
    assert statement_of(api, from_ms=0, to_ms=10**12)["closing"] == []
    assert statement_of(api, from_ms=10**14)["lines"] == []


def test_account_narrows_it_down(api: Api) -> None:
    """One account of a customer, and no other."""
    transfer = {"from": {"customer": "alice"}, "to": {"customer": "alice", "account": "wallet"}}
    api.must("/v1/transfers", {**transfer, "coin": "usdt", "amount": "3"}, "t")
    page = statement_of(api, account="wallet")
    assert [(line["account"], line["available"]) for line in page["lines"]] == [("wallet", "3.00")]
    check_sums(page)


def test_csv_has_the_same_rows_as_json(api: Api) -> None:
    """Opening, lines and closing, with the columns named in the first row, and signs on what goes out."""
    page = statement_of(api)
    text = csv_of(api)
    assert text.count(b"\r\n") == text.count(b"\n") == len(page["lines"]) + len(page["opening"]) * 2 + 1
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    assert list(rows[0]) == list(statement.COLUMNS)
    for kind in ("opening", "closing"):
        found = [row for row in rows if row["kind"] == kind]
        assert [(row["account"], row["coin"], row["available_after"]) for row in found] == [
            (balance["account"], balance["coin"], balance["available"]) for balance in page[kind]
        ]
    lines = [row for row in rows if row["kind"] not in ("opening", "closing")]
    sides = [side + after for after in ("", "_after") for side in ("available", "freeze", "owes")]
    assert [[row[side] for side in sides] for row in lines] == [
        [line[side] for side in sides] for line in page["lines"]
    ]
    assert [int(row["seq"]) for row in lines] == [line["seq"] for line in page["lines"]]
    assert "-1.25" in [row["available"] for row in lines]


def test_csv_has_no_formula_and_signed_numbers_stay_numbers(api: Api) -> None:
    """Texts of callers that begin like a formula get an apostrophe, and nothing else does."""
    rows = list(csv.DictReader(io.StringIO(csv_of(api).decode())))
    assert {row["reference"] for row in rows} >= {f"'{FORMULA}", "booked twice"}
    assert {row["key"][:3] for row in rows} >= {"'+d", "'-w"}
    for found in rows:
        for name, cell in found.items():
            if cell[:1] in ("=", "+", "@") or (cell[:1] == "-" and name in ("key", "reference", "kind", "account")):
                raise AssertionError(f"{name} {cell} is a formula")
    assert [text_cell(text) for text in ("=1", "\t1", "\r1", "a=1", 'a"b', "a,b")] == [
        *("'=1", "'\t1", '"\'\r1"', "a=1", '"a""b"', '"a,b"')
    ]
    assert row(("-1.5", "x")) == "-1.5,x\r\n"


def test_csv_begins_with_a_byte_order_mark_on_wish(api: Api) -> None:
    """Excel takes a file without one for another encoding; others do not want it."""
    plain = csv_of(api)
    assert csv_of(api, bom="true") == b"\xef\xbb\xbf" + plain
    assert csv_of(api, bom="false") == plain


def test_csv_is_streamed_in_small_pieces(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the period, no more than a few lines are in memory, and the reader sets the pace."""
    monkeypatch.setattr(statement, "PIECE_ROWS", 4)
    whole = csv_of(api)
    pieces = api.run(pieces_of(api))
    assert b"".join(pieces) == whole
    assert len(pieces) > 10
    assert max(map(len, pieces)) < len(whole) / 3


class Reader:
    """Takes the pieces of a streamed answer; disconnects after *count* of them."""

    def __init__(self, count: int = 10**6) -> None:
        self.pieces: list[bytes] = []
        self._count = count

    async def send(self, piece: bytes) -> None:
        """Take a piece."""
        if len(self.pieces) == self._count:
            raise OSError("gone")
        self.pieces.append(piece)

    async def gone(self) -> None:
        """Never return: this reader stays."""
        await asyncio.Event().wait()


async def opened(api: Api, customer: str = "alice") -> Reply:
    """Ask for a statement as CSV, below the HTTP server."""
    headers = [(b"authorization", api.headers()["Authorization"].encode()), (b"accept", b"text/csv")]
    return await api.app.answer(Request("GET", f"/v1/customers/{customer}/statement", "", headers))


async def pieces_of(api: Api) -> list[bytes]:
    """Return what a reader is sent, piece by piece."""
    reply, reader = await opened(api), Reader()
    assert reply.stream is not None
    assert await reply.stream(reader)
    return reader.pieces


def test_reader_that_disconnects_ends_the_stream(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends, says that it was not sent completely, and lets another one begin."""
    monkeypatch.setattr(statement, "PIECE_ROWS", 4)
    monkeypatch.setattr(statement, "STREAMS_LIMIT", 1)

    async def disconnected() -> bool:
        reply = await opened(api)
        assert reply.stream is not None
        return await reply.stream(Reader(2))

    assert not api.run(disconnected())
    assert api.run(pieces_of(api))


def test_no_more_streams_than_may_be(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused at once, and passes when one has ended."""
    monkeypatch.setattr(statement, "STREAMS_LIMIT", 1)

    async def two_at_once() -> int:
        reply, waiting = await opened(api), asyncio.Event()

        class Slow(Reader):
            async def send(self, piece: bytes) -> None:
                await waiting.wait()

        assert reply.stream is not None
        sending = asyncio.ensure_future(reply.stream(Slow()))
        await asyncio.sleep(0)
        refused = (await opened(api)).status
        waiting.set()
        await sending
        return refused

    assert api.run(two_at_once()) == 503
    assert csv_of(api)


def test_stream_that_meets_damage_breaks_off_before_its_closing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is a file without closing; the answer is not ended as a complete one."""
    monkeypatch.setattr(statement, "PIECE_ROWS", 4)
    read, count = LedgerReads.statement_lines, []

    def damaged(*arguments: Any) -> Any:
        count.append(1)
        page = read(*arguments)
        return page._replace(lines=page.lines[1:]) if len(count) == 3 else page

    monkeypatch.setattr(LedgerReads, "statement_lines", damaged)

    async def broken() -> bytes:
        reply, reader = await opened(api), Reader()
        assert reply.stream is not None
        assert not await reply.stream(reader)
        return b"".join(reader.pieces)

    assert b",closing," not in api.run(broken())


@pytest.mark.parametrize(
    ("customer", "params", "status", "field"),
    [
        ("nobody", {}, 404, None),
        ("@nothing", {}, 404, None),
        ("alice", {"coin": "BTC"}, 422, "coin"),
        ("alice", {"account": "margin"}, 422, "account"),
        ("@fees", {"account": "spot"}, 422, "account"),
        ("alice", {"from_ms": 10**12, "to_ms": 10**12 - 1}, 422, "to_ms"),
        ("alice", {"from_ms": 1_700_000_000}, 422, "from_ms"),
        ("alice", {"to_ms": 1_700_000_000}, 422, "to_ms"),
        ("alice", {"bom": "yes"}, 422, "bom"),
        ("alice", {"at_seq": 4}, 422, "at_seq"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    api: Api, customer: str, params: dict[str, Any], status: int, field: str | None
) -> None:
    """Each refusal names its field."""
    answer = api.get(f"/v1/customers/{customer}/statement", **params)
    assert (answer.status_code, answer.json().get("field")) == (status, field)

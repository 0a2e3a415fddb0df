"""What a command prints: tables and lines for people, or with ``--json`` one document, and errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

import pytest

from spotledger.cli.output import Output
from spotledger.errors import InsufficientAvailable, LedgerCorrupt

BIG = Decimal("589000000000000.123456789012345678")


def print_all(out: Output) -> None:
    out.document({"name": "余额", "amount": "1.50"})
    out.line("a line")
    out.table(
        ("coin", "amount", "may"), [("btc", Decimal("0.00000001"), ("read", "trade")), (None, BIG, ())], "a title"
    )
    out.balances([("btc", BIG, Decimal("1.00")), ("eth", Decimal("0.00"), Decimal("0.00"))], with_empty=False)


def test_output_for_people_has_lines_and_tables_and_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Amounts are plain decimals with all their digits, lists are joined, and what is None is blank."""
    print_all(Output())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["a", "line"],
        ["a", "title"],
        ["coin", "amount", "may"],
        ["btc", "0.00000001", "read,", "trade"],
        [str(BIG)],
        ["coin", "available", "freeze", "total"],
        ["btc", str(BIG), "1.00", "589000000000001.123456789012345678"],
    ]


def test_output_as_json_has_the_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets one JSON document on standard output and nothing else."""
    print_all(Output(as_json=True))
    printed = capsys.readouterr()
    assert (json.loads(printed.out), printed.err) == ({"name": "余额", "amount": "1.50"}, "")


def test_output_as_json_computes_no_rows() -> None:
    """Rows that nobody reads are not made."""

    def rows() -> Iterator[tuple[str, Decimal, Decimal]]:
        pytest.fail("a row was made")
        yield "btc", BIG, BIG

    Output(as_json=True).balances(rows(), with_empty=True)
    Output(as_json=True).table(("coin", "available", "freeze"), rows())


def test_error_is_one_line_or_its_problem_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors go to standard error, with their code; as JSON with their details and the seq of a kept refusal."""
    error = InsufficientAvailable("There is too little.", available="1.00")
    error.seq = 7
    for as_json in (False, True):
        Output(as_json).error(error)
    printed = capsys.readouterr()
    line, document = printed.err.splitlines()
    assert printed.out == ""
    assert line == "spotledger: There is too little. [insufficient_available]"
    found = json.loads(document)
    assert (found["code"], found["available"], found["seq"]) == ("insufficient_available", "1.00", 7)
    Output().error(LedgerCorrupt("entry 3"))
    assert capsys.readouterr().err == "spotledger: The ledger is damaged: entry 3. [ledger_damaged]\n"


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal nothing is drawn, so that logs stay readable."""
    with Output().progress() as tell:
        tell("audit", 1, 2)
        tell("audit", 2, 2)
    assert capsys.readouterr() == ("", "")

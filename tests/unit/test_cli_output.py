"""What a command prints: tables and lines for people, or with ``--json`` one document, and errors on standard error."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from decimal import Decimal

import pytest

from spotledger.cli.output import Output
from spotledger.cli.service import LogFormatter
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
    kept = "entry 7 keeps this refusal with its key: use another key to try again"
    assert line == f"spotledger: There is too little. [insufficient_available]; {kept}"
    found = json.loads(document)
    assert (found["code"], found["available"], found["seq"]) == ("insufficient_available", "1.00", 7)
    Output().error(LedgerCorrupt("entry 3"))
    assert capsys.readouterr().err == "spotledger: The ledger is damaged: entry 3. [ledger_damaged]\n"


def test_refusal_of_a_dry_run_is_not_said_to_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing keeps it; unless it is a repeat of one that was kept before."""
    error = InsufficientAvailable("There is too little.", dry_run=True)
    error.seq = 7
    Output().error(error)
    error.replayed = True
    Output().error(error)
    tried, again = capsys.readouterr().err.splitlines()
    assert tried.endswith("[insufficient_available]; a dry run: nothing was booked, and the key stays unused")
    assert again.endswith("; a repeat of entry 7, which keeps this refusal with its key: use another key to try again")


ATTACK = "a\x1b]0;title\x07\x1b[2J\u202eb\u2028\x9b1A\rc"
ESCAPED = r"a\u001b]0;title\u0007\u001b[2J\u202eb\u2028\u009b1A\rc"


@pytest.mark.parametrize("as_json", [False, True])
def test_output_moves_no_cursor_and_turns_no_text(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a server, a file or a customer wrote reaches the terminal as visible text, also in JSON."""
    out = Output(as_json)
    out.document({"a": ATTACK, ATTACK: 1})
    out.line(ATTACK)
    out.table(("coin", "why"), [("btc", ATTACK), ("btc", (ATTACK, "x"))], title=ATTACK)
    out.json({"a": ATTACK})
    out.text(ATTACK)
    out.error(InsufficientAvailable(ATTACK, detail_of_server=ATTACK))
    printed = capsys.readouterr()
    assert {character for character in printed.out + printed.err if not character.isprintable()} == {"\n"}
    assert ESCAPED in printed.out
    assert ESCAPED in printed.err


def test_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A text cannot add a line of its own to a line or a table."""
    Output().line("a\nb")
    Output().table(("why",), [("a\nb",)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["a\\nb", "why", "a\\nb"]


def test_log_of_a_text_is_one_line_and_its_traceback_looks_like_none() -> None:
    """What a caller sent can neither forge a log line nor move the cursor of who reads the log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        int("sent\nERROR forged \x1b[2J\u202e", 16)
    except ValueError:
        logger.exception("failed: %s", "x\nERROR forged\x1b[2J")
    lines = stream.getvalue().splitlines()
    assert lines[0] == r"ERROR failed: x\nERROR forged\u001b[2J"
    assert not [line for line in lines[1:] if line.startswith("ERROR")]
    assert "\x1b" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal nothing is drawn, so that logs stay readable."""
    with Output().progress() as tell:
        tell("audit", 1, 2)
        tell("audit", 2, 2)
    assert capsys.readouterr() == ("", "")

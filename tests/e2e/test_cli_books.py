"""The commands about trades, batches, history, any moment, old holds and the trial balance."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spotledger.cli import books, trades
from spotledger.cli.connection import CommandLedger
from spotledger.cli.main import program
from spotledger.client.operator.messages import Reply
from spotledger.domain.operations import Deposit
from spotledger.http.operator import calls
from spotledger.ledger.writer import Writer
from spotledger.ops.opening import open_embedded
from support_core import raw
from support_service import Service

StartService = Callable[..., Service]

SETUP = [
    ("coin", "add", "usdt", "--scale", "8"),
    ("coin", "add", "btc", "--scale", "8"),
    ("customer", "add", "alice"),
    ("customer", "add", "bob"),
    ("deposit", "alice", "usdt", "100", "--key", "d1", "--reference", "tx 1"),
    ("deposit", "bob", "btc", "2", "--key", "d2"),
    ("freeze", "alice", "usdt", "60", "--key", "buy", "--reference", "order-1"),
    ("freeze", "bob", "btc", "1", "--key", "sell"),
]
SETTLE = (
    *("settle", "--base", "btc", "--quote", "usdt", "--base-amount", "0.5", "--quote-amount", "50"),
    *("--buyer-hold", "key:buy", "--buyer-fee", "btc", "0.001", "--buyer-release", "rest"),
    *("--seller-hold", "8", "--seller-fee", "usdt", "0.1", "--reference", "trade-1", "--key", "fill"),
)


def spotledger(data: Path, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on the data folder *data*, within this process."""
    result = CliRunner().invoke(
        program,
        arguments,
        prog_name="spotledger",
        env={"SPOTLEDGER_DATA": str(data)},
        input=stdin,
        catch_exceptions=False,
    )
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def told(data: Path, *arguments: str) -> Any:
    """Run a command that must succeed, and return its JSON document."""
    done = spotledger(data, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder without a server, in which alice may buy btc from bob."""
    folder = tmp_path / "data"
    for arguments in SETUP:
        done = spotledger(folder, *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def test_legs_of_a_file_are_posted_and_a_fill_pays_a_rebate(data: Path, tmp_path: Path) -> None:
    """CSV with columns in any order, the account optional; a file of another form is refused with its line."""
    told(data, "house-account", "open", "treasury")
    told(data, "deposit", "@treasury", "usdt", "50", "--key", "h1")
    legs = tmp_path / "legs.csv"
    legs.write_text("\ufeffamount,customer,coin,account\n-3,@treasury,usdt,\n1,alice,usdt,\n2,bob,usdt,wallet\n")
    posted = spotledger(data, "post", str(legs), "--key", "drop", "--reason", "airdrop")
    assert "post" in posted.stdout.splitlines()[0], posted.stderr
    assert told(data, "balances", "bob", "--account", "wallet")["balances"]["usdt"]["available"] == "2.00"
    assert "airdrop" in spotledger(data, "history", "alice").stdout
    for text, found in (
        ("customer,coin\nalice,usdt\n", "has to name the columns"),
        ("customer,coin,amount,customer\n", "has to name the columns"),
        ("customer,coin,amount\nalice,usdt\n", "line 2 has 2 values"),
        ("customer,coin,amount\nalice,usdt,-1\nbob,usdt,0.5\n", "the legs sum to -0.5 usdt"),
        ("customer,coin,amount\nalice,usdt,1\n@treasury,usdt,-48\n", "sum to"),
    ):
        legs.write_text(text)
        refused = spotledger(data, "post", str(legs), "--key", "bad")
        assert refused.returncode == 1
        assert found in refused.stderr
    rebate = [*SETTLE[:-9], "--seller-hold", "key:sell", "--seller-fee", "usdt", "-0.1", "--key", "rebate"]
    assert "@treasury" in spotledger(data, *rebate, "--fee-account", "@treasury").stdout


def test_house_account_is_opened_and_used_by_name(data: Path) -> None:
    """Opening again changes nothing; money goes to and from it, and its holds and history are shown."""
    opened = spotledger(data, "house-account", "open", "treasury")
    assert opened.stdout == spotledger(data, "house-account", "open", "treasury").stdout
    assert opened.stdout.startswith("house account @treasury is open (entry ")
    told(data, "house-account", "open", "credit", "--may-be-negative")
    listed = spotledger(data, "house-account", "list").stdout
    assert [line.split() for line in listed.splitlines() if "@" in line][1] == ["@dust", "no"]
    assert ["@credit", "yes"] in [line.split() for line in listed.splitlines()]
    deposit = spotledger(data, "deposit", "@treasury", "usdt", "50", "--key", "h1")
    assert "@treasury" in deposit.stdout
    told(data, "transfer", "@treasury", "alice", "usdt", "5", "--key", "h2")
    told(data, "transfer", "alice", "@treasury", "usdt", "1", "--from-account", "spot", "--key", "h3")
    told(data, "withdraw", "@treasury", "usdt", "6", "--key", "h4")
    told(data, "freeze", "@treasury", "usdt", "10", "--key", "h5")
    assert told(data, "balances", "@treasury")["balances"]["usdt"] == {"available": "30.00", "freeze": "10.00"}
    history = spotledger(data, "history", "@treasury").stdout
    assert "house" in history
    assert "owed" not in history
    assert "@treasury freeze" in spotledger(data, "trial-balance").stdout
    short = spotledger(data, "withdraw", "@treasury", "usdt", "31", "--key", "h6")
    assert short.returncode == 1
    assert "@treasury has 30.00 usdt available" in short.stderr


def usdt(data: Path, *more: str) -> tuple[str, str]:
    balance = told(data, "balances", "alice", *more)["balances"]["usdt"]
    return balance["available"], balance["freeze"]


def test_settle_by_options_and_from_a_file_are_the_same(data: Path, tmp_path: Path) -> None:
    """The options make the body that the file has: the second is the repeat of the first."""
    first = told(data, *SETTLE)
    assert usdt(data) == ("50.00", "0.00")
    file = tmp_path / "fill.json"
    file.write_text(
        json.dumps(
            {
                "base": "btc",
                "quote": "usdt",
                "base_amount": "0.50",
                "quote_amount": "50.0",
                "buyer": {"hold": {"key": "buy"}, "fee": {"coin": "btc", "amount": "0.001"}, "release": "rest"},
                "seller": {"hold": "8", "fee": {"coin": "usdt", "amount": "0.1"}},
                "reference": "trade-1",
            }
        )
    )
    again = told(data, "settle", str(file), "--key", "fill")
    assert (again["seq"], again["replayed"]) == (first["seq"], True)
    shown = spotledger(data, "settle", str(file), "--key", "fill")
    assert "settle, done before under this key" in shown.stdout
    assert told(data, "reverse", str(first["seq"]), "--reason", "bad price", "--key", "undo")["entry"]["kind"] == (
        "reverse"
    )
    assert usdt(data) == ("100.00", "0.00")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("settle", "--key", "k"), "--base"),
        (("settle", "-", "--base", "btc", "--key", "k"), "not both"),
        (("reverse", "5", "--key", "k"), "--reason"),
        (("reverse", "0", "--reason", "x", "--key", "k"), "SEQ"),
        (("holds", "--state", "closed"), "CUSTOMER"),
        (("holds", "--older-than", "7"), "90d"),
        (("balances", "alice", "--at", "yesterday"), "2026-01-31"),
    ],
)
def test_command_used_wrongly_says_how_it_is_used(data: Path, arguments: tuple[str, ...], said: str) -> None:
    """What is missing or of the wrong form is named, with exit code 2."""
    done = spotledger(data, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_history_shows_a_statement_that_adds_up(data: Path) -> None:
    """Opening, each movement with the balance after it, closing; for people and as a document."""
    spotledger(data, *SETTLE)
    done = spotledger(data, "history", "alice", "--coin", "usdt")
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "alice, as of entry 9"
    assert lines[2].split()[:5] == ["opening", "spot", "usdt", "0.00", "0.00"]
    assert [line.split()[0] for line in lines[3:-1]] == ["5", "7", "9"]
    assert lines[-1].split()[:5] == ["closing", "spot", "usdt", "50.00", "0.00"]
    assert "order-1" in done.stdout
    document = told(data, "history", "alice")
    assert [entry["seq"] for entry in document["entries"]] == [5, 7, 9]
    assert told(data, "history", "alice", "--after", "5", "--limit", "1")["next_after_seq"] == 7
    refused = spotledger(data, "history", "nobody")
    assert (refused.returncode, "not_found" in refused.stderr) == (1, True)


def test_balances_at_a_seq_and_at_a_time_are_the_past(data: Path) -> None:
    """Any moment: by entry, by ISO time with and without a zone, by milliseconds."""
    assert usdt(data, "--at-seq", "5") == ("100.00", "0.00")
    assert usdt(data, "--at-seq", "4") == ("0.00", "0.00")
    now = time.time()
    for text in (str(int(now * 1000)), datetime.fromtimestamp(now, UTC).isoformat()):
        assert usdt(data, "--at", text) == ("40.00", "60.00")
    assert usdt(data, "--at", "2020-01-01") == ("0.00", "0.00")


@pytest.mark.parametrize("text", ["2999-01-01", "2999-01-01T10:00:00+02:00", "32503680000000"])
def test_moment_in_the_future_is_refused_in_the_words_it_was_asked_in(data: Path, text: str) -> None:
    """The option and its text are named, and what now is in the same form."""
    for command in (("balances", "alice"), ("trial-balance",)):
        refused = spotledger(data, *command, "--at", text)
        assert refused.returncode == 1
        assert f"--at is {text}, in the future; a time up to " in refused.stderr
        assert "at_ms" not in refused.stderr
        assert ("T" in refused.stderr) == (not text.isdecimal())


@pytest.mark.parametrize("text", ["1700000000", "0", "1999-12-31"])
def test_moment_before_2001_is_wrong_usage(data: Path, text: str) -> None:
    """Seconds where milliseconds are meant would show empty balances."""
    refused = spotledger(data, "balances", "alice", "--at", text)
    assert (refused.returncode, "before the year 2001" in refused.stderr) == (2, True)


def test_coin_that_is_listed_advises_no_other_key(data: Path) -> None:
    """The same again is a repeat; another scale is refused for good."""
    assert spotledger(data, "coin", "add", "usdt", "--scale", "8").returncode == 0
    refused = spotledger(data, "coin", "add", "usdt", "--scale", "6")
    assert (refused.returncode, "key of its own" in refused.stderr) == (1, False)
    assert "coin usdt is already listed with scale 8, and a listing never changes" in refused.stderr


def test_hold_past_its_time_is_shown_as_due(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server nothing books its expiry yet; the table says due, and the document has it beside open."""
    spotledger(data, "freeze", "alice", "usdt", "1", "--key", "short", "--expires", "1s")
    (short,) = [hold for hold in told(data, "holds", "alice")["holds"] if hold.get("key") == "short"]
    time.sleep(max(0.0, short["expires_ms"] / 1000 - time.time()) + 0.01)
    monkeypatch.setattr(Writer, "_expire", lambda self: asyncio.sleep(0))
    (line,) = [line for line in spotledger(data, "holds", "alice").stdout.splitlines() if " short " in line]
    assert line.split()[1] == "due"
    (short,) = [hold for hold in told(data, "holds", "alice")["holds"] if hold.get("key") == "short"]
    assert (short["state"], short["due"]) == ("open", True)


def test_dry_run_of_every_command_that_writes_books_nothing(data: Path, tmp_path: Path) -> None:
    """Each shows what it would do, for people and as JSON, and the head stays where it was."""
    settle = [*SETTLE[:-2], "--key", "dry"]
    batch = tmp_path / "batch.jsonl"
    batch.write_text(json.dumps({"op": "deposit", "key": "b1", "customer": "bob", "coin": "usdt", "amount": "1"}))
    for arguments in (
        ("coin", "add", "doge", "--scale", "8"),
        ("customer", "add", "carol"),
        ("deposit", "alice", "usdt", "1", "--key", "dry"),
        ("freeze", "alice", "usdt", "1", "--key", "dry"),
        ("unfreeze", "key:buy", "--key", "dry"),
        ("withdraw", "alice", "usdt", "1", "--key", "dry"),
        ("transfer", "alice", "bob", "usdt", "1", "--key", "dry"),
        ("reverse", "5", "--reason", "oops", "--key", "dry"),
        settle,
        ("batch", str(batch)),
    ):
        shown = spotledger(data, *arguments, "--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert "nothing was booked" in shown.stdout or "would be" in shown.stdout
        assert told(data, *arguments, "--dry-run")["dry_run"] is True
    assert told(data, "balances", "alice")["seq"] == len(SETUP)
    assert spotledger(data, "deposit", "alice", "usdt", "1", "--key", "dry").stdout.startswith("entry 9: deposit\n")


def test_dry_run_of_a_batch_keeps_no_refusal(data: Path) -> None:
    """A refusal is said to be kept only if an earlier write was refused so."""
    assert spotledger(data, "withdraw", "alice", "usdt", "1000", "--key", "kept").returncode == 1
    operation = {"op": "withdraw", "customer": "alice", "coin": "usdt", "amount": "1000"}
    for key, told_kept in (("tried", []), ("kept", ["entry", "9", "yes"])):
        line = json.dumps({**operation, "key": key}).encode()
        shown = spotledger(data, "batch", "-", "--dry-run", stdin=line).stdout
        (row,) = [row for row in shown.splitlines() if row.startswith(f"{key} ")]
        assert row.split("asked for")[1].split() == told_kept
        assert ("What is kept" in shown) == bool(told_kept)


@pytest.mark.parametrize("latest", ["2020-01-01", "1600000000000"])
def test_write_after_its_latest_time_is_refused(data: Path, latest: str) -> None:
    """The option takes a duration from now, a date, or milliseconds."""
    late = spotledger(data, "deposit", "alice", "usdt", "1", "--key", "late", "--not-after", latest)
    assert (late.returncode, "[too_late]" in late.stderr) == (1, True)
    in_time = spotledger(data, "deposit", "alice", "usdt", "1", "--key", "late", "--not-after", "90d")
    assert (in_time.returncode, "entry 9" in in_time.stdout) == (0, True)
    wrong = spotledger(data, "deposit", "alice", "usdt", "1", "--key", "late", "--not-after", "soon")
    assert (wrong.returncode, "is not a time" in wrong.stderr) == (2, True)


def test_repeat_of_a_refusal_is_told_with_what_to_do(data: Path) -> None:
    """At first the entry is named that keeps the refusal; a repeat is marked, also in JSON and in a batch."""
    command = ("withdraw", "alice", "usdt", "1000", "--key", "w")
    first, again = spotledger(data, *command), spotledger(data, *command)
    assert "; entry 9 keeps this refusal with its key: use another key to try again" in first.stderr
    assert "; a repeat of entry 9, which keeps this refusal with its key: use another key to try again" in again.stderr
    document = json.loads(spotledger(data, *command, "--json").stderr)
    assert (document["seq"], document["replayed"]) == (9, True)
    unknown = spotledger(data, "deposit", "alice", "doge", "1", "--key", "d")
    assert unknown.stderr.rstrip().endswith("[unknown_coin]")
    operation = {"op": "withdraw", "key": "w", "customer": "alice", "coin": "usdt", "amount": "1000"}
    batch = spotledger(data, "batch", "-", stdin=json.dumps(operation).encode())
    (line,) = [line for line in batch.stdout.splitlines() if line.startswith("w ")]
    assert (batch.returncode, line.split()[-3:]) == (1, ["entry", "9", "yes"])
    assert "use another key to try it again" in batch.stdout


def test_amounts_of_many_digits_are_shown_exactly(data: Path) -> None:
    """A total, and what moved, has all its digits, where Python's usual decimals have 28."""
    big, least = "99999999999999.999999999999999999999999", "0.000000000000000000000001"
    for arguments in (
        ("coin", "add", "shib", "--scale", "24"),
        ("deposit", "alice", "shib", big, "--key", "many"),
        ("freeze", "alice", "shib", least, "--key", "few"),
    ):
        assert spotledger(data, *arguments).returncode == 0
    balances = spotledger(data, "balances", "alice").stdout.splitlines()
    row = next(line.split() for line in balances if line.startswith("shib"))
    assert row[1:] == [f"{big[:-1]}8", least, big]
    assert f"+{big}" in spotledger(data, "history", "alice").stdout
    assert f"-{big}" in spotledger(data, "trial-balance").stdout
    assert f"available {big} shib" in spotledger(data, "feed").stdout


def test_balances_show_what_is_owed(data: Path) -> None:
    """A customer who owes is shown so, with the amount."""
    spotledger(data, "unfreeze", "key:buy", "--key", "u")
    spotledger(data, "withdraw", "alice", "usdt", "90", "--key", "w")
    spotledger(data, "reverse", "5", "--reason", "never arrived", "--key", "r")
    assert "owes 90.00 usdt" in spotledger(data, "balances", "alice").stdout


@pytest.mark.parametrize("customer", ["", ".", ".."])
def test_holds_of_nobody_are_refused(data: Path, customer: str) -> None:
    """A customer ``..`` is not taken for the path above, which has everybody's holds."""
    done = spotledger(data, "holds", customer)
    assert done.returncode == 1
    assert "is the id of nothing" in done.stderr
    assert done.stdout == ""


def test_holds_of_all_customers_are_shown_by_age(data: Path) -> None:
    """Without a customer: everybody's open holds, with whose, why, the key and the age."""
    done = spotledger(data, "holds")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["alice", "bob"]
    assert "order-1" in done.stdout
    assert "buy" in done.stdout
    assert [hold["key"] for hold in told(data, "holds", "--older-than", "1s")["holds"]] in (
        [],
        ["buy"],
        ["buy", "sell"],
    )
    assert told(data, "holds", "--older-than", "7d")["holds"] == []
    assert told(data, "holds", "bob", "--older-than", "7d")["holds"] == []


@pytest.mark.parametrize(
    ("age_ms", "said"),
    [(0, "0s"), (999, "0s"), (59_000, "59s"), (61_000, "1m 1s"), (3_600_000, "1h"), (90_061_000, "1d 1h")],
)
def test_age_is_said_by_its_largest_units(age_ms: int, said: str) -> None:
    """An age is for people."""
    assert books.age_text(age_ms) == said


def batch_lines() -> list[dict[str, Any]]:
    deposit = {"op": "deposit", "customer": "alice", "coin": "usdt", "amount": "1"}
    return [
        {**deposit, "key": "b1"},
        {"op": "freeze", "key": "b2", "customer": "alice", "coin": "usdt", "amount": "5000"},
        {**deposit, "key": "b3", "chain": "x"},
        {"op": "unfreeze", "key": "b4", "hold": {"key": "buy"}, "chain": "x"},
    ]


def test_batch_file_is_done_in_order_and_again_without_harm(data: Path, tmp_path: Path) -> None:
    """Each line is an operation; refused ones are shown, and the same file again changes nothing."""
    file = tmp_path / "batch.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in batch_lines()) + "\n\n")
    first = spotledger(data, "batch", str(file))
    assert first.returncode == 1
    assert "3 done, 1 refused; 0 of them were repeats" in first.stdout
    assert "b2" in first.stdout
    assert usdt(data) == ("102.00", "0.00")
    again = spotledger(data, "batch", str(file), "--json")
    results = json.loads(again.stdout)["results"]
    assert all(result["replayed"] for result in results)
    assert usdt(data) == ("102.00", "0.00")


def test_batch_file_with_a_bad_line_does_nothing_of_it(data: Path) -> None:
    """A line that is no object is named, and so is the place of a malformed operation."""
    for content, said in ((b'{"op":"deposit"}\nnonsense\n', "line 2"), (b"[]\n", "line 1")):
        done = spotledger(data, "batch", "-", stdin=content)
        assert (done.returncode, said in done.stderr) == (1, True)
    bad = [{**batch_lines()[0], "key": "fresh"}, {**batch_lines()[0], "key": "fresh2", "amount": "0"}]
    done = spotledger(data, "batch", "-", stdin="\n".join(map(json.dumps, bad)).encode())
    assert "operations[1]" in done.stderr
    assert usdt(data) == ("40.00", "60.00")


def test_batch_file_atomic_is_all_or_nothing(data: Path) -> None:
    """One refusal refuses all."""
    done = spotledger(data, "batch", "-", "--atomic", stdin="\n".join(map(json.dumps, batch_lines())).encode())
    assert "0 done, 4 refused" in done.stdout
    assert usdt(data) == ("40.00", "60.00")


def test_large_batch_file_is_cut_between_chains_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are sent hold whole chains, even ones longer than a piece."""
    monkeypatch.setattr(trades, "BATCH_OPERATIONS", 3)
    chains = [None, None, "x", "x", None, "y", "y", "y", "y", None]
    operations = [{"key": str(number), "chain": chain} for number, chain in enumerate(chains)]
    pieces = [[operation["key"] for operation in piece] for piece in trades._pieces(operations)]
    assert pieces == [["0", "1"], ["2", "3", "4"], ["5", "6", "7", "8"], ["9"]]


def test_trial_balance_and_feed_show_the_whole_books(data: Path) -> None:
    """Every coin with its sums, and every entry by its number; the feed is one object a line with --json."""
    spotledger(data, *SETTLE)
    shown = spotledger(data, "trial-balance")
    assert "as of entry 9: balanced" in shown.stdout
    row = next(line.split() for line in shown.stdout.splitlines() if line.startswith("usdt"))
    assert row == ["usdt", "99.90", "0.00", "-100.00", "0.10", "0.00"]
    assert told(data, "trial-balance")["balanced"]
    assert told(data, "trial-balance", "--at-seq", "5")["coins"]["usdt"]["customers"]["available"] == "100.00"
    assert told(data, "trial-balance", "--at", "2020-01-01")["seq"] == 0
    feed = spotledger(data, "feed", "--after", "6")
    assert [line.split()[0] for line in feed.stdout.splitlines()] == ["7", "8", "9"]
    objects = [json.loads(line) for line in spotledger(data, "feed", "--json").stdout.splitlines()]
    assert [entry["seq"] for entry in objects] == list(range(1, 10))


def test_find_shows_the_entries_that_match(data: Path) -> None:
    """By key, by reference or by anything else; without anything to find it says what would pass."""
    assert " freeze [buy] by " in spotledger(data, "find", "--key", "buy").stdout
    [entry] = told(data, "find", "--reference", "order-1")["entries"]
    assert (entry["key"], entry["seq"]) == ("buy", 7)
    assert told(data, "find", "--customer", "alice", "--kind", "freeze", "--coin", "usdt")["entries"] == [entry]
    assert [found["key"] for found in told(data, "find", "--customer", "alice", "--limit", "1")["entries"]] == ["d1"]
    assert spotledger(data, "find", "--reference", "never").stdout == "no entry matches\n"
    assert told(data, "find", "--from", "2002-01-01", "--to", "2002-01-02")["entries"] == []
    assert spotledger(data, "find").returncode == 2


def test_statement_shows_opening_changes_and_closing(data: Path) -> None:
    """As a table, as JSON and as CSV, of a customer and of a house account."""
    shown = spotledger(data, "statement", "alice", "--coin", "usdt")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[2] == ["opening", "spot", "usdt", "0.00", "0.00", "0.00"]
    assert rows[3][3:9] == ["deposit", "spot", "usdt", "+100.00", "100.00", "0.00"]
    assert rows[-1] == ["closing", "spot", "usdt", "40.00", "60.00", "0.00"]
    document = told(data, "statement", "alice", "--from", "2020-01-01", "--to", "2100-01-01")
    assert [line["key"] for line in document["lines"]] == ["d1", "buy"]
    csv = spotledger(data, "statement", "@external", "--csv").stdout
    assert csv.startswith("epoch,seq,booked,kind,account,coin,available,freeze,owes,")
    assert csv.count(",opening,house,") == csv.count(",closing,house,") == 2
    assert spotledger(data, "statement", "alice", "--csv", "--bom").stdout.startswith("\ufeffepoch,")
    refused = spotledger(data, "statement", "nobody", "--csv")
    assert (refused.returncode, "[not_found]" in refused.stderr) == (1, True)
    assert spotledger(data, "statement", "alice", "--bom").returncode == 2


@pytest.mark.parametrize("command", [("find",), ("statement", "alice"), ("statement", "alice", "--csv")])
def test_period_that_ends_before_it_begins_is_wrong_usage(data: Path, command: tuple[str, ...]) -> None:
    """Both options are named, in the words in which they were given; so are seconds where milliseconds are meant."""
    refused = spotledger(data, *command, "--from", "2026-02-01", "--to", "2026-01-31")
    assert refused.returncode == 2
    assert "'2026-01-31' is before '2026-02-01', which is --from" in refused.stderr
    seconds = spotledger(data, *command, "--from", "1700000000")
    assert (seconds.returncode, "before the year 2001" in seconds.stderr) == (2, True)


@pytest.fixture
def busy(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a ledger with small pages, in which somebody deposits another coin after each read of a command."""
    monkeypatch.setattr(calls, "PAGE_LIMIT", 4)
    call, reads = CommandLedger.call, count()

    async def interrupted(ledger: CommandLedger, method: str, *arguments: Any, **more: Any) -> Reply:
        reply = await call(ledger, method, *arguments, **more)
        if method == "GET":
            number = next(reads)
            assert number < 20, "the command never ends"
            document = ledger.document
            await ledger.deposit("alice", "btc", "1", key=f"busy-{number}", reference="busy")
            ledger.document = document
        return reply

    monkeypatch.setattr(CommandLedger, "call", interrupted)
    return data


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("find", "--reference", "never"), ["no"]),
        (("find", "--coin", "usdt"), ["5", "7"]),
        (("feed",), [str(seq) for seq in range(1, len(SETUP) + 1)]),
    ],
)
def test_search_ends_although_others_write(busy: Path, command: tuple[str, ...], shown: list[str]) -> None:
    """It is about what was there when it began: to read on until nothing follows would take as long as others write."""
    done = spotledger(busy, *command)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()][: len(shown)] == shown


def test_statement_of_many_pages_adds_up_although_others_write(busy: Path) -> None:
    """A coin that was touched first after the first page was read has an opening, too."""
    for number in range(8):
        spotledger(busy, "deposit", "alice", "usdt", "1", "--key", f"more-{number}")
    document = told(busy, "statement", "alice")
    opening, closing = (
        {(row["account"], row["coin"]): Decimal(row["available"]) for row in document[what]}
        for what in ("opening", "closing")
    )
    assert ("spot", "btc") in opening
    for line in document["lines"]:
        opening[line["account"], line["coin"]] += Decimal(line["available"])
    assert opening == closing


def test_first_command_after_an_update_waits_for_the_books(tmp_path: Path) -> None:
    """The process that makes them again would end with the command, and so on with each command after it."""
    with open_embedded(tmp_path, segment_entries=4_096) as ledger:
        ledger.list_coin("usdt", 8, key="list")
        ledger.register_customer("alice", key="alice")
        ledger.execute([Deposit(f"d{number}", "alice", "usdt", "1", reference="r") for number in range(5_000)])
        while ledger.sealing_lag:
            ledger.execute([])
            time.sleep(0.01)
    with raw(tmp_path, "books.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    assert usdt(tmp_path) == ("5000.00", "0.00")
    assert len(told(tmp_path, "find", "--reference", "r")["entries"]) == 5_000


def test_commands_about_the_books_work_with_a_server_too(service: StartService) -> None:
    """With a running server the same commands talk to it."""
    running = service()
    for arguments in (*SETUP, SETTLE):
        done = spotledger(running.folder, *arguments)
        assert done.returncode == 0, done.stderr
    assert usdt(running.folder, "--at-seq", "8") == ("40.00", "60.00")
    assert told(running.folder, "trial-balance")["balanced"]
    assert len(told(running.folder, "history", "bob")["entries"]) == 3

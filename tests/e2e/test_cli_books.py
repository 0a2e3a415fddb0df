"""The commands about trades, batches, history, any moment, old holds and the trial balance."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from spotledger.cli import books, trades
from spotledger.cli.main import program
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
    assert spotledger(data, "balances", "alice", "--at", "2999-01-01").returncode == 1


def test_amounts_of_many_digits_are_shown_exactly(data: Path) -> None:
    """A total, and what moved, has all its digits, where Python's usual decimals have 28."""
    big = "589000000000000.123456789012345678"
    for arguments in (
        ("coin", "add", "shib", "--scale", "18"),
        ("deposit", "alice", "shib", big, "--key", "many"),
        ("freeze", "alice", "shib", "0.000000000000000001", "--key", "few"),
    ):
        assert spotledger(data, *arguments).returncode == 0
    balances = spotledger(data, "balances", "alice").stdout.splitlines()
    assert next(line.split() for line in balances if line.startswith("shib"))[3] == big
    assert f"+{big}" in spotledger(data, "history", "alice").stdout


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
    feed = spotledger(data, "feed", "--after", "6")
    assert [line.split()[0] for line in feed.stdout.splitlines()] == ["7", "8", "9"]
    objects = [json.loads(line) for line in spotledger(data, "feed", "--json").stdout.splitlines()]
    assert [entry["seq"] for entry in objects] == list(range(1, 10))


def test_commands_about_the_books_work_with_a_server_too(service: StartService) -> None:
    """With a running server the same commands talk to it."""
    running = service()
    for arguments in (*SETUP, SETTLE):
        done = spotledger(running.folder, *arguments)
        assert done.returncode == 0, done.stderr
    assert usdt(running.folder, "--at-seq", "8") == ("40.00", "60.00")
    assert told(running.folder, "trial-balance")["balanced"]
    assert len(told(running.folder, "history", "bob")["entries"]) == 3

"""The audit over damaged ledgers: each class of damage is done to a copy of a file, and has to be named."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import workers as audit_workers
from spotledger.audit.findings import CODES
from spotledger.audit.report import KnownHead
from spotledger.storage.idempotency_filter import page_checksum
from support_audit import Damage, audited, copy_of, damaging, make


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one ledger of every kind of entry, segments of 8, the last ones not sealed."""
    return make(tmp_path_factory.mktemp("healthy") / "ledger")


@pytest.fixture(autouse=True)
def _each_segment_is_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an audit that reads ahead cut the ledger wherever it can be cut."""
    monkeypatch.setattr(audit_workers, "RANGE_ENTRIES", 1)


def seen(healthy: Path, tmp_path: Path, *damages: Callable[[Damage], object], **options: Any) -> dict[str, int]:
    """Do *damages* to a copy, audit it, and return what was found, by code: with and without reading ahead the same."""
    folder = copy_of(healthy, tmp_path / "copy")
    with damaging(folder) as damage:
        for do in damages:
            do(damage)
    report = audited(folder, **options)
    ahead = audited(folder, **options, processes=2)
    assert {**ahead.as_json(), "seconds": 0} == {**report.as_json(), "seconds": 0}
    assert report.verdict == ("damaged" if report.counts else "clean"), report.unexamined
    assert sum(report.counts.values()) >= len(report.findings) >= bool(report.counts)
    assert {finding.code for finding in report.findings} == set(report.counts) <= set(CODES)
    json.dumps(report.as_json())
    return report.counts


# --- the journal, its chain left as it was ------------------------------------------------------------


def more_amount(d: Damage) -> None:
    """Let a deposit, both its postings, be of another amount."""

    def change(entry: dict[str, Any]) -> None:
        entry["postings"][0][2], entry["postings"][1][2] = "-100000000001", "100000000001"

    d.change(d.seq_of("d1"), change)


def one_amount(d: Damage) -> None:
    """Let one posting of a settlement be of another amount."""
    d.change(d.seq_of("s1"), lambda entry: entry["postings"][1].__setitem__(2, "98999999"))


def swap(d: Damage) -> None:
    """Let two neighbours change places, body and hash."""
    one, two = d.seq_of("w2"), d.seq_of("u2")
    rows = {seq: d.sql("SELECT body, hash FROM entry WHERE seq = ?", (seq,)).fetchone() for seq in (one, two)}
    for seq, other in ((one, two), (two, one)):
        d.sql("UPDATE entry SET body = ?, hash = ? WHERE seq = ?", (*rows[other], seq))


def cut(d: Damage) -> None:
    """Cut the last three entries off."""
    d.sql("DELETE FROM entry WHERE seq > (SELECT max(seq) - 3 FROM entry)")


def cut_with_head(d: Damage) -> None:
    """Cut the last three entries off and have the head fit."""
    cut(d)
    d.rehash()


CHAIN = [
    pytest.param(more_amount, {"chain_broken", "request_differs", "balance_after_differs"}, id="a changed amount"),
    pytest.param(
        one_amount,
        {"chain_broken", "not_zero_sum", "request_differs", "balance_after_differs"},
        id="one changed posting",
    ),
    pytest.param(
        lambda d: d.sql("DELETE FROM entry WHERE seq = 20"), {"entry_missing"}, id="an entry removed, a gap left"
    ),
    pytest.param(swap, {"entry_out_of_place", "chain_broken"}, id="a swapped pair"),
    pytest.param(
        lambda d: d.sql("UPDATE entry SET hash = zeroblob(32) WHERE seq = 30"), {"chain_broken"}, id="a broken link"
    ),
    pytest.param(cut, {"journal_cut"}, id="the last entries cut off"),
    pytest.param(
        lambda d: d.sql("UPDATE head SET seq = seq - 1"), {"entry_beyond_head"}, id="a head before the last entry"
    ),
    pytest.param(lambda d: d.sql("UPDATE head SET hash = zeroblob(32)"), {"head_differs"}, id="another head hash"),
    pytest.param(lambda d: d.sql("UPDATE head SET booked_ms = 1"), {"head_differs"}, id="another head time"),
    pytest.param(lambda d: d.sql("DELETE FROM head"), {"head_missing"}, id="no head"),
    pytest.param(lambda d: d.sql("UPDATE entry SET body = '{' WHERE seq = 9"), {"entry_unreadable"}, id="no JSON"),
    pytest.param(
        lambda d: d.sql("UPDATE entry SET body = '{}' WHERE seq = 9"), {"entry_unreadable"}, id="JSON, but no entry"
    ),
    pytest.param(lambda d: d.sql("UPDATE entry SET seq = 0 WHERE seq = 1"), {"entry_out_of_place"}, id="entry 0"),
    pytest.param(
        lambda d: d.sql("UPDATE ledger SET ledger_id = 'another'"), {"chain_broken"}, id="the ledger's id changed"
    ),
]


@pytest.mark.parametrize(("damage", "codes"), CHAIN)
def test_audit_of_a_damaged_journal_names_it(
    healthy: Path, tmp_path: Path, damage: Callable[[Damage], object], codes: set[str]
) -> None:
    """What was done to the journal without making its chain anew is seen, whatever else is found."""
    assert codes <= set(seen(healthy, tmp_path, damage))


# --- the journal, its chain made anew --------------------------------------------------------------------


def in_entry(key: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Damage], None]:
    """Return the damage that makes *change* in the entry of *key*."""
    return lambda d: d.change(d.seq_of(key), change)


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return the change that puts *value* at *path*."""

    def change(entry: Any) -> None:
        for step in path[:-1]:
            entry = entry[step]
        entry[path[-1]] = value

    return change


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    """Return the change that takes *names* out."""

    def change(entry: dict[str, Any]) -> None:
        for name in names:
            entry.pop(name, None)

    return change


def hold_without_entry(d: Damage) -> None:
    """Turn the freeze that opened a hold into a kept refusal; others use the hold."""

    def change(entry: dict[str, Any]) -> None:
        drop("postings", "balances", "holds")(entry)
        entry["refusal"] = {"code": "insufficient_available", "detail": "x", "details": {}}

    in_entry("f1", change)(d)


def freeze_from_nowhere(d: Damage) -> None:
    """Let the last freeze open no hold, and say so throughout."""

    def change(entry: dict[str, Any]) -> None:
        entry["postings"][1][3] = None
        del entry["holds"]

    in_entry("again:f4", change)(d)


def reverse_again(d: Damage) -> None:
    """Let the second reversal be of the entry that the first is of."""
    first = d.entry(d.seq_of("v1"))["request"]["seq"]
    in_entry("v2", put("request", "seq", value=first))(d)


def all_consistent_but_request(d: Damage) -> None:
    """Halve the last open hold in postings, balances and holds alike; only the request still says the truth."""
    seq = d.seq_of("again:f4")
    entry = d.entry(seq)
    before = int(entry["balances"][0][2]) + 200000000
    entry["postings"][0][2], entry["postings"][1][2] = "-100000000", "100000000"
    entry["balances"][0][2] = str(before - 100000000)
    entry["balances"][0][3] = str(int(entry["balances"][0][3]) - 100000000)
    entry["holds"] = [[seq, "100000000"]]
    d.put(seq, entry)


SEMANTIC = [
    pytest.param(more_amount, {"request_differs", "balance_after_differs"}, id="a changed amount"),
    pytest.param(one_amount, {"not_zero_sum"}, id="one changed posting"),
    pytest.param(
        in_entry("t2", lambda e: e["balances"][0].__setitem__(2, "5")), {"balance_after_differs"}, id="a balance after"
    ),
    pytest.param(
        in_entry("t2", lambda e: e["balances"].pop()), {"balance_after_differs"}, id="a balance after left out"
    ),
    pytest.param(
        in_entry("t2", lambda e: e["balances"].append([["cid", "spot"], "btc", "7", "0"])),
        {"balance_after_differs"},
        id="a balance after too many",
    ),
    pytest.param(
        in_entry("w2", lambda e: e["balances"][0].__setitem__(2, "-1")), {"below_zero"}, id="available below zero"
    ),
    pytest.param(
        in_entry("u1", lambda e: e["balances"][0].__setitem__(3, "-1")), {"below_zero"}, id="freeze below zero"
    ),
    pytest.param(
        in_entry("s1", lambda e: e["holds"][0].__setitem__(1, "0")), {"hold_after_differs"}, id="a hold after"
    ),
    pytest.param(in_entry("u1", drop("holds")), {"hold_after_differs"}, id="holds after left out"),
    pytest.param(hold_without_entry, {"hold_unknown", "balance_after_differs"}, id="a hold without entry"),
    pytest.param(
        in_entry("u1", lambda e: [p.__setitem__(3, 999) for p in e["postings"][:1]]),
        {"hold_unknown"},
        id="no such hold",
    ),
    pytest.param(freeze_from_nowhere, {"hold_misused", "freeze_unexplained"}, id="a freeze not explained by holds"),
    pytest.param(
        in_entry("f2", lambda e: e["postings"][1].__setitem__(3, 3)), {"hold_unknown"}, id="a freeze that opens no hold"
    ),
    pytest.param(in_entry("d2", put("booked_ms", value=5)), {"time_falls"}, id="a time that falls"),
    pytest.param(in_entry("d2", put("seq", value=5)), {"entry_out_of_place"}, id="another seq in the body"),
    pytest.param(in_entry("d2", put("key", value="d1")), {"key_repeated"}, id="a key of a neighbour"),
    pytest.param(in_entry("again:d4", put("key", value="d1")), {"key_repeated"}, id="a key of another segment"),
    pytest.param(in_entry("d2", put("key", value="a b")), {"key_malformed"}, id="a key with a blank"),
    pytest.param(in_entry("d2", put("key", value="")), {"key_malformed"}, id="an empty key"),
    pytest.param(in_entry("d2", put("key", value="käse")), {"key_malformed"}, id="a key beyond ASCII"),
    pytest.param(in_entry("d2", put("kind", value="gift")), {"kind_unknown"}, id="an unknown kind"),
    pytest.param(in_entry("d2", put("kind", value="withdraw")), {"request_differs"}, id="another kind"),
    pytest.param(in_entry("d2", put("request", "format", value=2)), {"request_differs"}, id="a request of no format"),
    pytest.param(in_entry("r1", put("request", "op", value="deposit")), {"request_differs"}, id="a request's own op"),
    pytest.param(in_entry("d2", drop("postings", "balances")), {"request_differs"}, id="a deposit without postings"),
    pytest.param(
        in_entry("d2", put("request", "customer", value="ann")), {"request_differs"}, id="another customer asked for"
    ),
    pytest.param(
        in_entry("s1", put("request", "base_units", value="1")), {"request_differs"}, id="another fill asked for"
    ),
    pytest.param(
        in_entry("t1", put("request", "to", "account", value="fiat")),
        {"request_differs"},
        id="another target asked for",
    ),
    pytest.param(in_entry("w1", put("request", "hold", value="1")), {"request_differs"}, id="another hold asked for"),
    pytest.param(in_entry("r1", put("refusal", "code", value="bad")), {"refusal_malformed"}, id="an unknown refusal"),
    pytest.param(
        in_entry("d1", put("refusal", value={"code": "unknown_coin", "detail": "", "details": {}})),
        {"refusal_malformed"},
        id="a refusal with postings",
    ),
    pytest.param(
        in_entry("list:btc", put("request", "coin", value="eth")),
        {"coin_unknown", "coin_row_missing", "coin_row_extra"},
        id="a coin's name in its listing",
    ),
    pytest.param(
        in_entry("list:btc", put("request", "scale", value=2)), {"coin_row_differs"}, id="a coin's scale in its listing"
    ),
    pytest.param(in_entry("list:btc", put("request", "scale", value=19)), {"coin_listed_wrong"}, id="a scale of 19"),
    pytest.param(
        in_entry("list:usdt", put("request", "coin", value="btc")), {"coin_listed_wrong"}, id="a coin listed twice"
    ),
    pytest.param(
        in_entry("register:bob", put("request", "customer", value="eve")),
        {"customer_unknown", "customer_row_missing", "customer_row_extra"},
        id="a customer's name in his registering",
    ),
    pytest.param(
        in_entry("register:bob", put("request", "customer", value="ann")),
        {"customer_registered_wrong"},
        id="a customer registered twice",
    ),
    pytest.param(in_entry("v1", put("request", "seq", value=3)), {"reversal_wrong"}, id="a reversal of a registering"),
    pytest.param(in_entry("v1", drop("postings", "balances")), {"reversal_wrong"}, id="a reversal of nothing"),
    pytest.param(reverse_again, {"reversed_twice"}, id="an entry reversed twice"),
    pytest.param(lambda d: d.remove(d.seq_of("r1")), {"key_row_missing", "key_row_extra"}, id="a kept refusal removed"),
    pytest.param(lambda d: d.remove(d.seq_of("f2")), {"hold_unknown"}, id="an entry removed, the others renumbered"),
    pytest.param(all_consistent_but_request, {"request_differs"}, id="an amount changed wherever it stands but one"),
    pytest.param(
        in_entry("d2", lambda e: [line.__setitem__(1, "eth") for line in e["balances"]]),
        {"coin_unknown", "request_differs"},
        id="another coin",
    ),
    *(
        pytest.param(
            in_entry(key, lambda e, place=place: e["postings"][1].__setitem__(0, place)),
            {"entry_unreadable"},
            id=f"a posting of {key} about a balance that is not there: {place}",
        )
        for key in ("d2", "f2", "s1", "v1")
        for place in (-1, 99)
    ),
    pytest.param(
        in_entry("t2", lambda e: [p.__setitem__(0, 1 - p[0]) for p in e["postings"]]),
        {"request_differs", "balance_after_differs"},
        id="postings of two accounts exchanged",
    ),
    pytest.param(
        in_entry("d2", lambda e: [p.__setitem__(2, "9" * 4300) for p in e["postings"]]),
        {"not_zero_sum"},
        id="units too long to write",
    ),
    pytest.param(
        in_entry("r1", lambda e: e["refusal"].__setitem__("code", [])),
        {"refusal_malformed"},
        id="a code that is a list",
    ),
    pytest.param(in_entry("d2", put("happened_ms", value="soon")), {"entry_unreadable"}, id="a time that is none"),
    pytest.param(
        in_entry("d2", lambda e: e["balances"].append(e["balances"][1])),
        {"balance_after_differs"},
        id="a balance after twice",
    ),
]


@pytest.mark.parametrize(("damage", "codes"), SEMANTIC)
def test_audit_of_a_journal_with_a_new_chain_names_what_was_changed(
    healthy: Path, tmp_path: Path, damage: Callable[[Damage], object], codes: set[str]
) -> None:
    """With every hash computed anew the chain is whole, and what the entries say is still seen to be wrong."""
    found = set(seen(healthy, tmp_path, damage, Damage.rehash))
    assert codes <= found
    assert not found & {"chain_broken", "head_differs", "journal_cut", "entry_missing"}


def test_audit_of_a_cut_journal_whose_head_fits_needs_a_noted_head(healthy: Path, tmp_path: Path) -> None:
    """What is cut off within the open segment leaves no trace in the file; a head that was noted before shows it."""
    whole = audited(healthy)
    noted = KnownHead(whole.head_seq, bytes.fromhex(whole.hash or ""))
    assert seen(healthy, tmp_path, cut_with_head) == {}
    (tmp_path / "again").mkdir()
    assert set(seen(healthy, tmp_path / "again", cut_with_head, known_heads=[noted])) == {"known_head_differs"}


def test_audit_of_a_cut_journal_whose_head_fits_is_seen_by_what_is_sealed(healthy: Path, tmp_path: Path) -> None:
    """What is cut off of a sealed segment is missed there."""

    def cut_deep(d: Damage) -> None:
        d.sql("DELETE FROM entry WHERE seq > 50")
        d.rehash()

    assert "sealed_to_wrong" in seen(healthy, tmp_path, cut_deep)


def test_audit_of_a_journal_written_anew_is_seen_by_a_noted_head(healthy: Path, tmp_path: Path) -> None:
    """A head that was noted names the entry whose hash is another now."""
    noted = KnownHead(30, b"x" * 32)
    assert set(seen(healthy, tmp_path, known_heads=[noted])) == {"known_head_differs"}
    (tmp_path / "again").mkdir()
    assert set(seen(healthy, tmp_path / "again", known_heads=[KnownHead(10_000, b"x")])) == {"known_head_differs"}


# --- what is derived ----------------------------------------------------------------------------------------


def of(statement: str) -> Callable[[Damage], object]:
    """Return the damage that *statement* does."""
    return lambda d: d.sql(statement)


DERIVED = [
    ("UPDATE balance SET available = available + 1 WHERE customer = 'ann'", {"balance_row_differs"}),
    ('UPDATE balance SET "freeze" = 1 WHERE customer = \'bob\' AND coin = \'usdt\'', {"balance_row_differs"}),
    ("UPDATE balance SET available = available || 'x' WHERE customer = 'ann'", {"balance_row_differs"}),
    ("UPDATE balance SET available = available + 0.5 WHERE customer = 'ann'", {"balance_row_differs"}),
    ("UPDATE balance SET seq = seq - 1 WHERE customer = 'ann'", {"balance_row_differs"}),
    ("UPDATE balance SET seq = 1000 WHERE customer = 'ann'", {"balance_row_differs"}),
    ("DELETE FROM balance WHERE customer = 'cid' AND account = 'wallet'", {"balance_row_missing"}),
    ("INSERT INTO balance VALUES ('ann', 'fiat', 'btc', 5, 0, 3)", {"balance_row_extra"}),
    ("INSERT INTO balance VALUES ('eve', 'spot', 'btc', 5, 0, 3)", {"balance_row_extra"}),
    ("UPDATE history SET places = x'0000' WHERE segment = 2 AND customer = 'ann'", {"history_row_differs"}),
    ("UPDATE history SET places = CAST(places || x'0700' AS BLOB) WHERE segment = 2 AND customer = 'ann'",
     {"history_row_differs"}),
    ("UPDATE history SET places = x'00' WHERE segment = 2 AND customer = 'ann'", {"history_row_differs"}),
    ("UPDATE history SET places = x'' WHERE segment = 2 AND customer = 'ann'", {"history_row_differs"}),
    ("UPDATE history SET customer = 'eve' WHERE segment = 2 AND customer = 'ann'",
     {"history_row_missing", "history_row_extra"}),
    ("DELETE FROM history WHERE segment = 3 AND customer = (SELECT max(customer) FROM history WHERE segment = 3)",
     {"history_row_missing"}),
    ("DELETE FROM history WHERE segment = 2", {"history_row_missing"}),
    ("INSERT INTO history VALUES (2, 'eve', 'spot', 'btc', x'0300')", {"history_row_extra"}),
    ("INSERT INTO history VALUES (99, 'ann', 'spot', 'btc', x'0300')", {"rows_beyond_journal"}),
    ("DELETE FROM key_seq WHERE seq = 10", {"key_row_missing"}),
    ("INSERT INTO key_seq VALUES (1, zeroblob(16), 10)", {"key_row_extra"}),
    ("UPDATE key_seq SET seq = 11 WHERE seq = 10", {"key_row_missing", "key_row_extra"}),
    ("UPDATE key_seq SET segment = 3 WHERE seq = 10", {"key_row_missing", "key_row_extra"}),
    ("INSERT INTO key_seq VALUES (-1, zeroblob(16), 10)", {"rows_beyond_journal"}),
    ("DELETE FROM hold WHERE hold_id = (SELECT min(hold_id) FROM hold)", {"hold_row_missing"}),
    ("INSERT INTO hold VALUES (3, 'ann', 'spot', 'btc', 5, 5, NULL, NULL, 1, NULL)", {"hold_row_extra"}),
    ("INSERT INTO hold VALUES (900, 'ann', 'spot', 'btc', 5, 5, NULL, NULL, 1, NULL)", {"rows_beyond_journal"}),
    ("UPDATE hold SET amount = 1 WHERE hold_id = (SELECT min(hold_id) FROM hold)", {"hold_row_differs"}),
    ("UPDATE hold SET amount = 'x' WHERE hold_id = (SELECT min(hold_id) FROM hold)", {"hold_row_differs"}),
    ("UPDATE hold SET remaining = x'00' WHERE closed_seq IS NULL", {"hold_row_differs"}),
    ("UPDATE hold SET customer = 'eve' WHERE hold_id = (SELECT min(hold_id) FROM hold)", {"hold_row_differs"}),
    ("UPDATE hold SET reference = 'x' WHERE hold_id = (SELECT min(hold_id) FROM hold)", {"hold_row_differs"}),
    ("UPDATE hold SET closed_seq = NULL, remaining = 7 WHERE hold_id = (SELECT min(hold_id) FROM hold)",
     {"hold_row_differs"}),
    ("UPDATE hold SET closed_seq = closed_seq + 1", {"hold_row_differs"}),
    ("UPDATE hold SET remaining = 1 WHERE closed_seq IS NULL", {"hold_row_differs"}),
    ("UPDATE hold SET closed_seq = 50, remaining = 0 WHERE closed_seq IS NULL", {"hold_row_differs"}),
    ("DELETE FROM hold_of WHERE segment = (SELECT min(segment) FROM hold_of)", {"hold_owner_row_missing"}),
    ("INSERT INTO hold_of VALUES (1, 'zoe', x'0300')", {"hold_owner_row_extra"}),
    ("UPDATE coin SET scale = 2 WHERE coin = 'btc'", {"coin_row_differs"}),
    ("DELETE FROM coin WHERE coin = 'btc'", {"coin_row_missing"}),
    ("INSERT INTO coin VALUES ('eth', 8, 3)", {"coin_row_extra"}),
    ("UPDATE customer SET customer = 'eve' WHERE customer = 'bob'", {"customer_row_missing", "customer_row_extra"}),
    ("UPDATE customer SET seq = seq + 1 WHERE customer = 'bob'", {"customer_row_differs"}),
    ("DELETE FROM reversal WHERE seq = (SELECT min(seq) FROM reversal)", {"reversal_row_missing"}),
    ("UPDATE reversal SET by_seq = 5 WHERE seq = (SELECT min(seq) FROM reversal)", {"reversal_row_differs"}),
    ("INSERT INTO reversal VALUES (7, 8)", {"reversal_row_extra"}),
    ("UPDATE ledger SET sealed_to = 1000", {"sealed_to_wrong"}),
    ("UPDATE ledger SET sealed_to = 13", {"sealed_to_wrong"}),
    ("UPDATE key_filter SET covered_to = 5 WHERE level = 0", {"filter_level_damaged"}),
    ("UPDATE key_filter SET checksum = zeroblob(8) WHERE level = 0", {"filter_level_damaged"}),
    ("UPDATE key_filter_page SET checksum = zeroblob(8) WHERE level = 0", {"filter_page_damaged"}),
    ("UPDATE key_filter_page SET bits = zeroblob(32) WHERE level = 0", {"filter_page_damaged"}),
    ("DELETE FROM key_filter_page WHERE level = 1", {"filter_page_damaged"}),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "codes"), DERIVED, ids=[statement for statement, _ in DERIVED])
def test_audit_of_a_damaged_table_names_it_and_nothing_else(
    healthy: Path, tmp_path: Path, statement: str, codes: set[str]
) -> None:
    """A row beside the journal that was changed, taken out or put in is seen, and no other finding is made of it."""
    found = set(seen(healthy, tmp_path, of(statement)))
    assert codes <= found
    if codes != {"sealed_to_wrong"}:
        assert found == codes


def test_audit_of_a_filter_that_forgot_a_key_names_the_key(healthy: Path, tmp_path: Path) -> None:
    """A page whose bits were cleared, with a checksum that fits, is seen by the keys that it should know."""

    def forget(d: Damage) -> None:
        bits = bytes(len(d.one("SELECT bits FROM key_filter_page WHERE level = 0")))
        values = (bits, page_checksum(0, 0, bits))
        d.sql("UPDATE key_filter_page SET bits = ?, checksum = ? WHERE level = 0", values)

    assert seen(healthy, tmp_path, forget) == {"filter_key_missing": 16}


def test_audit_of_a_ledger_without_a_trigger_names_it(healthy: Path, tmp_path: Path) -> None:
    """What keeps the journal from being changed is part of the ledger."""
    folder = copy_of(healthy, tmp_path / "copy")
    with damaging(folder):
        pass
    assert audited(folder).verdict == "clean"
    connection = sqlite3.connect(folder / "ledger.db")
    connection.execute("DROP TRIGGER entry_is_never_deleted")
    connection.close()
    report = audited(folder)
    assert [(finding.code, finding.where) for finding in report.findings] == [
        ("trigger_changed", "entry_is_never_deleted")
    ]


def test_audit_with_many_findings_lists_some_and_counts_all(healthy: Path, tmp_path: Path) -> None:
    """The list is capped for each code, so that one fault of many rows does not hide another."""
    folder = copy_of(healthy, tmp_path / "copy")
    with damaging(folder) as damage:
        damage.sql("DELETE FROM history")
        damage.sql("UPDATE reversal SET by_seq = 5")
    report = audited(folder)
    assert report.counts["history_row_missing"] > 20
    assert sum(finding.code == "history_row_missing" for finding in report.findings) == 20
    assert report.counts["reversal_row_differs"] == sum(f.code == "reversal_row_differs" for f in report.findings)

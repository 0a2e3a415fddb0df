"""The audit over damaged ledgers: each class of damage is done to a copy of a file, and has to be named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import workers as audit_workers
from spotledger.audit.findings import CODES
from spotledger.audit.report import KnownHead, Report
from spotledger.domain.operations import CoinAmount, HoldKey, SettleSide
from spotledger.ledger.ledger import Ledger
from spotledger.storage.idempotency_filter import page_checksum
from spotledger.storage.sqlite.buckets import HistoryLine, HoldsOpened, history_id
from spotledger.storage.sqlite.noted_head import NOTE_FILE
from support_audit import Damage, audited, copy_of, damaging, make
from support_core import START_MS, Clock, fill, open_small, raw, seed


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
    report = audit_after(folder, *damages, **options)
    ahead = audited(folder, **options, processes=2)
    assert {**ahead.as_json(), "seconds": 0} == {**report.as_json(), "seconds": 0}
    return report.counts


def audit_after(folder: Path, *damages: Callable[[Damage], object], **options: Any) -> Report:
    """Do *damages* to the ledger in *folder*, audit it, and check that the report is whole."""
    with damaging(folder) as damage:
        for do in damages:
            do(damage)
    report = audited(folder, **options)
    assert report.verdict == ("damaged" if report.counts else "clean"), report.unexamined
    assert sum(report.counts.values()) >= len(report.findings) >= bool(report.counts)
    assert {finding.code for finding in report.findings} == set(report.counts) <= set(CODES)
    assert bool(report.advice) == bool(report.counts)
    json.dumps(report.as_json())
    return report


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
    pytest.param(in_entry("r1", put("refusal", "code", value="unknown_coin")), set(), id="a refusal once kept"),
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
    pytest.param(in_entry("list:btc", put("request", "scale", value=25)), {"coin_listed_wrong"}, id="a scale of 25"),
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


@pytest.mark.parametrize(("units", "codes"), [(10**38 - 1, set()), (10**38, {"balance_too_large"})])
def test_audit_of_a_balance_beyond_the_limit_names_it(tmp_path: Path, units: int, codes: set[str]) -> None:
    """Amounts and balances stay below 10^38 units, also where everything else about them fits."""
    with open_small(tmp_path) as ledger:
        ledger.list_coin("unit", 0, key="list")
        ledger.register_customer("ann", key="ann")
        ledger.deposit("ann", "unit", "7", key="deposit")
    with damaging(tmp_path) as damage:
        text = json.dumps(damage.entry(3)).replace('"7"', f'"{units}"').replace('"-7"', f'"-{units}"')
        damage.put(3, json.loads(text))
        damage.rehash()
    assert set(audited(tmp_path).counts) == codes


# --- times of holds, and what reversals take --------------------------------------------------------------


USES: dict[str, Callable[[Ledger, int], object]] = {
    "unfreeze": lambda ledger, hold: ledger.unfreeze(hold, "1", key="use"),
    "unfreeze all": lambda ledger, hold: ledger.unfreeze(hold, key="use"),
    "withdraw": lambda ledger, hold: ledger.withdraw("1", key="use", hold=hold),
    "buy": lambda ledger, hold: ledger.settle(
        "eth", "btc", "1", "2", SettleSide(str(hold)), SettleSide(HoldKey("other")), key="use"
    ),
    "sell with a fee": lambda ledger, hold: ledger.settle(
        "btc", "eth", "1", "2",
        SettleSide(HoldKey("other"), CoinAmount("btc", "0.1")), SettleSide(str(hold), CoinAmount("eth", "0.1")),
        key="use",
    ),
}  # fmt: skip


def _with_hold(folder: Path, expires_ms: int, use: Callable[[Ledger, int], object], *, sealed: bool) -> Path:
    """Make a ledger with a hold that a later segment uses; every segment is sealed, or none is."""
    clock = Clock()
    with open_small(folder, clock, segment_entries=8 if sealed else 65_536) as ledger:
        seed(ledger)
        ledger.list_coin("eth", 8, key="list:eth")
        ledger.deposit("bob", "eth", "10", key="deposit")
        ledger.freeze("bob", "eth", "5", key="other")
        hold = ledger.freeze("ann", "btc", "5", key="hold", expires_ms=expires_ms).hold or 0
        fill(ledger, 20)
        clock.now_ms += 10
        use(ledger, hold)
        fill(ledger, 20, "after")
    return folder


def _expiring(expires_ms: int | None) -> Callable[[Damage], None]:
    """Return the damage that gives the hold another time, wherever it is written."""

    def damage(d: Damage) -> None:
        seq = d.seq_of("hold")
        in_entry("hold", put("request", "expires_ms", value=expires_ms))(d)
        d.sql("UPDATE hold SET expires_ms = ? WHERE hold_id = ?", (expires_ms, seq))
        d.add_up()

    return damage


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("sealed", [True, False])
def test_audit_of_a_hold_that_was_used_after_its_time_names_the_use(tmp_path: Path, use: str, sealed: bool) -> None:
    """An entry booked at the time of a hold or later cannot use it."""
    folder = _with_hold(tmp_path / "ledger", START_MS + 11, USES[use], sealed=sealed)
    assert seen(folder, tmp_path) == {}
    (tmp_path / "damaged").mkdir()
    assert seen(folder, tmp_path / "damaged", _expiring(START_MS + 10), Damage.rehash) == {"hold_used_late": 1}


@pytest.mark.parametrize("expires_ms", [START_MS + 11, None])
@pytest.mark.parametrize("sealed", [True, False])
def test_audit_of_a_hold_that_expired_before_its_time_names_the_expiry(
    tmp_path: Path, expires_ms: int | None, sealed: bool
) -> None:
    """An expiry is booked at the time of a hold or later, and of no hold without one."""
    folder = _with_hold(tmp_path / "ledger", START_MS + 10, lambda ledger, _: fill(ledger, 1, "use"), sealed=sealed)
    assert seen(folder, tmp_path) == {}
    (tmp_path / "damaged").mkdir()
    assert seen(folder, tmp_path / "damaged", _expiring(expires_ms), Damage.rehash) == {"hold_expired_early": 1}


def test_audit_of_a_hold_that_was_opened_after_its_time_names_it(tmp_path: Path) -> None:
    """A freeze whose time is past is refused, so none is in a journal."""
    folder = _with_hold(tmp_path / "ledger", START_MS + 10, lambda ledger, _: fill(ledger, 1, "use"), sealed=True)
    assert seen(folder, tmp_path, _expiring(START_MS), Damage.rehash) == {"request_differs": 1}


@pytest.mark.parametrize("taken", [500_000_000, 0])
@pytest.mark.parametrize("sealed", [True, False])
def test_audit_of_a_reversal_that_took_less_than_was_there_names_it(tmp_path: Path, taken: int, sealed: bool) -> None:
    """What somebody has is taken before anything is owed; balances that fit such a reversal do not hide it."""
    folder = tmp_path / "ledger"
    with open_small(folder, segment_entries=8 if sealed else 65_536) as ledger:
        seed(ledger, "ann", "0.00000001")
        paid = ledger.deposit("ann", "btc", "10", key="paid")
        ledger.withdraw("4.00000001", key="out", customer="ann", coin="btc")
        fill(ledger, 10)
        ledger.withdraw("0.0000001", key="filled", customer="ann", coin="btc")
        ledger.reverse(paid.seq, "never came", key="reverse")
        ledger.register_customer("last", key="last")
        for number in range(20):
            ledger.register_customer(f"c{number}", key=f"c{number}")

    def take_less(entry: dict[str, Any]) -> None:
        [external], [receivable] = [
            [line for line in entry["balances"] if line[0][0].startswith(name)] for name in ("@external", "@receivable")
        ]
        left, owed = 600_000_000 - taken, taken - 1_000_000_000
        receivable[2] = str(owed)
        lines = [[external, 1_000_000_000], [receivable, owed]]
        if taken:
            lines.insert(1, [[["ann", "spot"], "btc", str(left), "0"], -taken])
        entry["balances"] = [line for line, _ in lines]
        entry["postings"] = [[place, "available", str(units)] for place, (_, units) in enumerate(lines)]

    assert seen(folder, tmp_path) == {}
    (tmp_path / "damaged").mkdir()
    found = seen(folder, tmp_path / "damaged", in_entry("reverse", take_less), Damage.rehash)
    books = {"balance_row_differs", "history_row_extra"} if sealed else set()
    assert {"reversal_wrong", "owes_and_has"} <= set(found) <= {"reversal_wrong", "owes_and_has", *books}


def test_audit_of_a_cut_journal_whose_head_fits_is_seen_by_the_noted_head(healthy: Path, tmp_path: Path) -> None:
    """What is cut off within the open segment leaves no trace in the journal; the note beside it shows it."""

    def with_its_note(d: Damage) -> None:
        note = (d.folder / NOTE_FILE).read_bytes()
        cut_with_head(d)
        (d.folder / NOTE_FILE).write_bytes(note)

    assert set(seen(healthy, tmp_path, with_its_note)) == {"note_differs"}


def test_audit_of_a_cut_journal_whose_head_and_note_fit_needs_a_known_head(healthy: Path, tmp_path: Path) -> None:
    """Where the note was made to fit too, nothing in the folder shows it; a head that was kept elsewhere does."""
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


SUMS = {"bucket_sum_differs"}
COUNTS = {"count_differs"}
FIRST_HOLD = "hold_id = (SELECT min(hold_id) FROM hold)"
DERIVED = [
    ("UPDATE balance SET available = available + 1 WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET available = CAST(available AS REAL) WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET available = CAST(available AS TEXT) WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET available = 'much' WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET available = available + 0.5 WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET \"freeze\" = 1 WHERE customer = 'bob' AND coin = 'usdt'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET seq = seq - 1 WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET seq = 1000 WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET bucket = bucket + 1 WHERE customer = 'ann' AND coin = 'btc'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET bucket = 9 WHERE customer = 'cid'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET segments = x'' WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET segments = x'000000' WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET segments = CAST(segments || x'00000000' AS BLOB) WHERE customer = 'ann'",
     {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET segments = CAST(segments || x'ffffff00' AS BLOB) WHERE customer = 'ann'",
     {"balance_row_differs"}, SUMS),
    ("UPDATE balance SET segments = substr(segments, 5) WHERE customer = 'ann'", {"balance_row_differs"}, SUMS),
    ("DELETE FROM balance WHERE customer = 'cid' AND account = 'wallet'", {"balance_row_missing"}, SUMS),
    ("INSERT INTO balance SELECT bucket, customer, 'fiat', coin, 5, 0, 3, x'00000000' FROM balance"
     " WHERE customer = 'ann' AND coin = 'btc'", {"balance_row_extra"}, SUMS),
    ("INSERT INTO balance VALUES (5, 'eve', 'spot', 'btc', 5, 0, 3, x'00000000')", {"balance_row_extra"}, SUMS),
    ("INSERT INTO balance SELECT 5, customer, account, coin, available, \"freeze\", seq, segments FROM balance"
     " WHERE customer = 'ann' AND coin = 'btc'", {"balance_row_extra", "balance_row_differs"}, SUMS),
    ("INSERT INTO history_bucket VALUES (99 * 512, x'00')", {"rows_beyond_journal"}, set()),
    ("INSERT INTO history_bucket VALUES (-1, x'00')", {"rows_beyond_journal"}, set()),
    ("INSERT INTO key_bucket VALUES (99 * 512, x'00')", {"rows_beyond_journal"}, set()),
    ("INSERT INTO key_bucket VALUES (-1, x'00')", {"rows_beyond_journal"}, set()),
    ("DELETE FROM key_bucket WHERE id = 600", {"bucket_damaged"}, set()),
    ("UPDATE key_bucket SET packed = zeroblob(16) WHERE id = 600", {"bucket_damaged"}, set()),
    ("UPDATE key_bucket SET packed = (SELECT packed FROM key_bucket WHERE id = 601) WHERE id = 600",
     {"bucket_damaged"}, set()),
    ("DELETE FROM key_bucket WHERE id / 512 = 2", {"bucket_damaged"}, set()),
    ("INSERT INTO reference_bucket VALUES (99 * 512, x'00')", {"rows_beyond_journal"}, set()),
    ("INSERT INTO reference_bucket VALUES (-1, x'00')", {"rows_beyond_journal"}, set()),
    ("DELETE FROM reference_bucket WHERE id = 600", {"bucket_damaged"}, set()),
    ("DELETE FROM reference_bucket", {"bucket_damaged"}, set()),
    ("UPDATE reference_bucket SET packed = zeroblob(16) WHERE id = 600", {"bucket_damaged"}, set()),
    ("UPDATE reference_bucket SET packed = (SELECT packed FROM reference_bucket WHERE id = 601) WHERE id = 600",
     {"bucket_damaged"}, set()),
    ("UPDATE reference_bucket SET packed = (SELECT packed FROM key_bucket WHERE id = 600) WHERE id = 600",
     {"bucket_damaged"}, set()),
    ("DELETE FROM history_bucket WHERE id = 600", {"bucket_damaged"}, set()),
    ("UPDATE history_bucket SET packed = zeroblob(18) WHERE id = 600", {"bucket_damaged"}, set()),
    ("UPDATE history_bucket SET packed = (SELECT packed FROM history_bucket WHERE id = 601) WHERE id = 600",
     {"bucket_damaged"}, set()),
    (f"DELETE FROM hold WHERE {FIRST_HOLD}", {"hold_row_missing"}, SUMS),
    ("DELETE FROM hold WHERE closed_seq IS NULL", {"hold_row_missing"}, SUMS | COUNTS),
    ("INSERT INTO hold VALUES (3, 'ann', 'spot', 'btc', 5, 5, NULL, NULL, 1, NULL)",
     {"hold_row_extra"}, SUMS | COUNTS),
    ("INSERT INTO hold VALUES (900, 'ann', 'spot', 'btc', 5, 5, NULL, NULL, 1, NULL)",
     {"rows_beyond_journal"}, COUNTS),
    (f"UPDATE hold SET amount = 1 WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET amount = 'much' WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET customer = 'eve' WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET account = 'fiat' WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET coin = 'eth' WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET opened_ms = 7 WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET expires_ms = 7 WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET reference = 'x' WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET reference = NULL WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS),
    (f"UPDATE hold SET closed_seq = NULL, remaining = 7 WHERE {FIRST_HOLD}", {"hold_row_differs"}, SUMS | COUNTS),
    ("UPDATE hold SET remaining = 7 WHERE closed_seq IS NOT NULL", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET closed_seq = closed_seq + 1", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET remaining = 1 WHERE closed_seq IS NULL", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET remaining = 'much' WHERE closed_seq IS NULL", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET remaining = x'00' WHERE closed_seq IS NULL", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET remaining = CAST(remaining AS REAL) WHERE closed_seq IS NULL", {"hold_row_differs"}, SUMS),
    ("UPDATE hold SET closed_seq = 50, remaining = 0 WHERE closed_seq IS NULL", {"hold_row_differs"}, SUMS | COUNTS),
    ("UPDATE coin SET scale = 2 WHERE coin = 'btc'", {"coin_row_differs"}, COUNTS),
    ("UPDATE coin SET seq = 3 WHERE coin = 'btc'", {"coin_row_differs"}, COUNTS),
    ("DELETE FROM coin WHERE coin = 'btc'", {"coin_row_missing"}, COUNTS),
    ("INSERT INTO coin VALUES ('eth', 8, 3)", {"coin_row_extra"}, COUNTS),
    ("UPDATE customer SET customer = 'eve' WHERE customer = 'bob'",
     {"customer_row_missing", "customer_row_extra", "customer_row_differs"}, SUMS),
    ("UPDATE customer SET seq = seq + 1 WHERE customer = 'bob'", {"customer_row_differs"}, SUMS),
    ("UPDATE customer SET bucket = bucket + 1 WHERE customer = 'bob'", {"customer_row_differs"}, SUMS),
    ("DELETE FROM customer WHERE customer = 'bob'", {"customer_row_missing"}, SUMS | COUNTS),
    ("DELETE FROM reversal WHERE seq = (SELECT min(seq) FROM reversal)", {"reversal_row_missing"}, COUNTS),
    ("UPDATE reversal SET by_seq = 5 WHERE seq = (SELECT min(seq) FROM reversal)", {"reversal_row_differs"}, COUNTS),
    ("INSERT INTO reversal VALUES (7, 8)", {"reversal_row_extra"}, COUNTS),
    ("INSERT INTO reversal VALUES (700, 8)", {"reversal_row_extra", "rows_beyond_journal"}, COUNTS),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "codes", "more"), DERIVED, ids=[statement for statement, *_ in DERIVED])
@pytest.mark.parametrize("is_added_up", [False, True], ids=["as it is", "added up anew"])
def test_audit_of_a_damaged_table_names_it_and_nothing_else(
    healthy: Path, tmp_path: Path, statement: str, codes: set[str], more: set[str], is_added_up: bool
) -> None:
    """A row of the books that was changed, taken out or put in is seen, even where their sums were made to fit."""
    if is_added_up:
        assert set(seen(healthy, tmp_path, of(statement), Damage.add_up)) == codes
    else:
        assert set(audit_after(copy_of(healthy, tmp_path / "copy"), of(statement)).counts) == codes | more


UNDERIVED = [
    ("INSERT INTO hold VALUES (-5, 'ann', 'spot', 'btc', 5, 0, NULL, NULL, 1, 9)", {"rows_beyond_journal"}),
    ("UPDATE balance SET bucket = -1 WHERE customer = 'cid'", {"balance_row_differs", "bucket_sum_differs"}),
    ("UPDATE balance SET bucket = 20000 WHERE customer = 'cid'", {"balance_row_differs", "bucket_sum_differs"}),
    ("UPDATE owner_bucket SET rows = rows + 1", {"bucket_sum_differs", "count_differs"}),
    ("UPDATE owner_bucket SET digest = zeroblob(16)", {"bucket_sum_differs", "count_differs"}),
    ("DELETE FROM owner_bucket", {"bucket_sum_differs", "count_differs"}),
    ("INSERT INTO owner_bucket VALUES (16384, 1, zeroblob(16))",
     {"bucket_sum_differs", "count_differs", "rows_beyond_journal"}),
    ("UPDATE hold_bucket SET digest = zeroblob(16)", {"bucket_sum_differs", "count_differs"}),
    ("DELETE FROM hold_bucket", {"bucket_sum_differs", "count_differs"}),
    ("INSERT INTO hold_bucket VALUES (99, 1, zeroblob(16))", {"count_differs", "rows_beyond_journal"}),
    ("UPDATE books SET coins = 7", {"count_differs"}),
    ("UPDATE books SET coins_digest = zeroblob(16)", {"count_differs"}),
    ("UPDATE books SET reversals = 7", {"count_differs"}),
    ("UPDATE books SET reversals_digest = zeroblob(16)", {"count_differs"}),
    ("UPDATE books SET buckets = 7", {"count_differs"}),
    ("UPDATE books SET buckets_digest = zeroblob(16)", {"count_differs"}),
    ("UPDATE books SET customers = 7", {"count_differs"}),
    ("UPDATE books SET open_holds = 7", {"count_differs"}),
    ("UPDATE books SET expiring_holds = 7", {"count_differs"}),
    ("UPDATE books SET ledger_id = 'another'", {"books_differ"}),
    ("UPDATE books SET segment_entries = 16", {"books_differ"}),
    ("UPDATE books SET sealed_hash = zeroblob(32)", {"books_differ"}),
    ("UPDATE key_filter SET covered_to = 5 WHERE level = 0", {"filter_level_damaged"}),
    ("UPDATE key_filter SET checksum = zeroblob(8) WHERE level = 0", {"filter_level_damaged"}),
    ("UPDATE key_filter SET level = 9 WHERE level = 0", {"filter_level_damaged", "filter_page_damaged"}),
    ("UPDATE key_filter SET level = -9 WHERE level = 0", {"filter_level_damaged", "filter_page_damaged"}),
    ("DELETE FROM key_filter WHERE level = 0", {"filter_level_damaged", "filter_page_damaged"}),
    ("UPDATE key_filter_page SET checksum = zeroblob(8) WHERE level = 0", {"filter_page_damaged"}),
    ("UPDATE key_filter_page SET bits = zeroblob(32) WHERE level = 0", {"filter_page_damaged"}),
    ("UPDATE key_filter_page SET page = -1 WHERE level = 0", {"filter_page_damaged"}),
    ("DELETE FROM key_filter_page WHERE level = 1", {"filter_page_damaged"}),
    ("INSERT INTO key_filter_page VALUES (20, 0, x'', x'')", {"filter_page_damaged"}),
    ("UPDATE keys_of SET ledger_id = 'another'", {"access_key_malformed"}),
    ("DELETE FROM keys_of", {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO access_keys VALUES ('k', 'ann', '[1]', '', '[]', x'01', 1, NULL, NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO access_keys VALUES ('k', 'ann', '[]', '', '{}', x'01', 1, NULL, NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO access_keys VALUES ('k', 'ann', '[]', '', '[]', x'', 1, NULL, NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO access_keys VALUES ('k', 'nobody', '[]', '', '[]', x'01', 1, NULL, NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO operator_tokens VALUES ('t', zeroblob(32), '{\"a\":1}', '', 1, NULL, '[]', NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO operator_tokens VALUES ('t', zeroblob(32), '[]', '', 1, NULL, '[\"10.0.0.1/8\"]', NULL, NULL)",
     {"access_key_malformed", "access_keys_differ"}),
    ("INSERT INTO operator_tokens VALUES ('t', zeroblob(32), '[]', '', 1, 2, '[]', NULL, NULL)",
     {"access_keys_differ"}),
    ("INSERT INTO kept_key_requests VALUES ('i', '[]', '{}')", {"access_key_malformed", "access_keys_differ"}),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "codes"), UNDERIVED, ids=[statement for statement, _ in UNDERIVED])
def test_audit_of_what_proves_the_books_or_stands_beside_them_names_it_and_nothing_else(
    healthy: Path, tmp_path: Path, statement: str, codes: set[str]
) -> None:
    """Counts, digests, the filter, and the access keys are looked at as well as what they are about."""
    assert set(seen(healthy, tmp_path, of(statement))) == codes


@pytest.mark.parametrize("sealed_to", [1000, 13, -8, 24, 0, 2**62])
def test_audit_of_books_that_say_another_end_names_it(healthy: Path, tmp_path: Path, sealed_to: int) -> None:
    """Books cannot be sealed to an entry that is not there, nor within a segment, nor be ahead of what they say."""
    found = set(seen(healthy, tmp_path, of(f"UPDATE books SET sealed_to = {sealed_to}")))
    assert ("books_differ" if sealed_to in (0, 24) else "sealed_to_wrong") in found


def swap_keys(d: Damage) -> None:
    """Let the entries of two keys of one segment change places, each bucket with a checksum that fits."""
    one = d.bucket_with_keys(2)
    two = next(b for b in range(one + 1, 3 * 512) if d.keys(b))
    first, second = d.keys(one), d.keys(two)
    d.put_keys(one, [(first[0][0], second[0][1]), *first[1:]])
    d.put_keys(two, [(second[0][0], first[0][1]), *second[1:]])


def history_of(
    owner: str, change: Callable[[list[HistoryLine], list[HoldsOpened]], object]
) -> Callable[[Damage], None]:
    """Return the damage that makes *change* in the history of *owner* in the segment 2."""
    return lambda d: d.change_history(history_id(2, owner), change)


def _with_places(
    place: int, change: Callable[[bytes], bytes]
) -> Callable[[list[HistoryLine], list[HoldsOpened]], None]:
    def replace(lines: list[HistoryLine], _: list[HoldsOpened]) -> None:
        lines[place] = lines[place]._replace(places=change(lines[place].places))

    return replace


BUCKETS = [
    pytest.param(lambda d: d.put_keys(d.bucket_with_keys(2), []), {"key_row_missing"}, id="a key taken out"),
    pytest.param(swap_keys, {"key_row_missing", "key_row_extra"}, id="two keys swapped"),
    pytest.param(
        lambda d: d.put_keys(600, [*d.keys(600), (bytes(14) + b"\x58\x00", 3)]), {"key_row_extra"}, id="a key put in"
    ),
    pytest.param(
        lambda d: d.put_keys(600, [*d.keys(600), (bytes(16), 3)]), {"bucket_damaged"}, id="a key of another bucket"
    ),
    pytest.param(
        lambda d: d.put_keys(d.bucket_with_keys(2), d.keys(d.bucket_with_keys(2)) * 2), {"key_row_extra"}, id="twice"
    ),
    pytest.param(
        lambda d: d.change_references(lambda rows: rows[1:]), {"reference_row_missing"}, id="a reference taken out"
    ),
    pytest.param(
        lambda d: d.change_references(lambda rows: [*rows, (rows[0][0], 7)]), {"reference_row_extra"}, id="one put in"
    ),
    pytest.param(
        lambda d: d.change_references(lambda rows: [(rows[0][0], rows[0][1] ^ 1), *rows[1:]]),
        {"reference_row_missing", "reference_row_extra"},
        id="a reference of another entry",
    ),
    pytest.param(
        lambda d: d.change_references(lambda rows: rows * 2), {"reference_row_extra"}, id="each reference twice"
    ),
    pytest.param(
        lambda d: d.change_references(lambda rows: [(bytes(14) + b"\xff\xff", 1)]),
        {"bucket_damaged"},
        id="elsewhere",
    ),
    pytest.param(history_of("ann", _with_places(0, lambda _: b"\0\0")), {"history_row_differs"}, id="other places"),
    pytest.param(
        history_of("ann", _with_places(0, lambda places: places + b"\7\0")), {"history_row_differs"}, id="a place more"
    ),
    pytest.param(history_of("ann", _with_places(0, lambda _: b"\0")), {"history_row_differs"}, id="half a place"),
    pytest.param(history_of("ann", _with_places(0, lambda _: b"")), {"history_row_differs"}, id="no places"),
    pytest.param(history_of("ann", lambda lines, _: lines.append(lines[0])), {"history_row_extra"}, id="a line twice"),
    pytest.param(
        history_of("ann", lambda lines, _: lines.append(HistoryLine("eve", "spot", "btc", b"\3\0"))),
        {"history_row_extra", "history_row_differs"},
        id="a line of nobody",
    ),
    pytest.param(history_of("ann", lambda lines, _: lines.clear()), {"history_row_missing"}, id="lines taken out"),
    pytest.param(history_of("cid", lambda _, holds: holds.clear()), {"hold_owner_row_missing"}, id="holds taken out"),
    pytest.param(
        history_of("ann", lambda _, holds: holds.append(HoldsOpened("ann", b"\3\0"))),
        {"hold_owner_row_extra"},
        id="a hold put in",
    ),
]


@pytest.mark.parametrize(("damage", "codes"), BUCKETS)
def test_audit_of_a_bucket_with_other_content_names_the_rows(
    healthy: Path, tmp_path: Path, damage: Callable[[Damage], object], codes: set[str]
) -> None:
    """A bucket whose checksum fits is still compared with the journal, row by row."""
    assert set(seen(healthy, tmp_path, damage)) == codes


def test_audit_of_a_filter_that_forgot_a_key_names_the_key(healthy: Path, tmp_path: Path) -> None:
    """A page whose bits were cleared, with a checksum that fits, is seen by the keys that it should know."""

    def forget(d: Damage) -> None:
        bits = bytes(len(d.one("SELECT bits FROM key_filter_page WHERE level = 0")))
        values = (bits, page_checksum(0, 0, bits))
        d.sql("UPDATE key_filter_page SET bits = ?, checksum = ? WHERE level = 0", values)

    assert seen(healthy, tmp_path, forget) == {"filter_key_missing": 16}


LAST = "INSERT INTO entry SELECT {}, body, hash FROM entry WHERE seq = 5"
ABSURD = [
    (LAST.format(2**62),),
    (LAST.format(2**63 - 1),),
    (LAST.format(2**62), f"UPDATE head SET seq = {2**62}"),
    (LAST.format(2**62), f"UPDATE head SET seq = {2**62}", f"UPDATE books SET sealed_to = {2**62}"),
    (f"UPDATE entry SET seq = seq + {2**62} WHERE seq > 20",),
    (f"UPDATE head SET seq = {2**63 - 1}", f"UPDATE books SET sealed_to = {2**63 - 1}"),
    (f"UPDATE books SET sealed_to = {-(2**63)}",),
    (f"UPDATE hold SET hold_id = {2**63 - 1} WHERE closed_seq IS NULL",),
    (f"UPDATE hold SET hold_id = {-(2**63)} WHERE {FIRST_HOLD}",),
    (f"UPDATE hold SET closed_seq = {2**63 - 1}, remaining = {2**63 - 1}",),
    (f"UPDATE balance SET seq = {2**63 - 1}, segments = x'ffffffff'",),
    (f"UPDATE owner_bucket SET bucket = {2**63 - 1} WHERE bucket = (SELECT min(bucket) FROM owner_bucket)",),
    (f"UPDATE key_bucket SET id = {2**63 - 1} WHERE id = 600",),
    (f"UPDATE key_filter SET level = {2**63 - 1}, covered_to = {2**63 - 1} WHERE level = 0",),
    (f"UPDATE key_filter_page SET page = {2**63 - 1} WHERE level = 0",),
    (f"UPDATE reversal SET seq = {2**63 - 1} WHERE seq = (SELECT min(seq) FROM reversal)",),
    (f"UPDATE coin SET scale = {2**63 - 1}, seq = {-(2**63)}",),
    (f"UPDATE ledger SET epoch_seq = {2**63 - 1}, segment_entries = {2**63 - 1}",),
    (f"UPDATE keys_of SET change = {-(2**63)}",),
]


@pytest.mark.parametrize("statements", ABSURD, ids=lambda statements: statements[-1])
def test_audit_of_an_absurd_number_names_it_and_does_not_count_up_to_it(
    healthy: Path, tmp_path: Path, statements: tuple[str, ...]
) -> None:
    """However great a number is that somebody wrote, the audit ends as soon as without it."""
    report = seen(healthy, tmp_path, *map(of, statements))
    assert report


def test_audit_of_a_journal_with_a_wide_gap_reads_what_is_behind_it(healthy: Path, tmp_path: Path) -> None:
    """One finding says which entries are missing, and the tables of the segments with the gap are not named for it."""
    folder = copy_of(healthy, tmp_path / "copy")
    report = audit_after(folder, of("DELETE FROM entry WHERE seq BETWEEN 9 AND 40"))
    missing = [finding for finding in report.findings if finding.code == "entry_missing"]
    assert [(finding.seq, finding.found) for finding in missing] == [(9, "no entries 9 to 40")]
    assert report.audited_to == report.head_seq
    assert not {"bucket_damaged", "key_row_extra", "history_row_extra"} & set(report.counts)
    assert len(report.advice) == 1
    assert "restore" in report.advice[0]


SCHEMA = [
    ("journal.db", "DROP TRIGGER entry_is_never_deleted", "trigger_changed", "trigger entry_is_never_deleted"),
    ("journal.db", "DROP TRIGGER head_never_goes_back", "trigger_changed", "trigger head_never_goes_back"),
    ("journal.db", "CREATE TRIGGER quiet BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END",
     "trigger_changed", "trigger quiet"),
    ("journal.db", "DROP VIEW posting", "schema_changed", "view posting"),
    ("journal.db", "CREATE UNIQUE INDEX once ON entry (length(body), seq)", "schema_changed", "index once"),
    ("journal.db", "ALTER TABLE ledger ADD COLUMN more TEXT", "schema_changed", "table ledger"),
    ("books.db", "DROP INDEX hold_due", "schema_changed", "index hold_due"),
    ("books.db", "DROP INDEX customer_name", "schema_changed", "index customer_name"),
    ("books.db", "ALTER TABLE balance RENAME TO saldo", "schema_changed", "table balance"),
    ("keys.db", "DROP INDEX access_keys_of_customer", "schema_changed", "index access_keys_of_customer"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "statement", "code", "name"), SCHEMA, ids=[statement for _, statement, *_ in SCHEMA])
def test_audit_of_a_ledger_with_another_schema_names_it(
    healthy: Path, tmp_path: Path, file: str, statement: str, code: str, name: str
) -> None:
    """What keeps the journal from being changed, and what finds rows, is part of the ledger."""
    folder = copy_of(healthy, tmp_path / "copy")
    with damaging(folder):
        pass
    assert audited(folder).verdict == "clean"
    with raw(folder, file) as connection:
        connection.execute(statement)
    report = audited(folder)
    assert report.verdict == "damaged"
    assert (code, f"{file}: {name}") in [(finding.code, finding.where) for finding in report.findings]
    assert set(report.counts) == {code}


def test_audit_of_a_ledger_with_tables_of_others_is_clean(healthy: Path, tmp_path: Path) -> None:
    """A tool that copies the log away keeps tables of its own in the file."""
    folder = copy_of(healthy, tmp_path / "copy")
    with raw(folder) as connection:
        connection.execute("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
    assert audited(folder).verdict == "clean"


def test_audit_with_many_findings_lists_some_and_counts_all(healthy: Path, tmp_path: Path) -> None:
    """The list is capped for each code, so that one fault of many rows does not hide another."""
    folder = copy_of(healthy, tmp_path / "copy")
    with damaging(folder) as damage:
        damage.sql("DELETE FROM history_bucket")
        damage.sql("UPDATE reversal SET by_seq = 5")
    report = audited(folder)
    assert report.counts["bucket_damaged"] > 20
    assert sum(finding.code == "bucket_damaged" for finding in report.findings) == 20
    assert report.counts["reversal_row_differs"] == sum(f.code == "reversal_row_differs" for f in report.findings)

"""After a restore no old id, number or cursor means another thing, on the operator API and in the library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import restore
from spotledger.audit.embedded import audit_file
from spotledger.cli.main import program
from spotledger.client.problems import error_of_problem
from spotledger.clock import now_ms
from spotledger.errors import EpochMissing, InvalidRequest, PreconditionFailed, Refused, UnknownPosition
from spotledger.storage.folder import LEDGER_FILE
from support_feed import FeedReader
from support_operator import Api, operator_api

#: Of what was lost, and given again: a deposit of alice's and then of bob's, a hold of alice's and then of bob's.
DEPOSIT, HOLD = 10, 11


class Lost:
    """A service that was restored from a backup, up to entry 8, and went on; the rest of the first history is lost."""

    def __init__(self, place: Path) -> None:
        self.file, self.folder = place / "backup", place / "restored"
        with operator_api(place / "data") as api:
            api.set_up()
            ledger = api.runtime.ledger
            back_up(ledger, self.file, now_ms)
            assert api.seq == 8
            api.must("/v1/customers", {"customer": "carol"}, "gone-1")
            api.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "7"}, "gone-2")
            api.must("/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "7"}, "gone-3")
        self.folder.mkdir()
        restored = restore(self.file, self.folder, None)
        assert (restored.epoch, restored.backup.seq) == (2, 8)

    def go_on(self, api: Api) -> None:
        """Book other things under the numbers that were lost: entry 9 began the epoch."""
        api.token = api.runtime.tokens.create(["admin"])[1]
        api.must("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "50"}, "new-2")
        api.must("/v1/holds", {"customer": "bob", "coin": "usdt", "amount": "30"}, "new-3")
        assert api.seq == HOLD


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """The API over a restored ledger."""
    lost = Lost(tmp_path)
    with operator_api(lost.folder) as made:
        lost.go_on(made)
        yield made


def refused(api: Api, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """Make a write that has to be refused without a trace; return the refusal."""
    seq = api.seq
    answer = api.post(path, body, key)
    assert answer.status_code == 422, answer.text
    assert api.seq == seq
    return answer.json()


OLD_NAMES = [
    ("/v1/withdrawals", {"hold": "11", "amount": "7"}, "hold", "epoch_missing"),
    ("/v1/withdrawals", {"hold": "1-11", "amount": "7"}, "hold", "unknown_position"),
    ("/v1/releases", {"hold": "11"}, "hold", "epoch_missing"),
    ("/v1/holds/11/release", {}, "hold", "epoch_missing"),
    ("/v1/holds/1-11/release", {}, "hold", "unknown_position"),
    ("/v1/reversals", {"seq": 10, "reason": "late"}, "seq", "epoch_missing"),
    ("/v1/reversals", {"seq": "1-10", "reason": "late"}, "seq", "unknown_position"),
    ("/v1/reversals", {"seq": 10, "epoch": 1, "reason": "late"}, "seq", "precondition_failed"),
]


@pytest.mark.parametrize(("path", "body", "field", "code"), OLD_NAMES)
def test_write_of_before_the_restore_takes_nothing_of_others(
    api: Api, path: str, body: dict[str, Any], field: str, code: str
) -> None:
    """A late withdrawal, release or reversal by an old id is refused, keeps no key, and says what is in common."""
    refusal = refused(api, path, body, "late")
    assert (refusal["code"], refusal["field"], refusal["last_common"]) == (code, field, "8")
    assert api.balances("bob")["usdt"] == {"available": "20.00", "freeze": "30.00"}
    assert api.post("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "1"}, "late").status_code == 200


def test_fill_of_before_the_restore_names_the_side(api: Api) -> None:
    """A side of a settlement is a name of a hold too; the refusal says which of the two."""
    api.must("/v1/deposits", {"customer": "alice", "coin": "btc", "amount": "1"})
    sells = api.must("/v1/holds", {"customer": "alice", "coin": "btc", "amount": "1"})["hold"]
    fill: dict[str, Any] = {"base": "btc", "quote": "usdt", "base_amount": "1", "quote_amount": "30"}
    refusal = refused(api, "/v1/settlements", {**fill, "buyer": {"hold": "11"}, "seller": {"hold": sells}})
    assert (refusal["code"], refusal["field"]) == ("epoch_missing", "buyer.hold")
    refusal = refused(
        api, "/v1/settlements", {**fill, "buyer": {"hold": "2-11"}, "seller": {"hold": sells, "coin": "usdt"}}
    )
    assert (refusal["code"], refusal["field"]) == ("precondition_failed", "seller.hold")
    fill = {**fill, "buyer": {"hold": "2-11", "customer": "bob", "epoch": 2}, "seller": {"hold": sells}}
    done = api.must("/v1/settlements", fill, "fill")
    assert api.must("/v1/settlements", fill, "fill")["seq"] == done["seq"]


def test_new_names_work_and_are_given_out(api: Api) -> None:
    """What the service gives out after a restore is a position, and is taken back everywhere."""
    [hold] = api.get("/v1/customers/bob/holds").json()["holds"]
    assert hold["hold"] == "2-11"
    assert {**api.get("/v1/holds/2-11").json()["hold"], "age_ms": 0} == {**hold, "age_ms": 0}
    answer = api.post("/v1/withdrawals", {"hold": "2-11", "amount": "10"}, "w")
    assert answer.status_code == 200, answer.text
    written = answer.json()
    assert (written["seq"], written["epoch"], answer.headers["x-ledger-position"]) == (12, 2, "2-12")
    assert written["entry"]["holds"] == [{"hold": "2-11", "remaining": "20.00"}]
    assert api.post("/v1/withdrawals", {"hold": "2-11", "amount": "10"}, "w").headers["idempotency-replayed"] == "true"
    assert api.must("/v1/reversals", {"seq": "2-12", "reason": "r"})["entry"]["request"]["seq"] == 12
    assert api.must("/v1/reversals", {"seq": 10, "epoch": 2, "customer": "bob", "coin": "usdt", "reason": "r"})
    # What was before the backup has its old name still.
    assert api.must("/v1/releases", {"hold": "8", "amount": "1"})["entry"]["holds"][0]["hold"] == "8"
    assert api.must("/v1/releases", {"hold": "1-8", "amount": "1", "epoch": 1})


PRECONDITIONS = [
    ("/v1/releases", {"hold": "2-11", "customer": "alice"}, "hold"),
    ("/v1/releases", {"hold": "2-11", "coin": "btc"}, "hold"),
    ("/v1/releases", {"hold": "2-11", "epoch": 1}, "hold"),
    ("/v1/releases", {"hold": {"key": "new-3"}, "epoch": 3}, "hold"),
    ("/v1/releases", {"hold": {"key": "new-3"}, "customer": "alice"}, "hold"),
    ("/v1/holds/2-11/release", {"customer": "alice"}, "hold"),
    ("/v1/withdrawals", {"hold": "2-11", "amount": "1", "customer": "alice"}, "hold"),
    ("/v1/withdrawals", {"hold": "2-11", "amount": "1", "coin": "btc"}, "hold"),
    ("/v1/withdrawals", {"hold": "11", "amount": "1", "epoch": 1}, "hold"),
    ("/v1/reversals", {"seq": "2-10", "reason": "r", "customer": "alice"}, "seq"),
    ("/v1/reversals", {"seq": "2-10", "reason": "r", "coin": "btc"}, "seq"),
    ("/v1/reversals", {"seq": 10, "reason": "r", "epoch": 1}, "seq"),
]


@pytest.mark.parametrize(("path", "body", "field"), PRECONDITIONS)
def test_precondition_that_does_not_hold_keeps_nothing(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    """Customer, coin and epoch of what is named are checked; a key that failed them can be used again."""
    refusal = refused(api, path, body, "K")
    assert (refusal["code"], refusal["field"]) == ("precondition_failed", field)
    right = {name: value for name, value in body.items() if name not in ("customer", "coin", "epoch")}
    if right.get("hold") == "11":
        right["hold"] = "2-11"
    if right.get("seq") == 10:
        right["seq"] = "2-10"
    first = api.must(path, right, "K")
    # A known key is answered as the first time, whatever the preconditions are.
    again = api.post(path, {**body, **right}, "K")
    assert (again.status_code, again.json()["seq"]) == (200, first["seq"])


def test_cursors_of_before_the_restore_are_refused_with_what_is_in_common(api: Api) -> None:
    """Pages, past balances and waits take positions, and no old one is taken for a new one."""
    for path, name in (
        ("/v1/entries", "after_seq"),
        ("/v1/customers/bob/entries", "after_seq"),
        ("/v1/customers/bob/balances", "at_seq"),
        ("/v1/customers/bob/holds", "after"),
        ("/v1/coins", "min_seq"),
    ):
        for value, code in (("10", "epoch_missing"), ("1-10", "unknown_position"), ("2-8", "unknown_position")):
            answer = api.get(path, **{name: value})
            assert (answer.status_code, answer.json().get("code")) == (422, code), (path, value)
            assert answer.json()["last_common"] == "8"
        for value in ("8", "1-8", "2-9"):
            assert api.get(path, **{name: value}).status_code == 200, (path, value)
    assert api.get("/v1/entries/10").json()["code"] == "epoch_missing"
    assert api.get("/v1/holds/1-11").json()["code"] == "unknown_position"
    assert api.get("/v1/entries/2-10").json()["entry"]["key"] == "new-2"
    assert api.get("/v1/customers/bob/balances", at_seq="2-10").json()["epoch"] == 2
    assert api.get("/v1/customers/bob/balances", at_seq="8").json()["epoch"] == 1


def test_follower_pages_over_the_restore_with_next(api: Api) -> None:
    """`next` leads through all epochs; the plain number beside it is refused once it is ambiguous."""
    after, seen = "0", []
    while True:
        page = api.get("/v1/entries", after_seq=after, limit=2).json()
        if not page["entries"]:
            break
        seen += [(entry["epoch"], entry["seq"]) for entry in page["entries"]]
        after = page["next"]
    assert seen == [*((1, seq) for seq in range(1, 9)), (2, 9), (2, 10), (2, 11)]
    assert after == "2-11"
    for path in ("/v1/entries", "/v1/customers/bob/entries", "/v1/customers/bob/holds", "/v1/holds", "/v1/coins"):
        assert api.get(path).headers["x-ledger-position"] == "2-11", path
    assert api.get("/v1/customers/bob/balances", at_seq="8").headers["x-ledger-position"] == "8"
    begun = api.get("/v1/entries/2-9").json()["entry"]
    assert (begun["kind"], begun["actor"], begun["request"]["epoch"]) == ("begin_epoch", "ledger", 2)
    assert api.get("/v1/customers/bob/entries").json()["next"] == "2-11"


def test_feed_names_events_by_position_and_refuses_old_ones(api: Api) -> None:
    """A stream resumes at a position of this history; at one of another, it says what is in common."""

    async def read() -> None:
        reader = FeedReader(api, "after_seq=8")
        assert [event_id for event_id, _ in await reader.take(3)] == ["2-9", "2-10", "2-11"]
        await reader.leave()
        reader = FeedReader(api, headers={"Last-Event-ID": "2-10"})
        assert [event_id for event_id, _ in await reader.take(1)] == ["2-11"]
        await reader.leave()
        for old in ("11", "1-11"):
            reader = FeedReader(api, headers={"Last-Event-ID": old})
            await asyncio.sleep(0)
            while not reader.status:
                await asyncio.sleep(0.001)
            assert reader.status == 422
            await reader.leave()

    api.run(read())


def test_entries_say_which_token_caused_them(api: Api) -> None:
    """An entry has the credential behind it: a token, the library, or the ledger itself."""
    record = api.runtime.tokens.create(["ledger:write"])[0]
    token = api.runtime.tokens.create(["ledger:write", "ledger:read"])
    answer = api.post("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "1"}, "by-token", token[1])
    assert answer.json()["entry"]["actor"] == f"token:{token[0].token_id}" != f"token:{record.token_id}"
    batch = {"operations": [{"op": "deposit", "key": "b", "customer": "bob", "coin": "usdt", "amount": "1"}]}
    answer = api.post("/v1/batches", batch, token=token[1])
    assert answer.json()["results"][0]["entry"]["actor"] == f"token:{token[0].token_id}"
    # A repeat is answered with the actor of the first time.
    again = api.post("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "1"}, "by-token")
    assert again.json()["entry"]["actor"] == f"token:{token[0].token_id}"


def test_expiry_names_the_ledger_and_the_library_names_itself(tmp_path: Path) -> None:
    """What nobody asked for is the ledger's own, also within the group of somebody who asks for something else."""
    clock = [1_700_000_000_000]
    with spotledger.open(tmp_path / "data", clock_ms=lambda: clock[0]) as ledger:
        ledger.list_coin("usdt", 2, key="c")
        ledger.register_customer("ann", key="r")
        ledger.deposit("ann", "usdt", "5", key="d")
        ledger.freeze("ann", "usdt", "1", key="f", expires_ms=clock[0] + 10)
        clock[0] += 20
        ledger.deposit("ann", "usdt", "5", key="e")
        assert [(entry.kind, entry.actor) for entry in ledger.entries(3)] == [
            ("freeze", "library"),
            ("expire", "ledger"),
            ("deposit", "library"),
        ]


def test_epochs_begun_by_hand_are_kept_over_starts_and_audits(tmp_path: Path) -> None:
    """An epoch begins with an entry; the library takes positions as the API does, over sealed segments and starts."""
    folder = tmp_path / "data"
    with spotledger.open(folder, segment_entries=8) as ledger:
        ledger.list_coin("usdt", 2, key="c")
        ledger.register_customer("ann", key="r")
        ledger.deposit("ann", "usdt", "50", key="d")
        for epoch in (2, 7, 8):
            assert ledger.begin_epoch("set back", None if epoch == 8 else epoch) == ledger.head.seq
            for number in range(9):
                ledger.freeze("ann", "usdt", "1", key=f"f{epoch}-{number}")
        for reason in (None, "", "two\nlines"):
            with pytest.raises(InvalidRequest):
                ledger.begin_epoch(reason)  # type: ignore[arg-type]
        names = [ledger.epochs.text(hold.hold_id) for hold in ledger.holds("ann")]
        assert (names[0], names[-1], ledger.epoch) == ("2-5", "8-33", 8)
    with spotledger.open(folder) as ledger:
        assert ledger.epoch == 8
        for name in names[::5]:
            ledger.unfreeze(name, "0.5", key=f"u{name}")
        with pytest.raises(EpochMissing):
            ledger.unfreeze(5, key="x")
        with pytest.raises(UnknownPosition):
            ledger.unfreeze("7-33", key="x")
        with pytest.raises(PreconditionFailed):
            ledger.unfreeze("8-33", key="x", customer="bob")
        with pytest.raises(UnknownPosition):
            ledger.reverse("2-3", "x", key="x")
    report = audit_file(folder / LEDGER_FILE)
    assert (report.verdict, report.epoch, report.counts) == ("clean", 8, {})


@pytest.mark.parametrize("hold", ["11", "1-11"])
def test_chain_that_names_another_history_keeps_nothing(api: Api, hold: str) -> None:
    """Such a chain is answered alike each time, also where an operation before it has a cause that would be kept."""
    takes = {"op": "withdraw", "key": "takes", "customer": "bob", "coin": "usdt", "amount": "1000"}
    late = {"op": "unfreeze", "key": "late", "hold": hold}
    seq = api.seq
    for _ in range(2):
        results = api.post("/v1/batches", {"operations": [takes, late], "atomic": True}).json()["results"]
        code = "epoch_missing" if hold == "11" else "unknown_position"
        assert [result["code"] for result in results] == ["chain_failed", code]
        assert (results[0]["cause_key"], results[0]["cause_code"]) == ("late", code)
        assert (results[1]["field"], results[1]["last_common"]) == ("hold", "8")
    assert api.seq == seq
    meant = {"operations": [{**takes, "amount": "1"}, {**late, "hold": "2-11"}], "atomic": True}
    for is_repeat in (None, True):
        results = api.post("/v1/batches", meant).json()["results"]
        assert [result.get("replayed") for result in results] == [is_repeat, is_repeat]
        assert [result["seq"] for result in results] == [seq + 1, seq + 2]


def test_receipt_names_what_it_booked_in_every_epoch(tmp_path: Path) -> None:
    """What a program that uses the library passes on works after a restore as before, also from a repeat."""
    with spotledger.open(tmp_path / "data") as ledger:
        ledger.list_coin("usdt", 2, key="c")
        ledger.register_customer("ann", key="r")
        for epoch in (1, 2, 3):
            if epoch > 1:
                ledger.begin_epoch("set back")
            paid = ledger.deposit("ann", "usdt", "5", key=f"d{epoch}")
            made = ledger.freeze("ann", "usdt", "1", key=f"f{epoch}")
            assert made.position == ledger.epochs.text(made.seq)
            assert ledger.unfreeze(made.position, "0.5", key=f"u{epoch}").epoch == epoch
            assert ledger.withdraw("0.5", hold=made.position, key=f"w{epoch}").epoch == epoch
            assert ledger.reverse(paid.position, "mistake", key=f"v{epoch}").epoch == epoch
            again = ledger.freeze("ann", "usdt", "1", key="f1")
            assert (again.replayed, again.epoch, again.position) == (True, 1, str(again.hold))


def test_kept_refusal_says_of_which_epoch_its_entry_is(api: Api) -> None:
    """The number of a kept refusal alone would name an entry of epoch 1; a repeat says the same."""
    short = {"customer": "bob", "coin": "usdt", "amount": "1000"}
    answers = [api.post("/v1/withdrawals", short, "short").json() for _ in range(2)]
    operations = [{"op": "withdraw", "key": key, **short} for key in ("short", "other")]
    answers += api.post("/v1/batches", {"operations": operations}).json()["results"]
    assert [(answer["seq"], answer["epoch"]) for answer in answers] == [(12, 2), (12, 2), (12, 2), (13, 2)]
    assert api.get("/v1/entries/2-12").json()["entry"]["key"] == "short"
    error = error_of_problem(422, {}, answers[0])
    assert isinstance(error, Refused)
    assert (error.seq, error.epoch, "epoch" in error.details) == (12, 2, False)
    failed = error_of_problem(422, {}, api.post("/v1/releases", {"hold": "2-11", "epoch": 1}).json())
    assert (failed.details["epoch"], failed.details["last_common"]) == (2, "8")


def test_command_line_shows_positions_that_it_takes_back(tmp_path: Path) -> None:
    """Whatever names an entry in a table or a line can be given to the next command, after a restore too."""
    folder = tmp_path / "data"
    with spotledger.open(folder) as ledger:
        ledger.list_coin("usdt", 2, key="c")
        ledger.register_customer("ann", key="r")
        ledger.begin_epoch("set back")

    def said(*arguments: str, code: int = 0) -> str:
        environment = {"SPOTLEDGER_MASTER_KEY": "5a" * 32}
        done = CliRunner().invoke(program, [*arguments, "--data", str(folder)], env=environment)
        assert done.exit_code == code, done.output
        return done.output

    assert "entry 2-4: deposit" in said("deposit", "ann", "usdt", "5", "--key", "d")
    assert "(entry 2-5)" in said("coin", "add", "btc", "--scale", "8")
    history = said("history", "ann").splitlines()
    assert history[0].strip() == "ann, as of entry 2-5"
    assert [line.split()[0] for line in history[3:-1]] == ["2-4"]
    assert "as of entry 2-5" in said("balances", "ann")
    assert "as of entry 2-5: balanced" in said("trial-balance")
    assert [line.split()[0] for line in said("feed").splitlines()] == ["1", "2", "2-3", "2-4", "2-5"]
    assert "entry 2-6: reverse" in said("reverse", "2-4", "--reason", "mistake", "--key", "v")
    refused = json.loads(said("withdraw", "ann", "usdt", "5", "--key", "w", "--json", code=1).splitlines()[-1])
    assert (refused["code"], refused["seq"], refused["epoch"]) == ("insufficient_available", 7, 2)

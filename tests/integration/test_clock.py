"""A leap of the wall clock, seen through the API and across starts: nothing is booked, nothing expires, reads go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import restore
from spotledger.clock import IDLE_MS, LEAP_MS, STEADY_MS
from spotledger.errors import ClockUntrusted
from spotledger.ledger import writer as writer_module
from spotledger.ledger.ledger import Ledger
from spotledger.storage.sqlite.noted_head import NOTE_FILE, NotedHead, read_note
from support_clock import DAY, HOUR, START, Machine
from support_core import seed, spot
from support_operator import Api, operator_api
from support_public import NONCE, service as public_service, signed_query

MINUTE = 60_000


@pytest.fixture
def machine() -> Machine:
    """Give a machine."""
    return Machine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name the data folder."""
    return tmp_path / "data"


@pytest.fixture
def api(machine: Machine, folder: Path) -> Iterator[Api]:
    """Give the operator API of a service on *machine*, with alice, who has a hold."""
    with operator_api(folder, time_sources=machine.sources) as made:
        made.set_up()
        yield made


def open_on(machine: Machine, folder: Path, **options: Any) -> Ledger:
    """Open the ledger in *folder* on *machine*."""
    return spotledger.open(folder, segment_entries=64, time_sources=machine.sources, **options)


def noted_ms(folder: Path) -> int:
    """Return the time in the noted head."""
    note = read_note(folder / NOTE_FILE)
    assert note is not None
    return note.time_ms


def deposit(api: Api, key: str) -> Any:
    """Send a deposit with *key*, whatever comes of it."""
    return api.post("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"}, key)


def metric(api: Api, name: str) -> float:
    """Return one metric of the service."""
    lines = api.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"spotledger_{name} ")))


# --- the service ------------------------------------------------------------------------------------


def test_write_while_the_clock_is_untrusted_is_refused_and_passes_afterwards(api: Api, machine: Machine) -> None:
    """The answer is 503 with the code, the same request passes once the clock is right, and repeats too."""
    first = deposit(api, "first").json()
    machine.leap(5 * HOUR)
    refused = deposit(api, "second")
    assert (refused.status_code, refused.json()["code"]) == (503, "clock_untrusted")
    assert refused.headers["retry-after"] == "1"
    assert deposit(api, "first").json()["code"] == "clock_untrusted"
    machine.leap(-5 * HOUR)
    assert deposit(api, "first").json() == first
    assert deposit(api, "second").json()["seq"] == first["seq"] + 1


def test_service_whose_clock_is_untrusted_says_so_everywhere(api: Api, machine: Machine) -> None:
    """Readiness, metrics and the call about the clock say it; they say nothing before and after."""
    assert api.get("/readyz").status_code == 200
    assert (metric(api, "clock_trusted"), metric(api, "can_write"), metric(api, "clock_offset_ms")) == (1, 1, 0)
    machine.leap(-HOUR)
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "clock_untrusted")
    assert "60.0 min behind" in answer.json()["detail"]
    assert (metric(api, "clock_trusted"), metric(api, "can_write"), metric(api, "clock_offset_ms")) == (0, 0, -HOUR)
    told = api.get("/v1/clock").json()
    assert told.pop("reason") == "the wall clock is 60.0 min behind the time that is known"
    assert told == {"trusted": False, "now_ms": START, "wall_ms": START - HOUR, "offset_ms": -HOUR}
    assert api.get("/healthz").status_code == 200
    machine.leap(HOUR)
    assert api.get("/readyz").status_code == 200
    assert api.get("/v1/clock").json()["trusted"] is True


def test_reads_while_the_clock_is_untrusted_go_on_and_show_no_hold_as_older(api: Api, machine: Machine) -> None:
    """Balances, holds and history are read as before, and the age of a hold is that of the time that counts."""
    machine.wait(5_000)
    [hold] = api.get("/v1/customers/alice/holds").json()["holds"]
    machine.leap(365 * DAY)
    assert api.balances("alice")["usdt"] == {"available": "100.00", "freeze": "20.00"}
    assert api.get("/v1/customers/alice/holds").json()["holds"] == [hold]
    assert hold["age_ms"] == 5_000
    assert api.balances("alice", at_ms=START + 5_000)["usdt"]["freeze"] == "20.00"
    refused = api.get("/v1/customers/alice/balances", at_ms=machine.wall)
    assert (refused.status_code, refused.json()["field"]) == (422, "at_ms")
    made = api.post("/v1/keys", {"customer": "alice", "permissions": ["read"], "expires_ms": START + HOUR})
    assert made.status_code == 200, "access keys are judged by the time that counts"


def test_live_holds_of_a_clock_that_leapt_for_a_second_stay_open(api: Api, machine: Machine) -> None:
    """The found fault: holds expired at once, freezes were refused for hours, and now was an old entry."""
    body = {"customer": "alice", "coin": "usdt", "amount": "1", "expires_ms": START + HOUR}
    hold = api.must("/v1/holds", body)["hold"]
    machine.leap(5 * HOUR)
    machine.wait(1_000)
    assert deposit(api, "meanwhile").status_code == 503
    machine.leap(-5 * HOUR)
    assert api.get(f"/v1/holds/{hold}").json()["hold"]["state"] == "open"
    last = api.must("/v1/holds", {**body, "expires_ms": START + 2 * MINUTE})
    assert api.get("/v1/customers/alice/balances", at_ms=machine.wall).json()["seq"] == last["seq"]
    machine.wait(HOUR)
    deposit(api, "later")
    assert api.get(f"/v1/holds/{hold}").json()["hold"]["state"] == "closed"


def test_trusting_the_clock_makes_it_count_at_once_and_needs_admin(api: Api, machine: Machine, folder: Path) -> None:
    """The operator decides: the wall clock's time counts from then on, and the next start knows it."""
    machine.leap(30 * DAY)
    weak = api.must("/v1/tokens", {"scopes": ["ledger:read", "ledger:write", "keys:write"]})["token"]
    refused = api.post("/v1/clock/trust", {}, token=weak)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    told = api.request("POST", "/v1/clock/trust", headers=api.headers()).json()
    assert told == {"trusted": True, "now_ms": machine.wall, "wall_ms": machine.wall, "offset_ms": 0, "reason": None}
    assert noted_ms(folder) == machine.wall
    assert deposit(api, "afterwards").status_code == 200
    again = api.request("POST", "/v1/clock/trust", headers=api.headers()).json()
    assert again == told


def test_trusting_an_earlier_clock_is_known_to_the_next_start(machine: Machine, folder: Path) -> None:
    """After a clock that was wrongly trusted, times stand still, and no start waits for what was noted before."""
    with open_on(machine, folder) as ledger:
        machine.leap(30 * DAY)
        ledger.trust_clock()
        seed(ledger, "ann")
        machine.leap(-30 * DAY)
        assert ledger.clock_distrust is not None
        ledger.trust_clock()
        assert ledger.deposit("ann", "btc", "1", key="standing").entry.booked_ms == machine.wall + 30 * DAY
    assert noted_ms(folder) == machine.wall
    machine.reboot(off_ms=1_000)
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is None
        assert not ledger.deposit("ann", "btc", "1", key="again").replayed


def test_writer_neither_expires_nor_floods_the_log_while_the_clock_is_untrusted(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The look for expired holds rests meanwhile, and goes on by itself afterwards."""
    monkeypatch.setattr(writer_module, "EXPIRY_SECONDS", 0.01)

    async def until(state: str, ledger: Ledger, hold: int) -> None:
        while True:
            found = ledger.hold(hold)
            assert found is not None
            if found.state == state:
                return
            await asyncio.sleep(0.01)

    async def story(ledger: Ledger) -> None:
        hold = ledger.freeze("ann", "btc", "1", key="hold", expires_ms=START + HOUR).seq
        writer = writer_module.Writer(ledger)
        await writer.start()
        machine.leap(2 * HOUR)
        await asyncio.sleep(0.2)
        assert not writer.can_write
        await until("open", ledger, hold)
        machine.error = 0
        machine.wait(HOUR)
        async with asyncio.timeout(20):
            await until("closed", ledger, hold)
        assert writer.can_write
        await writer.stop()

    with open_on(machine, folder) as ledger, caplog.at_level(logging.INFO):
        seed(ledger, "ann")
        asyncio.run(story(ledger))
    assert [record.name for record in caplog.records] == ["spotledger.clock"] * 2


def test_many_writes_to_an_untrusted_clock_are_all_refused_with_its_code(api: Api, machine: Machine) -> None:
    """One group of several requests, and a request of several groups: each gets the answer."""
    machine.leap(HOUR)
    bodies = [{"customer": "alice", "coin": "usdt", "amount": "1"}] * 20
    answers = api.at_once("/v1/deposits", bodies, "many-")
    assert {answer.json()["code"] for answer in answers} == {"clock_untrusted"}
    assert api.runtime.writer.waiting == 0
    machine.leap(-HOUR)
    assert {answer.status_code for answer in api.at_once("/v1/deposits", bodies, "many-")} == {200}


# --- signed requests --------------------------------------------------------------------------------


def test_nonce_passes_by_either_clock_while_the_wall_clock_is_untrusted(tmp_path: Path) -> None:
    """A client may have its time from the true one or from the same wrong source; any other nonce is refused."""
    with public_service(tmp_path, asset_limit_per_second=0) as public:
        wall: list[int | None] = [NONCE + 5 * HOUR]
        public.app.gate._wall_ms = lambda: wall[0]
        assert public.code(signed_query()) == 200
        assert public.code(signed_query(nonce=NONCE + 5 * HOUR)) == 200
        assert public.code(signed_query(nonce=NONCE + HOUR)) == 400
        assert public.code(signed_query(nonce=NONCE + 5 * HOUR - public.app.settings.nonce_past_ms - 1)) == 400
        wall[0] = None
        assert public.code(signed_query(nonce=NONCE + 5 * HOUR)) == 400


def test_public_readiness_names_the_clock_and_that_of_reads_stays(tmp_path: Path) -> None:
    """A balancer sends writes elsewhere and goes on sending reads."""
    with public_service(tmp_path) as public:
        public.app._is_ready = lambda: False
        public.app._clock_distrust = lambda: "it leapt"
        answer = public.ask(path="/readyz")
        assert (answer.status, answer.body) == (503, b'{"status":"cannot write","code":"clock_untrusted"}')
        assert public.ask(path="/readyz/reads").status == 200
        public.app._clock_distrust = lambda: None
        assert public.ask(path="/readyz").body == b'{"status":"cannot write"}'


# --- the noted time ---------------------------------------------------------------------------------


def test_noted_time_is_the_trusted_one_and_not_a_wall_clock_that_leapt(machine: Machine, folder: Path) -> None:
    """What the next start is compared with never comes from a leap."""
    with open_on(machine, folder) as ledger:
        assert noted_ms(folder) == START
        machine.wait(3_000)
        seed(ledger, "ann")
        assert noted_ms(folder) == START + 3_000
        machine.leap(HOUR)
        machine.wait(3_000)
        with pytest.raises(ClockUntrusted):
            ledger.deposit("ann", "btc", "1", key="refused")
        ledger.note_time()
        assert noted_ms(folder) == START + 6_000


def test_noted_time_is_renewed_while_nobody_writes(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was idle for a month, and is started again, needs nobody to trust its clock."""
    monkeypatch.setattr(writer_module, "EXPIRY_SECONDS", 0.01)
    monkeypatch.setattr(writer_module, "NOTE_SECONDS", 0.05)

    async def story(ledger: Ledger) -> None:
        writer = writer_module.Writer(ledger)
        await writer.start()
        for _ in range(30):
            machine.wait(DAY)
            async with asyncio.timeout(20):
                while noted_ms(folder) != machine.true:
                    await asyncio.sleep(0.01)
        await writer.stop()

    with open_on(machine, folder) as ledger:
        seed(ledger, "ann")
        asyncio.run(story(ledger))
        head = ledger.head
    machine.reboot(off_ms=DAY)
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is None
        assert ledger.head == head


def test_start_after_a_small_leap_back_that_was_adopted_does_not_wait_for_it(machine: Machine, folder: Path) -> None:
    """What is noted follows the trusted time, also where that goes back."""
    with open_on(machine, folder) as ledger:
        seed(ledger, "ann")
        machine.leap(-5 * MINUTE)
        ledger.clock.now_ms()
        machine.run(STEADY_MS, ledger.clock)
        ledger.note_time()
        assert noted_ms(folder) == machine.wall
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is None


@pytest.mark.parametrize("is_killed", [False, True], ids=["closed", "not closed"])
def test_start_behind_the_noted_time_waits_and_then_goes_on(machine: Machine, folder: Path, is_killed: bool) -> None:
    """A machine that boots an hour in the past: reads go on, writes wait, and NTP ends it."""
    first = open_on(machine, folder)
    seed(first, "ann")
    if not is_killed:
        first.close()
    else:
        first._release()
    machine.reboot()
    machine.leap(-HOUR)
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is not None
        assert ledger.balances(spot("ann"))["btc"].available == 1_000 * 10**8
        with pytest.raises(ClockUntrusted):
            ledger.deposit("ann", "btc", "1", key="waits")
        machine.run(10 * MINUTE, ledger.clock)
        with pytest.raises(ClockUntrusted):
            ledger.deposit("ann", "btc", "1", key="waits")
        machine.leap(HOUR)
        assert ledger.deposit("ann", "btc", "1", key="waits").entry.booked_ms == machine.true
    if is_killed:
        first.close()


def test_start_a_month_ahead_of_the_noted_time_waits_for_an_operator(machine: Machine, folder: Path) -> None:
    """By the setting; and where an operator trusts the clock, the start after the next needs none."""
    with open_on(machine, folder) as ledger:
        seed(ledger, "ann")
    machine.reboot(off_ms=30 * DAY)
    with open_on(machine, folder, clock_idle_ms=31 * DAY) as ledger:
        assert ledger.clock_distrust is None
        noted = machine.true
    machine.reboot(off_ms=IDLE_MS + LEAP_MS)
    for _ in range(2):
        with open_on(machine, folder) as ledger:
            machine.run(10 * STEADY_MS, ledger.clock)
            assert ledger.clock_distrust is not None
            assert noted_ms(folder) == noted
    with open_on(machine, folder) as ledger:
        ledger.trust_clock()
        assert ledger.deposit("ann", "btc", "1", key="trusted").entry.booked_ms == machine.true
    machine.reboot()
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is None


def test_start_without_a_note_waits_for_the_time_of_the_last_entry_only(machine: Machine, folder: Path) -> None:
    """However old the ledger is, a note that is missing stops nobody; a clock in the past does."""
    with open_on(machine, folder) as ledger:
        seed(ledger, "ann")
    (folder / NOTE_FILE).unlink()
    machine.reboot(off_ms=300 * DAY)
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is None
    (folder / NOTE_FILE).unlink()
    machine.leap(-301 * DAY)
    with open_on(machine, folder) as ledger:
        assert ledger.clock_distrust is not None


def test_commands_that_open_the_ledger_themselves_use_the_same_clock(machine: Machine, folder: Path) -> None:
    """Setting up a runtime is what such commands do: it refuses, and it can be told to trust."""
    with operator_api(folder, time_sources=machine.sources) as api:
        api.set_up()
    machine.reboot(off_ms=30 * DAY)
    with operator_api(folder, time_sources=machine.sources) as api:
        assert deposit(api, "first").json()["code"] == "clock_untrusted"
        api.request("POST", "/v1/clock/trust", headers=api.headers())
        assert deposit(api, "first").status_code == 200
    with operator_api(folder, time_sources=machine.sources, clock_leap_ms=100) as api:
        machine.leap(101)
        assert deposit(api, "second").json()["code"] == "clock_untrusted"


# --- restores ---------------------------------------------------------------------------------------


def wall_ms() -> int:
    """Return the time of this machine."""
    return time.time_ns() // 1_000_000


def old_backup(tmp_path: Path, age_ms: int) -> Path:
    """Return a backup that was made *age_ms* ago."""
    then = wall_ms() - age_ms
    backup = tmp_path / "old.backup"
    with spotledger.open(tmp_path / "source", clock_ms=lambda: then) as ledger:
        seed(ledger, "ann")
        back_up(ledger, backup, lambda: then)
    return backup


def test_restore_of_an_old_backup_into_a_new_folder_needs_nobody_to_trust_the_clock(tmp_path: Path) -> None:
    """The age of a backup says nothing about the clock."""
    restore(old_backup(tmp_path, 300 * DAY), tmp_path / "new", None)
    with spotledger.open(tmp_path / "new") as ledger:
        assert ledger.clock_distrust is None
        assert not ledger.deposit("ann", "btc", "1", key="afterwards").replayed


def test_restore_of_a_backup_from_the_future_waits(tmp_path: Path) -> None:
    """A machine whose clock is behind the backup's time does not book before it."""
    restore(old_backup(tmp_path, -HOUR), tmp_path / "new", None)
    with spotledger.open(tmp_path / "new") as ledger, pytest.raises(ClockUntrusted):
        ledger.deposit("ann", "btc", "1", key="waits")


@pytest.mark.parametrize(("noted_ago", "is_trusted"), [(HOUR, True), (30 * DAY, False)])
def test_restore_into_a_folder_that_knows_the_time_still_checks_the_clock(
    tmp_path: Path, noted_ago: int, is_trusted: bool
) -> None:
    """The folder's own note counts, not the age of the backup."""
    backup = old_backup(tmp_path, 300 * DAY)
    folder = tmp_path / "source"
    note = read_note(folder / NOTE_FILE)
    assert note is not None
    with closing(NotedHead(folder / NOTE_FILE)) as noted:
        noted.write(note._replace(time_ms=wall_ms() - noted_ago))
    for name in ("journal.db", "journal.db-wal"):
        (folder / name).unlink(missing_ok=True)
    restore(backup, folder, None)
    with spotledger.open(folder) as ledger:
        assert (ledger.clock_distrust is None) is is_trusted

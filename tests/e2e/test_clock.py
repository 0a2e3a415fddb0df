"""A real service whose wall clock is set while it runs, by Debian's libfaketime: no leap does harm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

import support_service
from servers.faketime import FakeTime
from servers.missing import ServerMissing, skip_or_fail
from spotledger.clock import UNKNOWN_BOOT
from spotledger.storage.sqlite.noted_head import NOTE_FILE, NotedHead
from support_clock_service import (
    DAY,
    HOUR,
    SETTINGS,
    balance,
    clock_command,
    entries,
    freeze,
    get,
    lines_of_clock,
    post,
    readiness,
    server_time,
    set_up,
    true_ms,
    wait_for,
)
from support_service import Service

StartService = Callable[..., Service]


@pytest.fixture
def faketime(tmp_path: Path) -> Iterator[FakeTime]:
    """Give a wall clock that can be set; at the end it is right."""
    try:
        clock = FakeTime(tmp_path / "faketime")
    except ServerMissing as problem:
        skip_or_fail(problem)
    yield clock
    clock.set("+0")


@pytest.fixture
def start(service: StartService, faketime: FakeTime, tmp_path: Path) -> Callable[[], Service]:
    """Start the service on one folder, with the clock of *faketime*."""
    return lambda: service(folder=tmp_path / "data", env=faketime.environment, **SETTINGS)


def test_faked_clock_leaves_the_steady_ones_alone(faketime: FakeTime) -> None:
    """Else the tests here would show nothing."""
    program = "import time; print(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns())"
    for offset, wrong in (("+5h", 5 * HOUR), ("-30d", -30 * DAY), ("+0", 0)):
        faketime.set(offset)
        before = [time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.monotonic_ns()]
        env = support_service.environment(**faketime.environment)
        shown = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
        ahead = [(int(new) - old) / 1_000_000 for new, old in zip(shown.stdout.split(), before, strict=True)]
        assert ahead[0] == pytest.approx(wrong, abs=60_000)
        assert ahead[1] == pytest.approx(0, abs=60_000)
        assert ahead[2] == pytest.approx(0, abs=60_000)


def test_leap_of_hours_for_a_second_leaves_no_harm(start: Callable[[], Service], faketime: FakeTime) -> None:
    """Live holds stay open, signed reads go on by either clock, and afterwards everything is as it was."""
    service = start()
    trader = set_up(service)
    hold = freeze(service, "live", true_ms() + HOUR).json()["hold"]
    faketime.set("+5h")
    refused = post(service, "/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"}, "meanwhile")
    assert (refused.status_code, refused.json()["code"]) == (503, "clock_untrusted")
    wait_for(503, *readiness(service))
    assert "clock_untrusted" in httpx2.get(readiness(service)[0]).text
    wait_for(200, f"{service.public_url}/readyz/reads", f"{service.public_url}/healthz")
    assert balance(service, trader, true_ms()) == 200
    assert balance(service, trader, true_ms() + 5 * HOUR) == 200
    assert balance(service, trader, true_ms() + 3 * HOUR) == 400
    assert abs(server_time(service) - true_ms()) < HOUR
    assert "spotledger_clock_trusted 0.0" in get(service, "/metrics").text
    assert get(service, f"/v1/holds/{hold}").json()["hold"]["state"] == "open"
    faketime.set("+0")
    wait_for(200, *readiness(service))
    assert get(service, f"/v1/holds/{hold}").json()["hold"]["state"] == "open"
    soon = freeze(service, "soon", true_ms() + 30_000)
    assert soon.status_code == 200, "an expiry before the leaped time is one in the future"
    now = get(service, "/v1/customers/alice/balances", at_ms=true_ms() - 1).json()
    assert now["seq"] >= soon.json()["seq"] - 1
    assert max(entry["booked_ms"] for entry in entries(service)) <= true_ms()
    assert balance(service, trader, true_ms() + 5 * HOUR) == 400
    assert len(lines_of_clock(service)) == 2


def test_leap_back_stops_writes_until_it_is_over(start: Callable[[], Service], faketime: FakeTime) -> None:
    """No entry is booked in the past, and none at a time that stands still."""
    service = start()
    trader = set_up(service)
    faketime.set("-2h")
    assert freeze(service, "first", true_ms() + HOUR).json()["code"] == "clock_untrusted"
    assert balance(service, trader, true_ms()) == 200
    assert balance(service, trader, true_ms() - 2 * HOUR) == 200
    faketime.set("+0")
    before = true_ms()
    assert freeze(service, "first", true_ms() + HOUR).status_code == 200
    assert before - 5 <= entries(service)[-1]["booked_ms"] <= true_ms()


def test_restart_while_the_clock_is_wrong_is_not_fooled(start: Callable[[], Service], faketime: FakeTime) -> None:
    """A supervisor may start the service again because it is not ready: the leap is still known."""
    service = start()
    set_up(service)
    for offset in ("+5h", "-5h"):
        faketime.set(offset)
        wait_for(503, *readiness(service))
        assert service.stop() == 0
        service = start()
        assert freeze(service, f"after{offset}", true_ms() + HOUR).json()["code"] == "clock_untrusted"
        assert abs(server_time(service) - true_ms()) < HOUR
        faketime.set("+0")
        assert freeze(service, f"after{offset}", true_ms() + HOUR).status_code == 200
    assert entries(service)[-1]["booked_ms"] <= true_ms()


def test_start_behind_the_noted_time_waits_until_the_clock_is_set(
    start: Callable[[], Service], faketime: FakeTime
) -> None:
    """As a machine that boots in the past, before NTP has set its clock."""
    service = start()
    trader = set_up(service)
    assert service.stop() == 0
    other_boot(service.folder)
    faketime.set("-1h")
    service = start()
    wait_for(503, *readiness(service))
    assert freeze(service, "waits", true_ms() + HOUR).json()["code"] == "clock_untrusted"
    assert balance(service, trader, true_ms() - HOUR) == 200
    faketime.set("+0")
    wait_for(200, *readiness(service))
    assert freeze(service, "waits", true_ms() + HOUR).status_code == 200


def test_start_a_month_ahead_waits_until_an_operator_trusts_the_clock(
    start: Callable[[], Service], faketime: FakeTime
) -> None:
    """The command asks the server that runs; afterwards writes are booked at the time of the wall clock."""
    service = start()
    trader = set_up(service)
    assert service.stop() == 0
    other_boot(service.folder)
    faketime.set("+30d")
    service = start()
    assert freeze(service, "waits", true_ms() + 31 * DAY).json()["code"] == "clock_untrusted"
    assert balance(service, trader, true_ms() + 30 * DAY) == 200
    shown = json.loads(clock_command(service, faketime, "show").stdout)
    assert (shown["trusted"], "30.0 d ahead" in shown["reason"]) == (False, True)
    told = clock_command(service, faketime, "trust")
    assert (told.returncode, json.loads(told.stdout)["trusted"]) == (0, True)
    assert freeze(service, "waits", true_ms() + 31 * DAY).status_code == 200
    assert entries(service)[-1]["booked_ms"] == pytest.approx(true_ms() + 30 * DAY, abs=HOUR)


def test_clock_that_is_trusted_without_a_server_is_trusted_by_the_next_start(
    start: Callable[[], Service], faketime: FakeTime
) -> None:
    """The command notes the time itself where no server runs."""
    service = start()
    set_up(service)
    assert service.stop() == 0
    other_boot(service.folder)
    faketime.set("+30d")
    shown = json.loads(clock_command(service, faketime, "show").stdout)
    assert shown["trusted"] is False
    assert clock_command(service, faketime, "trust").returncode == 0
    service = start()
    made = freeze(service, "at-once", true_ms() + 31 * DAY)
    assert made.status_code == 200, made.text
    assert not [line for line in lines_of_clock(service) if "ERROR" in line]


def other_boot(folder: Path) -> None:
    """Make the note in *folder* look as if the machine had been started again since."""
    with closing(NotedHead(folder / NOTE_FILE)) as noted:
        assert noted.note is not None
        noted.write(noted.note._replace(boot_id=UNKNOWN_BOOT))

"""What workers let each other know through shared memory: whole, fresh, and gone with a worker that begins anew."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from servers import kept
from spotledger.http.operator.metrics import Metrics
from spotledger.ops import siblings
from spotledger.ops.audits import Audits
from spotledger.ops.siblings import ProcessLock, SharedPage, Siblings

#: How often two workers are asked at the same moment.
ROUNDS = 50
until = partial(kept.until, step=0)


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Let a child process do *work*, and end it with the block."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_page_is_read_whole_while_another_process_writes_it() -> None:
    """However often it is written meanwhile, what is read is one document as it was written, of any length."""
    page = SharedPage()

    def write() -> None:
        number = 0
        while True:
            number += 1
            page.write([number] * (number % 3000 + 1))

    seen = set()
    with forked(write):
        deadline = time.monotonic() + 30
        while len(seen) < 300:
            assert time.monotonic() < deadline
            said = page.read()
            if said is not None:
                (number,) = set(said[1])
                assert len(said[1]) == number % 3000 + 1
                seen.add(number)
    assert max(seen) > min(seen)


def test_page_that_is_too_long_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document without room leaves the one before it; what is cleared is gone."""
    monkeypatch.setattr(siblings, "PAGE_BYTES", 4096)
    page = SharedPage()
    assert page.read() is None
    assert page.write({"a": 1})
    assert not page.write("x" * 5000)
    said = page.read()
    assert said is not None
    assert said[1] == {"a": 1}
    page.clear()
    assert page.read() is None


def test_page_whose_writer_ended_in_the_middle_is_not_read() -> None:
    """Half of a document is none."""
    page = SharedPage()
    page.write("a document")
    page._memory[siblings._HEAD.size + 3] = ord("X")
    assert page.read() is None


def test_turn_is_had_by_one_process_and_given_up_by_one_that_is_killed() -> None:
    """Nobody else has it meanwhile; whatever ends a process, it does not keep the turn for ever."""
    turn, told = ProcessLock(), SharedPage()

    def take_and_stay() -> None:
        told.write(turn.try_acquire())
        signal.pause()

    with forked(take_and_stay):
        until(lambda: told.read() is not None)
        assert not turn.try_acquire()
        turn.release()  # it is not ours to give
        assert not turn.try_acquire()
    assert turn.try_acquire()
    with forked(lambda: told.write([turn.try_acquire()])):
        until(lambda: (told.read() or (0, 0))[1] == [False])


def other(workers: int = 2) -> tuple[Siblings, Siblings]:
    """Give what two workers of one machine have, without the processes: they share the same pages."""
    first = Siblings(workers)
    second = Siblings(workers)
    second._metrics, second._audits = first._metrics, first._audits
    first.start_as(0)
    second.start_as(1)
    return first, second


def families(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Read metrics as Prometheus does; return the values by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    names: list[str] = []
    for family in text_string_to_metric_families(text.decode()):
        names.append(family.name)
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    assert len(names) == len(set(names)), "a family stands in one place"
    return found


def test_metrics_of_all_workers_are_shown_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number is there once a worker, labelled with it; who is silent for too long is left out and said to be."""
    first, second = other(3)
    shown = [Metrics(first), Metrics(second)]
    for number, metrics in enumerate(shown):
        metrics.show("head_seq", "The last entry.", lambda number=number: 40 + number)  # type: ignore[misc]
        metrics.show_totals("refusals", "Those refused.", "code", lambda number=number: {"busy": number})  # type: ignore[misc]
        for _ in range(3 + number):
            metrics.count("GET", "/v1/coins", 200)
    second._publish()
    found = families(shown[0].text())
    assert found["spotledger_head_seq"] == {(("worker", "0"),): 40, (("worker", "1"),): 41}
    calls = found["spotledger_operator_requests_total"]
    assert {dict(labels)["worker"]: value for labels, value in calls.items()} == {"0": 3, "1": 4}
    assert {dict(labels)["path"] for labels in calls} == {"/v1/coins"}
    assert found["spotledger_refusals_total"][("code", "busy"), ("worker", "1")] == 1
    up = {dict(labels)["worker"]: value for labels, value in found["spotledger_worker_up"].items()}
    assert up == {"0": 1, "1": 1, "2": 0}
    monkeypatch.setattr(siblings, "FRESH_SECONDS", -1.0)
    assert list(families(shown[0].text())["spotledger_head_seq"]) == [(("worker", "0"),)]


def test_metrics_of_a_worker_that_is_alone_have_no_such_label() -> None:
    """A service of one process shows its numbers as they are."""
    metrics = Metrics()
    metrics.show("head_seq", "The last entry.", lambda: 7)
    found = families(metrics.text())
    assert found["spotledger_head_seq"] == {(): 7}
    assert "spotledger_worker_up" not in found


def test_audits_of_a_worker_are_known_to_the_others_until_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are told as there is room for, the latest of them; a worker that is started again has none."""
    monkeypatch.setattr(siblings, "PAGE_BYTES", 4096)
    first, second = other()

    def state(number: int) -> dict[str, Any]:
        report = {"verdict": "clean", "findings": ["x" * 500]}
        return {"audit": f"a{number}", "state": "done", "began_ms": 1, "seq": 3, "last_seq": 3, "report": report}

    second.publish_metrics(list)
    second.publish_audits([state(number) for number in range(20)])
    told = [audit["audit"] for audit in first.audits()]
    assert told == [f"a{number}" for number in range(20 - len(told), 20)]
    assert len(told) > 3
    audits = Audits(Path("a ledger"), first)
    found = audits.get("a19")
    assert found is not None
    assert found.as_json() == state(19)
    assert audits.get("a0") is None
    second.start_as(1)
    assert first.audits() == []


def test_audits_that_two_workers_are_asked_for_at_the_same_moment_are_one() -> None:
    """Whichever comes first begins one, and the other answers with that; neither looks before the other has told."""
    shared, at, found = Siblings(2), [SharedPage(), SharedPage()], [SharedPage(), SharedPage()]

    def step_together(number: int, step: int) -> None:
        at[number].write(step)
        until(lambda: (at[1 - number].read() or (0, 0))[1] >= step)

    async def begun(audits: Audits) -> str:
        found = await audits.start()
        await audits.stop()  # before anything was read
        return found.audit_id

    def run_as(number: int) -> None:
        ids = []
        for step in range(1, 2 * ROUNDS, 2):
            shared.start_as(number)
            shared.publish_metrics(list)
            audits = Audits(Path("a ledger"), shared)
            step_together(number, step)
            ids.append(asyncio.run(begun(audits)))
            step_together(number, step + 1)
        found[number].write(ids)
        signal.pause()

    with forked(lambda: run_as(0)), forked(lambda: run_as(1)):
        until(lambda: None not in (found[0].read(), found[1].read()))
    (_, first), (_, second) = (page.read() or (0, []) for page in found)
    assert (len(first), first) == (ROUNDS, second)


def test_worker_that_stands_still_in_its_turn_does_not_hold_up_the_others_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is waited for, and then what is asked for is done all the same."""
    shared, told = Siblings(2), SharedPage()
    monkeypatch.setattr(siblings, "FRESH_SECONDS", 0.05)

    def stand_still() -> None:
        told.write(shared._lock.try_acquire())
        signal.pause()

    with forked(stand_still):
        until(lambda: told.read() is not None)
        assert not shared._lock.try_acquire()
        assert asyncio.run(shared.with_lock(lambda: "done")) == "done"

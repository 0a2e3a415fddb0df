"""The audits of a running service: asked for over HTTP, and the continuous one in its metrics."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import process as audit_process
from spotledger.audit.process import audit_in_process
from support_archive import filled
from support_audit import damaging
from support_operator import Api, operator_api


def finished(api: Api, audit_id: str) -> dict[str, Any]:
    """Wait until the audit is done, and return its report."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        said = api.get(f"/v1/audits/{audit_id}").json()
        if said["state"] == "done":
            return dict(said["report"])
        api.run(asyncio.sleep(0.05))
    raise AssertionError("the audit did not end")


def start(api: Api) -> dict[str, Any]:
    """Begin an audit."""
    answer = api.request("POST", "/v1/audits", headers=api.headers())
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def test_audit_over_http_of_a_live_ledger_is_clean(tmp_path: Path) -> None:
    """The call answers at once; the report follows under the audit's id, and one runs at a time."""
    with operator_api(tmp_path) as api:
        api.set_up()
        began = start(api)
        assert began["state"] == "running"
        assert start(api)["audit"] == began["audit"]
        report = finished(api, began["audit"])
        assert (report["verdict"], report["findings"], report["unexamined"]) == ("clean", [], [])
        assert report["audited_to"] == api.seq
        assert start(api)["audit"] != began["audit"]


def test_audit_over_http_of_a_damaged_ledger_names_it(tmp_path: Path) -> None:
    """What somebody did to the file under the running service is seen."""
    with operator_api(tmp_path) as api:
        api.set_up()
        with damaging(tmp_path) as damage:
            damage.sql("UPDATE entry SET body = replace(body, '12000000000', '13000000000')")
        report = finished(api, start(api)["audit"])
        assert report["verdict"] == "damaged"
        assert "chain_broken" in report["counts"]


def test_audit_over_http_needs_its_scopes_and_an_id_that_is_there(tmp_path: Path) -> None:
    """Beginning one is for admins, reading of one for who reads the ledger; an unknown id is 404."""
    with operator_api(tmp_path) as api:
        token = api.must("/v1/tokens", {"scopes": ["ledger:read"]})["token"]
        refused = api.request("POST", "/v1/audits", headers=api.headers(token=token))
        assert refused.status_code == 403
        missing = api.request("GET", "/v1/audits/nothing", headers=api.headers(token=token))
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert api.request("POST", "/v1/audits?x=1", headers=api.headers()).status_code == 422


def test_continuous_audit_shows_its_position_and_result_in_the_metrics(tmp_path: Path) -> None:
    """Pass after pass is counted by verdict, with how far it read and what it found."""
    # A pass reads it in several pieces, quicker than its process says how far it is.
    filled(tmp_path, 600).close()
    with operator_api(tmp_path) as api:
        assert metrics(api)["spotledger_audit_ended_seconds"] == 0

        async def begin() -> None:
            api.runtime.audits.start_continuous(100_000, 0.05)

        api.run(begin())
        wait_for(api, 'spotledger_audit_passes_total{verdict="clean"}')
        shown = metrics(api)
        assert shown["spotledger_audit_audited_to"] == shown["spotledger_audit_seq"] == api.seq
        assert shown["spotledger_audit_findings"] == 0
        with damaging(tmp_path) as damage:
            damage.sql("UPDATE head SET booked_ms = 5")
        wait_for(api, 'spotledger_audit_passes_total{verdict="damaged"}')
        assert metrics(api)["spotledger_audit_findings"] > 0


def metrics(api: Api) -> dict[str, float]:
    """Return the metrics by name and labels."""
    lines = [line for line in api.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def wait_for(api: Api, name: str) -> None:
    """Wait until a number is above zero."""
    deadline = time.monotonic() + 60
    while metrics(api)[name] == 0:
        assert time.monotonic() < deadline
        api.run(asyncio.sleep(0.05))


def test_continuous_audit_with_a_pace_of_zero_is_off(tmp_path: Path) -> None:
    """With 0 entries a second nothing is begun."""
    with operator_api(tmp_path) as api:
        api.runtime.audits.start_continuous(0, 0.05)
        api.run(api.runtime.audits.stop())


def test_audit_in_process_that_is_cancelled_ends_its_process(tmp_path: Path) -> None:
    """A service that stops leaves no audit behind."""
    with operator_api(tmp_path) as api:
        api.set_up()

        async def cancelled() -> None:
            work = asyncio.create_task(audit_in_process(tmp_path / "journal.db", 1, lambda _: None))
            await asyncio.sleep(0.3)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

        api.run(cancelled())


@pytest.mark.parametrize(
    "said", ["no JSON", "[1]", "5", "null", '"x"', '{"seq":1}', '{"report":null}', "[" * 100_000, "[" * 5_000_000]
)
def test_audit_whose_process_says_what_cannot_be_read_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """It ends with a report that names it, and not as one that seems to run for ever."""
    path = tmp_path / "said"
    path.write_text(said + "\n")
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec cat '{path}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(audit_process.sys, "executable", str(program))
    report = asyncio.run(audit_in_process(tmp_path / "journal.db", 0, lambda _: None))
    assert report["verdict"] == "incomplete"
    assert "could not be read" in report["unexamined"][0]


def test_audit_in_process_of_a_missing_file_is_incomplete(tmp_path: Path) -> None:
    """What the child says comes back whole."""
    report = asyncio.run(audit_in_process(tmp_path / "nothing.db", 0, lambda _: None))
    assert report["verdict"] == "incomplete"
    assert "does not exist" in report["unexamined"][0]

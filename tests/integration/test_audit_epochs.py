"""The audit of epochs: what a start would refuse is found, also where the chain was made to fit again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.audit import workers as audit_workers
from spotledger.domain.journal import epoch_key
from spotledger.errors import LedgerCorrupt
from support_audit import audited, copy_of, damaging, every_kind
from support_core import Clock, open_small

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a ledger of several sealed segments with three epochs, the last one not sealed yet."""
    folder, clock = tmp_path_factory.mktemp("epochs") / "ledger", Clock()
    with open_small(folder, clock) as ledger:
        every_kind(ledger, clock)
        every_kind(ledger, clock, "again:")
        ledger.begin_epoch("set back", 2)
        for number in range(20):
            ledger.deposit("cid", "btc", "1", key=f"later-{number}")
        ledger.begin_epoch("set back", 7)
    return folder


@pytest.fixture(autouse=True)
def _each_segment_is_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an audit that reads ahead cut the ledger wherever it can be cut."""
    monkeypatch.setattr(audit_workers, "RANGE_ENTRIES", 1)


def found(folder: Path) -> dict[str, int]:
    """Audit the ledger with and without reading ahead; return what was found, the same both times, by code."""
    report, ahead = audited(folder), audited(folder, processes=2)
    assert {**ahead.as_json(), "seconds": 0} == {**report.as_json(), "seconds": 0}
    return report.counts


def changed(restored: Path, folder: Path, epoch: int, change: Change) -> tuple[Path, int]:
    """Change the entry that begins *epoch* in a copy whose chain fits again; return the copy and the entry's seq."""
    copy = copy_of(restored, folder)
    with damaging(copy) as damage:
        seq = damage.seq_of(epoch_key(epoch))
        damage.change(seq, change)
        damage.rehash()
    return copy, seq


def asking(**request: Any) -> Change:
    """Return a change of what an entry's request says; None takes it out."""

    def change(entry: dict[str, Any]) -> None:
        for name, value in request.items():
            if value is None:
                del entry["request"][name]
            else:
                entry["request"][name] = value

    return change


def test_epochs_as_they_were_begun_are_clean(restored: Path) -> None:
    """Epochs among sealed segments are read ahead too."""
    assert found(restored) == {}
    assert audited(restored).epoch == 7


CHANGES = [
    (7, asking(earlier=[])),
    (7, asking(earlier=[[2, 5]])),
    (7, asking(earlier=[[2]])),
    (7, asking(earlier=[[2, "5"]])),
    (7, asking(earlier="none")),
    (7, asking(earlier=None)),
    (2, asking(earlier=None)),
    (2, asking(earlier={})),
    (7, asking(epoch=2)),
    (7, asking(epoch="7")),
    (7, asking(epoch=7.0)),
    (7, asking(epoch=2**53)),
    (7, asking(epoch=None)),
    (2, asking(epoch="2")),
    (7, asking(id="")),
    (7, asking(id=None)),
    (7, asking(id=7)),
]


@pytest.mark.parametrize(("epoch", "change"), CHANGES)
def test_epoch_that_was_changed_is_found(restored: Path, tmp_path: Path, epoch: int, change: Change) -> None:
    """A beginning that says something else, or says it in another form, is named although the chain fits."""
    copy, seq = changed(restored, tmp_path / "copy", epoch, change)
    assert found(copy)["epoch_wrong"] >= 1
    assert {finding.seq for finding in audited(copy).findings if finding.code == "epoch_wrong"} >= {seq}


@pytest.mark.parametrize(("epoch", "change"), CHANGES)
def test_start_refuses_no_epoch_that_an_audit_calls_clean(
    restored: Path, tmp_path: Path, epoch: int, change: Change
) -> None:
    """Whatever makes a start stop at the newest epoch, the audit has a finding about."""
    copy, _ = changed(restored, tmp_path / "copy", epoch, change)
    try:
        spotledger.open(copy).close()
    except LedgerCorrupt:
        assert audited(copy).verdict == "damaged"


def test_epoch_that_somebody_else_began_is_found(restored: Path, tmp_path: Path) -> None:
    """Only the ledger itself begins epochs."""
    copy, _ = changed(restored, tmp_path / "copy", 7, lambda entry: entry.update(actor="library"))
    assert found(copy) == {"actor_wrong": 1}


@pytest.mark.parametrize("seq", ["0", "1", "head.seq - 1", "head.seq + 1"])
def test_row_that_leads_to_another_entry_is_found_and_refused(restored: Path, tmp_path: Path, seq: str) -> None:
    """The row of the ledger says with which entry the epoch began."""
    copy = copy_of(restored, tmp_path / "copy")
    with damaging(copy) as damage:
        damage.sql(f"UPDATE ledger SET epoch_seq = (SELECT {seq} FROM head)")
    assert found(copy)["ledger_row_wrong"] == 1
    if seq != "0":
        with pytest.raises(LedgerCorrupt):
            spotledger.open(copy)


def test_row_of_an_earlier_epoch_is_found(restored: Path, tmp_path: Path) -> None:
    """A row that was put back to the epoch before is named."""
    copy = copy_of(restored, tmp_path / "copy")
    with damaging(copy) as damage:
        damage.sql("UPDATE ledger SET epoch_seq = ?", (damage.seq_of(epoch_key(2)),))
    assert found(copy) == {"ledger_row_wrong": 1}

"""A seeded part of the trials of ``make flips``: whatever happens to the files, nothing wrong is ever served."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from damage.__main__ import Result, trials
from damage.ledgers import make_subjects
from damage.trial import run, twin_of
from damage.ways import WAYS, Damaged

#: Trials in each part; all parts together take about a minute of one processor.
TRIALS = 50


@pytest.mark.parametrize("part", range(4))
def test_damaged_ledger_says_nothing_wrong(tmp_path: Path, part: int) -> None:
    """Each damage is named by the start, a read, a write or the audit, or repaired, or was in unused bytes."""
    result = Result("tests", part * TRIALS, TRIALS)
    for trial in trials(TRIALS, part * TRIALS, "tests", 1, tmp_path):
        result.add(trial)
    assert [(trial.what, trial.wrong) for trial in result.wrong] == []
    assert result.done == TRIALS
    assert {outcome for _, outcome in result.outcomes} >= {"start", "read", "repaired", "unused"}
    assert "| flip anywhere |" in result.markdown()


def test_every_way_damages_something(tmp_path: Path) -> None:
    """No way leaves the files as they were, so each of them tries what it says."""
    closed, killed = make_subjects(tmp_path, "ways")
    for way in WAYS:
        for subject in (closed, killed):
            found = [way(random.Random(number), subject) for number in range(20)]
            assert sum(damaged.files != subject.files for damaged in found) >= 10, way.__name__
            assert len({damaged.what for damaged in found}) > 1, way.__name__


def test_same_seed_damages_the_same(tmp_path: Path) -> None:
    """A trial can be seen again by its seed and its number: the files of the closed ledger are the same each time."""
    ledgers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ledgers.append(make_subjects(tmp_path / name, "same")[0])
    assert ledgers[0].files == ledgers[1].files


def test_trial_that_is_served_something_wrong_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a ledger that lost its last entries with all its notes is told from its twin."""
    closed = make_subjects(tmp_path, "wrong")[0]
    twin = twin_of(tmp_path / "twin", closed)
    monkeypatch.setattr("damage.trial.damage", lambda chance, subject: ("lost", Damaged(dict(subject.early), "lost")))
    trial = run("wrong", closed, twin, tmp_path / "trial")
    assert trial.outcome == "WRONG"
    assert any(text.startswith("head: ") for text in trial.wrong)
    assert any(text.startswith("group 0: ") for text in trial.wrong)
    monkeypatch.setattr("damage.trial.damage", lambda chance, subject: ("none", Damaged(dict(subject.files), "none")))
    monkeypatch.setattr("damage.trial.open_small", lambda folder, clock: [][0])
    trial = run("wrong", closed, twin, tmp_path / "trial")
    assert trial.outcome == "WRONG", "an error that names no damage is wrong"
    assert "IndexError" in trial.wrong[0]

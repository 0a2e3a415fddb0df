"""Positions: what a number or a text means in a journal that was restored, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from spotledger.domain.journal import BEGIN_EPOCH, begin_epoch, epochs_after
from spotledger.domain.positions import Epochs, EpochStart, Position, next_epoch, parse_position, seq_of_text
from spotledger.errors import EpochMissing, InvalidRequest, LedgerCorrupt, PreconditionFailed, UnknownPosition

#: Epoch 1 has the entries 1 to 9, epoch 2 has 10 to 19, and epoch 5, which was restored from epoch 2, the others.
EPOCHS = Epochs([EpochStart(2, 10), EpochStart(5, 20)])
PLAIN = Epochs()


def located(text: object, epochs: Epochs = EPOCHS) -> int:
    """Return where *text* is."""
    return epochs.locate(parse_position(text, "seq"), "seq")


BAD = ["", "-1", "01", "1-", "-", "1-2-3", "0-1", "01-2", "x", "1.0", " 1", "1\n", "１", "9" * 19]


@pytest.mark.parametrize("bad", [*BAD, f"{2**53}-1", 1.0, True, None, -1, 10**18])
def test_position_of_wrong_form_is_refused(bad: Any) -> None:
    """A position is a number or EPOCH-SEQ in ASCII digits; the refusal names the field."""
    with pytest.raises(InvalidRequest) as refused:
        parse_position(bad, "after_seq")
    assert refused.value.details["field"] == "after_seq"


def test_position_below_the_least_is_refused() -> None:
    """An entry has a seq above zero; a page may begin after 0."""
    assert parse_position("0", "after_seq") == (None, 0)
    with pytest.raises(InvalidRequest):
        parse_position("0", "seq", least=1)


def test_plain_numbers_mean_the_first_epoch() -> None:
    """A plain number is good up to the last entry of epoch 1; above that it is refused, saying what is in common."""
    assert [located(seq) for seq in (0, 1, 9)] == [0, 1, 9]
    assert located("1-9") == 9
    for seq in (10, 19, 20, 1000):
        with pytest.raises(EpochMissing) as refused:
            located(seq)
        assert refused.value.details == {"field": "seq", "last_common": "9"}


def test_positions_of_other_epochs_are_those_of_this_journal() -> None:
    """What this journal has in an epoch is found; the rest is unknown, and the refusal says what is in common."""
    assert [located(text) for text in ("2-10", "2-19", "5-20", "5-1000")] == [10, 19, 20, 1000]
    for text, common in (
        ("1-10", "9"),
        ("2-20", "2-19"),
        ("2-1000", "2-19"),
        ("2-9", "9"),
        ("5-19", "2-19"),
    ):
        with pytest.raises(UnknownPosition) as refused:
            located(text)
        assert refused.value.details["last_common"] == common, text


@pytest.mark.parametrize("text", ["3-5", "3-15", "3-1000", "6-5", "6-1000"])
def test_nothing_is_surely_in_common_with_an_epoch_of_another_history(text: str) -> None:
    """
    Where an epoch began that this journal never had, it cannot say.

    Epoch 3 may have begun with entry 5, after an older backup: a follower at 3-15 then has nothing after entry 4 in
    common with this journal, although entry 15 is in it.
    """
    with pytest.raises(UnknownPosition) as refused:
        located(text)
    assert refused.value.details["last_common"] == "0"


def test_positions_without_a_restore_are_plain_numbers() -> None:
    """Before the first restore every number is a position, also one that is not there yet."""
    assert (located(7, PLAIN), located("1-7", PLAIN), located("1000", PLAIN)) == (7, 7, 1000)
    assert PLAIN.text(7) == "7"
    with pytest.raises(UnknownPosition) as refused:
        located("2-7", PLAIN)
    assert refused.value.details["last_common"] == "0"


def test_epoch_as_a_precondition() -> None:
    """An epoch that is named beside a number has to be that of the entry."""
    EPOCHS.require(12, 2, "hold")
    EPOCHS.require(12, None, "hold")
    with pytest.raises(PreconditionFailed) as refused:
        EPOCHS.require(22, 2, "hold")
    assert refused.value.details == {"field": "hold", "epoch": 5, "last_common": "2-19"}


starts = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), max_size=6)


@given(starts, st.integers(1, 400))
def test_text_of_a_position_leads_back_to_it(steps: list[tuple[int, int]], seq: int) -> None:
    """Whatever the epochs are, what is given out for an entry names it, and no entry of another history."""
    epoch, first, later = 1, 1, []
    for more, entries in steps:
        epoch, first = epoch + more, first + entries
        later.append(EpochStart(epoch, first))
    epochs = Epochs(later)
    text = epochs.text(seq)
    assert located(text, epochs) == seq == seq_of_text(text)
    for other in {1, *(start.epoch for start in later), epoch + 1} - {epochs.of(seq)}:
        with pytest.raises(UnknownPosition) as refused:
            located(f"{other}-{seq}", epochs)
        common = refused.value.details["last_common"]
        assert common == "0" or located(common, epochs) <= seq


def test_entry_that_begins_an_epoch_says_all_of_them() -> None:
    """The newest such entry is enough to know every epoch; it names the ledger itself as its actor."""
    second = begin_epoch(PLAIN, 10, 2, 1, "restored", "a")
    fifth = begin_epoch(epochs_after(second), 20, 5, 1, "restored", "b")
    assert epochs_after(fifth) == EPOCHS == PLAIN.begun(2, 10).begun(5, 20)
    assert (fifth.kind, fifth.key, fifth.actor) == (BEGIN_EPOCH, " begin_epoch:5", "ledger")
    assert (EPOCHS.current, EPOCHS.begun_seq, PLAIN.current, PLAIN.begun_seq) == (5, 20, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"earlier": None},
        {"earlier": [[2, 30]]},
        {"earlier": [[5, 10]]},
        {"earlier": [[2, 10], [2, 12]]},
        {"earlier": ["x"]},
        {"epoch": 2},
        {"epoch": "5"},
        {"epoch": 5.0},
        {"epoch": 2**53},
        {"earlier": [[2, 10.0]]},
    ],
)
def test_entry_with_impossible_epochs_is_damage(change: dict[str, Any]) -> None:
    """Epochs rise with the entries; anything else, or another kind of entry, is damage."""
    entry = begin_epoch(PLAIN.begun(2, 10), 20, 5, 1, "restored", "b")
    entry = entry._replace(request={**entry.request, **change})
    with pytest.raises(LedgerCorrupt):
        epochs_after(entry)
    sound = begin_epoch(PLAIN, 20, 5, 1, "restored", "b")
    with pytest.raises(LedgerCorrupt):
        epochs_after(sound._replace(kind="deposit"))


def test_next_epoch_is_above_the_last() -> None:
    """A new epoch is the next, or the one that is given if it is higher."""
    assert (next_epoch(4), next_epoch(4, 9)) == (5, 9)
    for epoch in (4, 3, 2**53):
        with pytest.raises(InvalidRequest):
            next_epoch(4, epoch)
    with pytest.raises(InvalidRequest):
        next_epoch(2**53 - 1)


def test_position_is_a_pair() -> None:
    """A position without an epoch is told from one in epoch 1."""
    assert parse_position("7", "seq") == Position(None, 7) != parse_position("1-7", "seq")


Histories = list[list[tuple[int, int]]]


@st.composite
def histories(draw: st.DrawFn) -> Histories:
    """Draw histories of one ledger as the positions of their entries: each goes on from somewhere in an earlier one."""
    drawn: Histories = [[(1, seq) for seq in range(1, draw(st.integers(1, 9)))]]
    epoch = 1
    for _ in range(draw(st.integers(1, 5))):
        source = draw(st.sampled_from(drawn))
        kept = draw(st.integers(0, len(source)))
        epoch += draw(st.integers(1, 2))
        later = range(kept + 1, kept + draw(st.integers(2, 9)))
        drawn.append([*source[:kept], *((epoch, seq) for seq in later)])
    return drawn


@given(histories(), st.data())
def test_what_one_history_names_another_never_takes_for_something_else(drawn: Histories, data: st.DataObject) -> None:
    """It is the same entry, or none yet, or refused with an entry up to which the two are the same."""
    theirs = data.draw(st.sampled_from([history for history in drawn if history]))
    ours = data.draw(st.sampled_from(drawn))
    epochs = Epochs()
    for epoch, seq in ours:
        if epoch != epochs.current:
            epochs = epochs.begun(epoch, seq)
    epoch, seq = data.draw(st.sampled_from(theirs))
    common = 0
    while common < min(len(ours), seq) and ours[common] == theirs[common]:
        common += 1
    if common == seq or (seq > len(ours) and epoch == epochs.current):
        assert located(f"{epoch}-{seq}", epochs) == seq
        return
    with pytest.raises(UnknownPosition) as refused:
        located(f"{epoch}-{seq}", epochs)
    assert located(refused.value.details["last_common"], epochs) <= common

"""Positions: an old number never means a new entry."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from spotledger.domain.positions import Epochs, Position, parse_position
from spotledger.errors import EpochMissing, InvalidRequest, UnknownPosition


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", (None, 0)),
        ("7", (None, 7)),
        ("1-7", (1, 7)),
        ("2-120", (2, 120)),
        ("10-999999999999999999", (10, 10**18 - 1)),
    ],
)
def test_position_of_either_form_is_read(text: str, found: tuple[int | None, int]) -> None:
    """A plain number has no epoch."""
    assert parse_position(text, "at_seq") == found


@pytest.mark.parametrize(
    "text", ["", "-1", "1-", "-", "0-5", "01", "1-05", "1 - 5", "1-5-6", "٣", "1_0", "5\n", "1e3", "9" * 19, "x" * 500]
)
def test_position_of_another_form_is_refused(text: str) -> None:
    """The refusal names the field and what would pass."""
    with pytest.raises(InvalidRequest, match=r"at_seq is .* would pass") as refused:
        parse_position(text, "at_seq")
    assert refused.value.details["field"] == "at_seq"


def test_position_in_the_first_epoch_is_a_plain_number() -> None:
    """Where nothing was ever restored, nobody sees an epoch."""
    epochs = Epochs()
    assert (epochs.current, str(epochs.position(42))) == (1, "42")
    assert epochs.seq_of("42", "seq") == epochs.seq_of("1-42", "seq") == 42


def test_position_after_a_restore_names_its_epoch() -> None:
    """Entries before the new epoch keep their plain numbers."""
    epochs = Epochs([(3, 121)])
    assert [str(epochs.position(seq)) for seq in (0, 1, 120, 121, 500)] == ["0", "1", "120", "3-121", "3-500"]
    assert epochs.seq_of("120", "seq") == epochs.seq_of("1-120", "seq") == 120
    assert epochs.seq_of("3-121", "seq") == 121


def test_position_that_was_taken_back_is_refused_with_the_last_common() -> None:
    """A follower learns from where it has to undo."""
    epochs = Epochs([(3, 121)])
    with pytest.raises(EpochMissing) as missing:
        epochs.seq_of("121", "seq")
    assert missing.value.details == {"field": "seq", "last_common": "120"}
    for text in ("1-121", "2-121", "2-100"):
        with pytest.raises(UnknownPosition) as unknown:
            epochs.seq_of(text, "seq")
        assert unknown.value.details == {"field": "seq", "last_common": "120"}


def test_position_of_an_epoch_between_two_restores_is_told_from_both() -> None:
    """The last common entry is the one before the epoch that came next."""
    epochs = Epochs([(2, 100), (4, 90 + 60)])
    assert str(epochs.position(149)) == "2-149"
    with pytest.raises(UnknownPosition) as unknown:
        epochs.seq_of("2-150", "seq")
    assert unknown.value.details["last_common"] == "2-149"
    with pytest.raises(UnknownPosition) as unknown:
        epochs.seq_of("9-150", "seq")
    assert unknown.value.details["last_common"] == "4-150"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), max_size=6), st.integers(0, 400))
def test_position_given_out_is_read_as_the_same_entry(steps: list[tuple[int, int]], seq: int) -> None:
    """Whatever was restored, what the service gives out comes back as the entry it was given for."""
    epochs, number, first = Epochs(), 1, 1
    for more, later in steps:
        number, first = number + more, first + later
        epochs.begin(number, first)
    position = epochs.position(seq)
    assert epochs.seq_of(str(position), "seq") == seq
    assert epochs.seq_of(f"{position.epoch}-{position.seq}", "seq") == seq
    for other in range(1, number + 2):
        if other != position.epoch:
            with pytest.raises(UnknownPosition):
                epochs.seq_of(str(Position(other, seq)) if other != 1 else f"1-{seq}", "seq")

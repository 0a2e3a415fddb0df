"""The dictionary of bounded size."""

from __future__ import annotations

import pytest

from spotledger.security.bounded_dict import BoundedDict


def test_bounded_dict_keeps_what_is_asked_for() -> None:
    """The size is bounded, what is asked for stays, and what is dropped is gone."""
    bounded: BoundedDict[int, str] = BoundedDict(10)
    bounded.put(-1, "kept")
    for number in range(1_000):
        bounded.put(number, "x")
        assert bounded.get(-1) == "kept"
        assert len(bounded) <= 20
    bounded.drop(-1)
    assert bounded.get(-1) is None
    bounded.clear()
    assert len(bounded) == 0
    with pytest.raises(ValueError, match="generation_limit is 0; 1 or more would pass"):
        BoundedDict(0)


def test_item_that_was_not_used_for_two_generations_is_dropped() -> None:
    """A full generation becomes the older one; the next full one drops its items, which are counted."""
    bounded: BoundedDict[str, int] = BoundedDict(2)
    for number, key in enumerate("abcd"):
        bounded.put(key, number)
    assert (set(bounded.older), set(bounded.younger), bounded.forgotten) == ({"a", "b"}, {"c", "d"}, 0)
    bounded.put("d", 9)  # it is there: nothing has to make room
    assert (len(bounded), bounded.forgotten) == (4, 0)
    bounded.put("e", 4)
    assert (set(bounded.older), set(bounded.younger), bounded.forgotten) == ({"c", "d"}, {"e"}, 2)
    assert [bounded.get(key) for key in "abcde"] == [None, None, 2, 9, 4]
    assert bounded.forgotten == 2
    bounded.rotate()
    assert bounded.forgotten == 3


def test_item_of_the_older_generation_is_taken_over_by_use_and_by_a_new_value() -> None:
    """It is in one generation at a time, so the younger value counts, and dropping it drops it for good."""
    bounded: BoundedDict[str, int] = BoundedDict(2)
    for key in "abc":
        bounded.put(key, 1)
    assert bounded.get("a") == 1
    assert (set(bounded.older), set(bounded.younger)) == ({"b"}, {"a", "c"})
    bounded = BoundedDict(2)
    for key in "ab":
        bounded.put(key, 1)
    bounded.put("c", 1)
    bounded.put("b", 2)
    assert (set(bounded.older), set(bounded.younger), bounded.get("b")) == ({"a"}, {"b", "c"}, 2)
    for key in "abx":
        bounded.drop(key)
    assert [bounded.get(key) for key in "abc"] == [None, None, 1]
    assert len(bounded) == 1


def test_clear_leaves_nothing_in_either_generation() -> None:
    """What was there before is not found again; the count of what was dropped for room stays."""
    bounded: BoundedDict[str, int] = BoundedDict(1)
    for key in "abc":
        bounded.put(key, 1)
    bounded.clear()
    assert (len(bounded), bounded.forgotten, bounded.get("b"), bounded.get("c")) == (0, 1, None, None)
    bounded.put("a", 2)
    assert bounded.get("a") == 2

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
    with pytest.raises(ValueError):
        BoundedDict(0)

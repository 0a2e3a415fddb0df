"""What the listeners counted becomes lines: sums of a minute, of which no sort takes the room of another."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.domain.journal import key_actor
from spotledger.security import access_log
from spotledger.security.access_keys import AccessKeyRecord, ReadyKey
from spotledger.security.access_log import LEFT_OUT, SEVERAL, Access, AccessCounts, MinuteLines
from spotledger.security.signing import UNKNOWN_SECRET

TOKEN = ("token:1", "engine")
READ: Access = (*TOKEN, "192.0.2.1", "GET /v1/coins", "")


def unknown(address: str, call: str = "getBalance", reason: str = "access_key_unknown") -> Access:
    """Return a refusal of somebody without a known credential."""
    return ("", "", address, call, reason)


def counts_of(minute: MinuteLines) -> dict[Access, int]:
    """Return the lines of *minute* and their counts."""
    return {line.access: line.count for line in minute.unwritten()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give minutes little room, so that tests fill it with few lines."""
    for name, lines in {"LINES_PER_ADDRESS": 3, "LINES_PER_ACTOR": 4, "PASSED_LINES": 8, "NAMED_LINES": 6}.items():
        monkeypatch.setattr(access_log, name, lines)
    monkeypatch.setattr(access_log, "UNNAMED_LINES", 5)


def test_same_access_in_several_takes_is_one_line_with_the_sum() -> None:
    """Counts of one access add up, across the moments at which they are taken; other accesses have their own lines."""
    counts, minute = AccessCounts(), MinuteLines(0)
    other = unknown("192.0.2.1")
    for _ in range(3):
        counts.count(READ)
        counts.count(READ)
        counts.count(other)
        minute.add(counts.take())
    assert counts.counts == {}
    assert counts_of(minute) == {READ: 6, other: 3}


def test_line_is_unwritten_as_long_as_the_file_lacks_some_of_it() -> None:
    """A line that was written is left out until it grows; what was written is remembered."""
    minute = MinuteLines(60_000)
    minute.add({READ: 2})
    (line,) = minute.unwritten()
    line.written = line.count
    assert list(minute.unwritten()) == []
    minute.add({READ: 1})
    assert [(line.count, line.written, line.minute_ms) for line in minute.unwritten()] == [(3, 2, 60_000)]


def test_refusals_of_one_address_beyond_its_lines_are_summed_in_one(small: None) -> None:
    """An address that is refused in ever new ways gets three lines, and one that says how many were left out."""
    minute = MinuteLines(0)
    minute.add({unknown("192.0.2.1", reason=f"r{number}"): 2 for number in range(10)})
    minute.add({unknown("192.0.2.1", reason="r9"): 1, unknown("192.0.2.1", reason="r0"): 1})
    assert counts_of(minute) == {
        **{unknown("192.0.2.1", reason=f"r{number}"): 2 + (number == 0) for number in range(3)},
        ("", "", "192.0.2.1", SEVERAL, LEFT_OUT): 15,
    }


def test_refusals_of_many_addresses_leave_room_for_everybody_else(small: None) -> None:
    """A flood from thousands of addresses fills its own lines only: what passes and known credentials keep theirs."""
    minute = MinuteLines(0)
    minute.add({unknown(f"198.51.{number // 256}.{number % 256}"): 1 for number in range(5_000)})
    named = (*TOKEN, "192.0.2.1", "POST /v1/holds", "scope_missing")
    minute.add({READ: 7, named: 2})
    found = counts_of(minute)
    assert found[READ] == 7
    assert found[named] == 2
    assert found["", "", SEVERAL, SEVERAL, LEFT_OUT] == 5_000 - 5
    assert len(minute) == 5 + 1 + 2


def test_refusals_of_known_credentials_leave_room_for_unknown_ones(small: None) -> None:
    """Known and unknown credentials of one address have their own lines, so that neither hides the other."""
    minute = MinuteLines(0)
    minute.add({(*TOKEN, "192.0.2.1", f"c{number}", "scope_missing"): 1 for number in range(9)})
    minute.add({unknown("192.0.2.1"): 1})
    found = counts_of(minute)
    assert found[unknown("192.0.2.1")] == 1
    assert found[SEVERAL, "", "192.0.2.1", SEVERAL, LEFT_OUT] == 6


def test_known_credentials_that_have_no_line_are_not_called_unknown(small: None) -> None:
    """What is summed says whether credentials were known: somebody who looks for unknown ones finds no known one."""
    minute = MinuteLines(0)
    minute.add({(*TOKEN, f"192.0.2.{number}", "POST /v1/holds", "scope_missing"): 1 for number in range(20)})
    minute.add({unknown(f"198.51.100.{number}"): 1 for number in range(20)})
    found = counts_of(minute)
    assert found[SEVERAL, "", SEVERAL, SEVERAL, LEFT_OUT] == 20 - 6
    assert found["", "", SEVERAL, SEVERAL, LEFT_OUT] == 20 - 5


def test_actor_at_many_addresses_gets_its_lines_and_one_for_the_rest(small: None) -> None:
    """A valid key that is used from ever new addresses does not push out the calls of others."""
    minute = MinuteLines(0)
    minute.add({("key:11111111", "", f"2001:db8:0:{number:x}::/64", "getBalance", ""): 1 for number in range(300)})
    minute.add({READ: 5})
    found = counts_of(minute)
    assert found[READ] == 5
    assert found["key:11111111", "", SEVERAL, SEVERAL, ""] == 296


def test_actors_beyond_the_lines_of_a_minute_share_one_line(small: None) -> None:
    """However many credentials are used in a minute, its lines are bounded, and nothing is lost from the sum."""
    minute = MinuteLines(0)
    minute.add({(f"key:{number:08d}", "", "192.0.2.1", "getBalance", ""): 3 for number in range(100)})
    found = counts_of(minute)
    assert len(found) == 8 + 1
    assert found[SEVERAL, "", SEVERAL, SEVERAL, ""] == 3 * 92


def test_full_minute_has_no_more_lines_for_those_who_have_some(small: None) -> None:
    """What they do besides is summed by them, and what is refused by its address."""
    minute = MinuteLines(0)
    passed = {"key:1": 4, "key:2": 3, "key:3": 1}
    minute.add({(actor, "", "192.0.2.1", f"c{n}", ""): 1 for actor, lines in passed.items() for n in range(lines)})
    refused = {"192.0.2.1": 3, "192.0.2.2": 2}
    minute.add({unknown(address, reason=f"r{n}"): 1 for address, lines in refused.items() for n in range(lines)})
    assert len(minute) == 8 + 5
    minute.add({("key:2", "", "192.0.2.1", "c9", ""): 5, unknown("192.0.2.2", reason="r9"): 6})
    found = counts_of(minute)
    assert found["key:2", "", SEVERAL, SEVERAL, ""] == 5
    assert found["", "", "192.0.2.2", SEVERAL, LEFT_OUT] == 6
    assert len(minute) == 8 + 5 + 2


def test_line_whose_place_is_forgotten_is_written_anew() -> None:
    """Its counts stay; only where it is in the file is not known any more."""
    minute = MinuteLines(60_000)
    minute.add({READ: 2, unknown("192.0.2.1"): 1})
    for place, line in enumerate(minute.unwritten()):
        assert (line.line, line.written) == (0, 0)
        line.line = place + 5
    minute.forget_places()
    assert [(line.line, line.count) for line in minute.unwritten()] == [(0, 2), (0, 1)]


ACCESSES = st.tuples(
    st.sampled_from(["", "token:1", "key:2", "key:3"]),
    st.just(""),
    st.integers(0, 12).map(lambda number: f"192.0.2.{number}"),
    st.sampled_from(["getBalance", "getFunds", "GET /v1/coins", "other"]),
    st.sampled_from(["", "", "token_missing", "nonce_refused", "scope_missing"]),
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(ACCESSES, st.integers(1, 5), max_size=60), max_size=5))
def test_lines_are_bounded_and_their_sums_are_what_was_counted(takes: list[dict[Access, int]]) -> None:
    """Whatever is counted: no access is lost or counted twice, allowed stays apart from refused, lines are bounded."""
    with pytest.MonkeyPatch.context() as patch:
        for name, lines in {"LINES_PER_ADDRESS": 2, "LINES_PER_ACTOR": 3, "PASSED_LINES": 6, "NAMED_LINES": 5}.items():
            patch.setattr(access_log, name, lines)
        patch.setattr(access_log, "UNNAMED_LINES", 4)
        minute = MinuteLines(0)
        for counts in takes:
            minute.add(counts)
    sums: Counter[bool] = Counter()
    for counts in takes:
        for access, count in counts.items():
            sums[bool(access[-1])] += count
    found: Counter[bool] = Counter()
    for line in minute.unwritten():
        found[bool(line.access[-1])] += line.count
    assert found == sums
    # Own lines of each sort, a sum for each address or actor that has some, and the sums of the rest.
    assert len(minute) <= (6 + 5 + 4) * 2 + 3


def test_access_key_has_the_same_name_in_the_log_as_in_entries() -> None:
    """Whoever finds an actor in one of the two finds it in the other."""
    record = AccessKeyRecord("11111111-2222-4333-8444-555555555555", "alice", ("read",), "bot", (), b"", 0)
    key = ReadyKey(record, UNKNOWN_SECRET)
    assert (key.actor, key.label) == (key_actor(record.accesskey), "bot")

"""What an audit can find, by stable codes, and the capped list of what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from spotledger.storage.sqlite.file import BOOKS_FILE, KEYS_FILE
from spotledger.storage.sqlite.raw import Damaged, Unreadable

#: Findings that a report lists, altogether and of one code; the others are counted.
FINDINGS_LIMIT: Final = 200
FINDINGS_OF_A_CODE: Final = 20
UNEXAMINED_LIMIT: Final = 20
_TEXT_LIMIT: Final = 200

#: Every code and what it says. Programs may rely on the codes; new ones may be added.
CODES: Final[dict[str, str]] = {
    # the journal as a chain
    "ledger_row_missing": "The row that says which ledger this is, is missing.",
    "head_missing": "The row of the journal's head is missing.",
    "head_differs": "The head is not the last entry.",
    "journal_cut": "The journal ends before its head.",
    "entry_beyond_head": "The journal goes on after its head.",
    "known_head_differs": "An entry has another hash than the one that was noted of it before.",
    "trigger_changed": "A trigger that keeps the journal from being changed is missing or is another.",
    "schema_changed": "A table, an index or a view is missing or is another, or an index or a trigger was added.",
    "ledger_row_wrong": "The row that says which ledger this is says what cannot be.",
    "backup_differs": "A backup says that it ends with another entry than it does.",
    "file_damaged": "A file is no database of a ledger, or has no checksums on its pages.",
    "page_damaged": "A page of a file, or what stands in it, does not check.",
    "structure_damaged": "SQLite's own check finds that pages, rows or indexes contradict each other.",
    "log_damaged": "A write-ahead log is damaged before its end.",
    "note_differs": "The journal is not the one whose head was noted.",
    "note_damaged": "A slot of the noted head is damaged, or both are.",
    "entry_missing": "Entries are missing from the numbering.",
    "entry_out_of_place": "An entry stands under another number than its own.",
    "entry_unreadable": "An entry cannot be read, or is not of the form of one.",
    "chain_broken": "The hash of an entry does not follow from the one before it and its content.",
    "time_falls": "An entry was booked before the one in front of it.",
    # what an entry says
    "kind_unknown": "An entry is of a kind that no operation has.",
    "key_malformed": "An entry's idempotency key is none that could have been given.",
    "key_repeated": "Two entries have the same idempotency key.",
    "refusal_malformed": "A kept refusal has no known code, or has postings.",
    "coin_listed_wrong": "A listing of a coin is malformed, or the coin was listed before.",
    "customer_registered_wrong": "A registering is malformed, or the customer was registered before.",
    "coin_unknown": "An entry moves a coin that was not listed before.",
    "customer_unknown": "An entry moves money of somebody who was not registered before.",
    "not_zero_sum": "The postings of an entry do not add up to zero for a coin.",
    "below_zero": "An entry takes a balance below zero that may not be.",
    "balance_after_differs": "The balances after an entry are not those before it plus its postings.",
    "hold_unknown": "An entry uses a hold that is not open: it never was, or was used up before.",
    "hold_misused": "An entry's posting and its hold do not belong together.",
    "hold_overdrawn": "An entry uses more of a hold than remained.",
    "hold_after_differs": "What remains of holds after an entry is not what remained before less what it used.",
    "hold_expired_early": "A hold was let expire before its time, or has none.",
    "hold_used_late": "An entry uses a hold whose time had come.",
    "request_differs": "The postings of an entry are not what its kept request asks for.",
    "reversal_wrong": "A reversal is not the opposite of an entry that could be reversed.",
    "reversed_twice": "An entry was reversed twice.",
    "freeze_unexplained": "What is frozen is not what remains of the open holds.",
    "coin_not_balanced": "A coin does not add up to zero over all accounts.",
    # what is derived, beside the journal
    "books_differ": "The books are of another ledger, or of another history.",
    "bucket_damaged": "A bucket of keys or of the history is missing, or does not fit its checksum.",
    "bucket_sum_differs": "The rows of a bucket are not those that its digest was made of.",
    "count_differs": "The books have another number of rows than they say, or other ones.",
    "access_key_malformed": "An access key or a token is malformed, or of another ledger, or of nobody registered.",
    "access_keys_behind": "The access keys are behind the last change that was noted, or are not there.",
    "sealed_to_wrong": "The last sealed entry is none that can be.",
    "rows_beyond_journal": "A derived table has rows of segments that cannot have been sealed.",
    "key_row_missing": "A key of the journal is not in the table of keys.",
    "key_row_extra": "The table of keys has a key that the journal has not.",
    "history_row_missing": "What touched an account and coin in a segment is not in the history.",
    "history_row_extra": "The history has a row of an account and coin that no entry of the segment touched.",
    "history_row_differs": "The history names other entries than those that touched the account and coin.",
    "hold_row_missing": "A hold is not in the table of holds.",
    "hold_row_extra": "The table of holds has one that no entry opened.",
    "hold_row_differs": "The table of holds says something else of a hold than the entries.",
    "hold_owner_row_missing": "A hold is not in the table of whose holds there are.",
    "hold_owner_row_extra": "The table of whose holds there are has one too many.",
    "balance_row_missing": "A balance is not in the table of balances.",
    "balance_row_extra": "The table of balances has one that no entry led to.",
    "balance_row_differs": "The table of balances has another balance than the entries.",
    "coin_row_missing": "A coin is not in the table of coins.",
    "coin_row_extra": "The table of coins has one that was never listed.",
    "coin_row_differs": "The table of coins has another scale, or entry, than the listing.",
    "customer_row_missing": "A customer is not in the table of customers.",
    "customer_row_extra": "The table of customers has one that was never registered.",
    "customer_row_differs": "The table of customers names another entry than the registering.",
    "reversal_row_missing": "A reversal is not in the table of reversals.",
    "reversal_row_extra": "The table of reversals has one that never was.",
    "reversal_row_differs": "The table of reversals names another entry than the reversal.",
    "filter_level_damaged": "A level of the filter of known keys is malformed, or covers what it cannot.",
    "filter_page_damaged": "A page of the filter of known keys is missing or does not fit its checksum.",
    "filter_key_missing": "A known key is not in the filter, so it could be booked twice.",
}


#: What to do, by what is damaged. A finding about a whole file begins its place with the file's name.
_ABOUT_FILES: Final = frozenset({"file_damaged", "page_damaged", "structure_damaged", "schema_changed"})
_OF_BOOKS: Final = frozenset(list(CODES)[list(CODES).index("books_differ") :]) - {
    "access_key_malformed",
    "access_keys_behind",
}
_OF_KEYS: Final = frozenset({"access_key_malformed", "access_keys_behind"})
_OF_END: Final = frozenset({"log_damaged", "note_differs", "note_damaged", "journal_cut"})
_ADVICE: Final = {
    "journal": "The journal is damaged. Keep a copy of the data folder, and restore the newest backup whose audit is"
    " clean: spotledger restore",
    "end": "The end of the journal is in doubt. See what is missing, which changes nothing: spotledger recover",
    "books": "The books are derived from the journal. Make them again: spotledger rebuild",
    "keys": "The access keys are damaged. Put a good copy of keys.db in their place, or take them from a backup",
}


class Finding(NamedTuple):
    """One thing that is not as it should be: where, what was found, and what was expected."""

    code: str
    seq: int | None
    where: str
    found: str
    expected: str


class Findings:
    """All findings of one audit: the first of each code in a list, all of them counted."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.counts: Counter[str] = Counter()
        #: What could not be looked at, and why.
        self.unexamined: list[str] = []

    def add(self, code: str, seq: int | None, where: str, found: Any, expected: Any) -> None:
        """
        Note one finding.

        Args:
            code: One of :data:`CODES`.
            seq: The entry that it is about, or None.
            where: The part of the entry, or the table and the row.
            found: What is there; a text as it is, other values in Python's form.
            expected: What should be.
        """
        self.counts[code] += 1
        if self.counts[code] <= FINDINGS_OF_A_CODE and len(self.listed) < FINDINGS_LIMIT:
            self.listed.append(Finding(code, seq, where, _shown(found), _shown(expected)))

    def leave_out(self, why: str) -> None:
        """Note that something could not be looked at; a report with such a note is never clean."""
        if why not in self.unexamined and len(self.unexamined) <= UNEXAMINED_LIMIT:
            self.unexamined.append(why if len(self.unexamined) < UNEXAMINED_LIMIT else "and more")

    def unreadable(self, error: Unreadable, segment: int | None = None, code: str = "page_damaged") -> None:
        """Note that something could not be read: as a finding where it does not check, else as not looked at."""
        where = str(error) if segment is None else f"{error} (segment {segment})"
        if isinstance(error, Damaged):
            self.add(code, None, where, "does not check", "what was written")
        else:
            self.leave_out(where)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note what a block could not look at, and go on after it: *what* says what it is about."""
        try:
            yield
        except Unreadable as error:
            self.unreadable(error)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # The values of some row are not of its table's types; SQLite's own check has named them.
            self.leave_out(f"{what}: values that are not of the schema ({type(error).__name__}: {error})")

    def __len__(self) -> int:
        """Return how many there are, listed or not."""
        return sum(self.counts.values())


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else value.hex() if isinstance(value, bytes) else repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number too long to write"
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 3] + "..."


def advice_on(findings: Findings) -> list[str]:
    """Return what to do about *findings*, in words."""
    found = {_part_of(code, None) for code in findings.counts if code not in _ABOUT_FILES}
    found |= {_part_of(finding.code, finding.where) for finding in findings.listed if finding.code in _ABOUT_FILES}
    if "journal" in found:
        found.discard("books")  # they were compared with what is damaged, and a restore makes them again
    return [text for part, text in _ADVICE.items() if part in found]


def _part_of(code: str, where: str | None) -> str:
    """Return which part of a ledger a finding is about, as the advice has it."""
    if where is not None:
        return "books" if BOOKS_FILE in where else "keys" if KEYS_FILE in where else "journal"
    if code in _OF_BOOKS:
        return "books"
    return "keys" if code in _OF_KEYS else "end" if code in _OF_END else "journal"

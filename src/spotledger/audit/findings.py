"""The codes of what an audit can find, and the bounded list of what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from spotledger.storage.sqlite.file import BOOKS_FILE, KEYS_FILE
from spotledger.storage.sqlite.raw import Damaged, Unreadable

#: The most findings that a report lists, in all and of one code; all of them are counted.
FINDINGS_LIMIT: Final = 200
FINDINGS_OF_A_CODE: Final = 20
UNEXAMINED_LIMIT: Final = 20
_TEXT_LIMIT: Final = 200

#: Every code and its meaning. The codes are stable; new ones may be added.
CODES: Final[dict[str, str]] = {
    # the journal as a chain
    "ledger_row_missing": "The row that identifies the ledger is missing.",
    "head_missing": "The row of the journal's head is missing.",
    "head_differs": "The head is not the last entry.",
    "journal_cut": "The journal ends before its head.",
    "entry_beyond_head": "The journal has entries after its head.",
    "known_head_differs": "An entry that was noted earlier is missing, or has another hash.",
    "trigger_changed": "A trigger that protects the journal, or its function, is missing or changed, or one was added.",
    "schema_changed": "A table, column, constraint, index, rule or view is missing or changed, or one was added.",
    "ledger_row_wrong": "The row that identifies the ledger has impossible values.",
    "backup_differs": "A backup names another last entry than it has.",
    "file_damaged": "A file is not a database of a ledger, or its pages have no checksums.",
    "page_damaged": "A page of a file does not match its checksum, or its content is malformed.",
    "structure_damaged": "SQLite's own check finds pages, rows or indexes that contradict each other.",
    "log_damaged": "A write-ahead log is damaged before its end.",
    "note_differs": "The journal is not the one whose head was noted.",
    "note_damaged": "Both slots of the noted head are damaged.",
    "note_slot_damaged": "One slot of the noted head is damaged; the other one counts.",
    "entry_missing": "Entries are missing from the numbering.",
    "entry_out_of_place": "An entry is stored under another number than its own.",
    "actor_wrong": "An entry does not name the credential that caused it.",
    "epoch_wrong": "An epoch is not above those before, or does not list them.",
    "entry_unreadable": "An entry cannot be decoded.",
    "chain_broken": "The hash of an entry does not follow from its content and the hash before it.",
    "time_falls": "An entry was booked earlier than the entry before it.",
    # what an entry says
    "kind_unknown": "An entry is of a kind that no operation has.",
    "key_malformed": "An entry's idempotency key could not have been accepted.",
    "key_repeated": "Two entries have the same idempotency key.",
    "refusal_malformed": "A kept refusal has no known code, or has postings.",
    "coin_listed_wrong": "A listing of a coin is malformed, or the coin was listed before.",
    "customer_registered_wrong": "A registration is malformed, or the customer was registered before.",
    "house_account_opened_wrong": "The opening of a house account is malformed, or the account was open before.",
    "coin_unknown": "An entry moves a coin that was not listed before.",
    "customer_unknown": "An entry moves money of a customer who was not registered before.",
    "not_zero_sum": "The postings of an entry do not sum to zero for a coin.",
    "below_zero": "An entry takes a balance below zero that must not be.",
    "owes_and_has": "A customer has available of a coin and owes it.",
    "balance_too_large": "A balance has 10^38 units or more, or 10^38 or more below zero.",
    "balance_after_differs": "The balances after an entry are not those before it plus its postings.",
    "hold_unknown": "An entry uses a hold that is not open: it never was, or is used up.",
    "hold_misused": "An entry's posting and its hold do not belong together.",
    "hold_overdrawn": "An entry uses more of a hold than remains.",
    "hold_after_differs": "What remains of holds after an entry is not what remained before minus what it used.",
    "hold_expired_early": "A hold was expired before its time, or never expires.",
    "hold_used_late": "An entry uses a hold after its time.",
    "request_differs": "The postings of an entry are not what its kept request asks for.",
    "reversal_wrong": "A reversal is not the opposite of an entry that can be reversed.",
    "reversed_twice": "An entry was reversed twice.",
    "freeze_unexplained": "The frozen amount is not what remains of the open holds.",
    "coin_not_balanced": "A coin does not sum to zero over all accounts.",
    # what is derived, beside the journal
    "books_differ": "The books are of another ledger, or of another history.",
    "bucket_damaged": "A bucket of keys, of references or of the history is missing or does not match its checksum.",
    "bucket_sum_differs": "The rows of a bucket do not match its count and digest.",
    "count_differs": "The books do not have the rows that they count.",
    "access_key_malformed": "An access key or a token is malformed, or of another ledger or an unknown customer.",
    "access_keys_behind": "The access keys are older than their last noted change, or missing.",
    "access_keys_differ": "The access keys and tokens are not those that were written last.",
    "sealed_to_wrong": "The last sealed entry is not one that can be.",
    "row_repeated": "A table has a second row where its key allows one.",
    "rows_beyond_journal": "A derived table has rows of segments that cannot be sealed yet.",
    "key_row_missing": "A key of the journal is missing from the table of keys.",
    "key_row_extra": "The table of keys has a key that is not in the journal.",
    "reference_row_missing": "An entry with a reference is missing from the index of references.",
    "reference_row_extra": "The index of references has a row that no entry led to.",
    "history_row_missing": "An account and coin that a segment touched is missing from its history.",
    "history_row_extra": "The history has a row of an account and coin that no entry of the segment touched.",
    "history_row_differs": "The history names other entries than those that touched the account and coin.",
    "hold_row_missing": "A hold is missing from the table of holds.",
    "hold_row_extra": "The table of holds has a hold that no entry opened.",
    "hold_row_differs": "A row in the table of holds differs from what the entries say.",
    "hold_owner_row_missing": "A hold is missing from the table of holds by customer.",
    "hold_owner_row_extra": "The table of holds by customer has a hold too many.",
    "balance_row_missing": "A balance is missing from the table of balances.",
    "balance_row_extra": "The table of balances has a balance that no entry led to.",
    "balance_row_differs": "A row in the table of balances differs from what the entries lead to.",
    "coin_row_missing": "A coin is missing from the table of coins.",
    "coin_row_extra": "The table of coins has a coin that was never listed.",
    "coin_row_differs": "A row in the table of coins has another scale or entry than the listing.",
    "customer_row_missing": "A customer is missing from the table of customers.",
    "customer_row_extra": "The table of customers has a customer who was never registered.",
    "customer_row_differs": "A row in the table of customers names another entry than the registration.",
    "reversal_row_missing": "A reversal is missing from the table of reversals.",
    "reversal_row_extra": "The table of reversals has a reversal that no entry made.",
    "reversal_row_differs": "A row in the table of reversals names another entry than the reversal.",
    "filter_level_damaged": "A level of the filter of known keys is malformed, or covers segments that it cannot.",
    "filter_page_damaged": "A page of the filter of known keys is missing or does not match its checksum.",
    "filter_key_missing": "A known key is missing from the filter, so it could be booked twice.",
}


#: Findings about a whole file; their ``where`` begins with the name of the file.
_ABOUT_FILES: Final = frozenset({"file_damaged", "page_damaged", "structure_damaged", "schema_changed"})
_OF_BOOKS: Final = frozenset(list(CODES)[list(CODES).index("books_differ") :]) - {
    "access_key_malformed",
    "access_keys_behind",
    "access_keys_differ",
}
_OF_KEYS: Final = frozenset({"access_key_malformed", "access_keys_behind", "access_keys_differ"})
_OF_NOTE: Final = frozenset({"note_slot_damaged"})
_OF_END: Final = frozenset({"log_damaged", "note_differs", "note_damaged", "journal_cut"})
#: What to do, by the part that is damaged.
_ADVICE: Final = {
    "journal": "The journal is damaged. Keep a copy of the data folder, and restore the newest backup whose audit is"
    " clean: spotledger restore",
    "end": "The end of the journal is in doubt. See what is missing, which changes nothing: spotledger recover",
    "books": "The books are derived from the journal. Make them again: spotledger rebuild",
    "note": "One slot of the noted head is damaged. Examine the disk; the next entry writes the slot again",
    "keys": "The access keys are damaged. Put a good copy of keys.db in their place, or take them from a backup",
}
#: The same for a database.
_ADVICE_ON_DATABASE: Final = {
    "journal": "The journal is damaged. Stop the nodes and keep a copy of the database. Put a standby in its place"
    " whose audit is clean, or a backup from before the damage",
    "schema": "The schema is not what the migrations make. Put back what the finding expects, as the owner of the"
    " tables, and audit again: rows may have been changed meanwhile",
    "books": "What is derived from the journal is damaged. Make it again, while the nodes go on: spotledger rebuild"
    " --database URL",
    "keys": "The access keys are damaged. Revoke the key or token that is named, and make another",
}
_OF_SCHEMA: Final = frozenset({"trigger_changed", "schema_changed"})
_JOURNAL_TABLES: Final = ("entry", "ledger")


class Finding(NamedTuple):
    """One fault: where it is, what was found, and what was expected."""

    code: str
    seq: int | None
    where: str
    found: str
    expected: str


class Findings:
    """The findings of one audit: all are counted, and the first of each code are listed."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.counts: Counter[str] = Counter()
        #: What could not be examined, and why.
        self.unexamined: list[str] = []
        self._damaged: set[str] = set()

    def add(self, code: str, seq: int | None, where: str, found: Any, expected: Any) -> None:
        """
        Add one finding.

        Args:
            code: One of :data:`CODES`.
            seq: The entry that it is about, or None.
            where: The part of the entry, or the table and row.
            found: What is there: text as it is, bytes in hex, other values as Python writes them; 200 characters of it.
            expected: What should be there, likewise.
        """
        self.counts[code] += 1
        if self.counts[code] <= FINDINGS_OF_A_CODE and len(self.listed) < FINDINGS_LIMIT:
            number = seq if isinstance(seq, int) else None  # a damaged column may have values of any type
            self.listed.append(Finding(code, number, _shown(where), _shown(found), _shown(expected)))

    def leave_out(self, why: str) -> None:
        """Note what could not be examined, and why; a report with such a note is never clean."""
        if why not in self.unexamined and len(self.unexamined) <= UNEXAMINED_LIMIT:
            self.unexamined.append(why if len(self.unexamined) < UNEXAMINED_LIMIT else "and more")

    def unreadable(self, error: Unreadable, code: str = "page_damaged") -> None:
        """Note what could not be read: once as a finding if it is damaged, else as unexamined."""
        where = str(error)
        if not isinstance(error, Damaged):
            self.leave_out(where)
        elif where not in self._damaged:
            self._damaged.add(where)
            self.add(code, None, where, "does not check", "what was written")

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note what the block could not examine, and go on after it; *what* says what the block is about."""
        try:
            yield
        except Unreadable as error:
            self.unreadable(error)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Some row has values of other types than its columns; SQLite's own check has named it.
            self.leave_out(f"{what}: values that are not of the schema ({type(error).__name__}: {error})")

    def __len__(self) -> int:
        """Return how many findings there are, listed or not."""
        return sum(self.counts.values())


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else value.hex() if isinstance(value, bytes) else repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number too long to write"
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 3] + "..."


def advice_on(findings: Findings) -> list[str]:
    """Return what to do about *findings*, as sentences."""
    found = {_part_of(code, None) for code in findings.counts if code not in _ABOUT_FILES}
    found |= {_part_of(finding.code, finding.where) for finding in findings.listed if finding.code in _ABOUT_FILES}
    if "journal" in found:
        found.discard("books")  # they were compared with what is damaged, and a restore makes them again
    return [text for part, text in _ADVICE.items() if part in found]


def advice_on_database(findings: Findings) -> list[str]:
    """Return what to do about *findings* in a database, as sentences."""
    found = {_part_of_database(finding) for finding in findings.listed}
    return [text for part, text in _ADVICE_ON_DATABASE.items() if part in found]


def _part_of_database(finding: Finding) -> str:
    if finding.code in _OF_SCHEMA:
        return "schema"
    if finding.code in _OF_KEYS:
        return "keys"
    is_of_books = finding.code in _OF_BOOKS and not finding.where.startswith(_JOURNAL_TABLES)
    return "books" if is_of_books else "journal"


def _part_of(code: str, where: str | None) -> str:
    """Return which part of the ledger, a key of the advice, a finding is about."""
    if where is not None:
        return "books" if BOOKS_FILE in where else "keys" if KEYS_FILE in where else "journal"
    if code in _OF_BOOKS:
        return "books"
    parts = {"keys": _OF_KEYS, "note": _OF_NOTE, "end": _OF_END}
    return next((part for part, codes in parts.items() if code in codes), "journal")

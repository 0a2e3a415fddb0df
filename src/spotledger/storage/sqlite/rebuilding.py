"""
Books that are damaged or missing: made again from the journal while the service goes on.

Small segments are sealed again at once. Large ones take the process that seals; meanwhile whatever needs the books gets
StoreUnavailable, which says how far they are, and what memory knows is answered.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from copy import copy
from pathlib import Path
from typing import Final, TypeVar

from spotledger.domain.accounts import Coin, HouseAccount, house_name, receivable_of
from spotledger.domain.debts import debtors_in
from spotledger.domain.operations import ListCoin, OpenHouseAccount
from spotledger.errors import StoreUnavailable
from spotledger.storage.base import BooksDamaged
from spotledger.storage.sealing_process import SealingProcess
from spotledger.storage.sqlite.books import Books
from spotledger.storage.sqlite.file import BOOKS_FILE, JOURNAL, open_reader, translated
from spotledger.storage.sqlite.reads import SqliteReads
from spotledger.storage.sqlite.sealing import Sealer
from spotledger.storage.sqlite.wal import find_damage

#: What of memory a copy of the store builds: of a store that has none yet.
_MEMORY: Final = (
    *("_memory", "_filter", "_digests", "_absorbing", "_sealed_to", "_due_cursor", "_next_due_ms", "_is_built"),
)

T = TypeVar("T")
_log = logging.getLogger("spotledger.store")


class RebuiltBooks(SqliteReads):
    """The books of the embedded store, which are made again where they do not check; the rest of it is the store's."""

    #: How often they were found damaged or missing, and made again.
    rebuilds: int
    _path: Path
    _books: Books | None
    #: What another thread found wrong with them; the next call that needs them makes them again.
    _suspected: BooksDamaged | None
    _sealing: SealingProcess | None
    _repairs: list[str]
    #: Takes over books that have been made again, in a thread; None where nothing is under way.
    _preparing: _Preparation | None
    #: Whether this is the copy in which that thread works.
    _is_prepared: bool

    @abstractmethod
    def _hash_of(self, seq: int) -> bytes:
        """Return the hash of the entry *seq*."""

    @abstractmethod
    def _empty_memory(self) -> None:
        """Let go of all that memory has."""

    @abstractmethod
    def _load(self) -> None:
        """Fill memory from the books and the journal."""

    def _load_house_accounts(self, books: Books) -> None:
        """Open in memory the house accounts that the books name, as their entries say."""
        for name, seq in books.house_accounts(self._sealed_to):
            entry = self.entry(seq)
            if entry is None or entry.kind != OpenHouseAccount.kind or house_name(entry.request["name"]) != name:
                raise BooksDamaged(f"the books say that entry {seq} opened the house account {name}")
            self._memory.open_house_account(HouseAccount(name, entry.request["may_be_negative"]))

    def _load_debtors(self, books: Books) -> None:
        """Find who owes something as of the last sealed entry: only reversals make debts, and there are few."""
        named: set[str] = set()
        for seq in books.reversing_entries():
            entry = self.entry(seq)
            named |= set() if entry is None else debtors_in(entry.balances)
        rows = books.balances_of([receivable_of(customer) for customer in named])
        self._memory.debtors |= debtors_in((account, coin, both.available) for account, coin, both, _ in rows)

    def _open_books(self) -> None:
        """Open the books and check that they fit the journal."""
        self._close_books()
        path = self._folder / BOOKS_FILE
        if find_damage(path.with_name(path.name + "-wal")) is not None:
            raise BooksDamaged("the write-ahead log of the books is damaged")
        if not path.exists():
            if self._head.seq < self._segment_entries:
                Sealer(self._path, path).close()
            else:
                raise BooksDamaged("there are no books")
        self._books = Books(path, self.ledger_id, self._segment_entries)
        facts = self._books.facts()
        if self._is_built and facts.sealed_to < self._sealed_to:
            raise BooksDamaged(f"the books are sealed up to entry {facts.sealed_to}, and were up to {self._sealed_to}")
        if facts.sealed_to > self._head.seq or facts.sealed_hash != self._hash_of(facts.sealed_to):
            raise BooksDamaged(f"the books are sealed up to entry {facts.sealed_to} of another history")

    def _need_books(self) -> Books:
        """
        Return the books.

        Raises:
            StoreUnavailable: They are being made again; the message says how far that is.
        """
        suspected, self._suspected = self._suspected, None
        if suspected is not None:
            self._rebuild(suspected)
        if self._books is None:
            self._go_on_rebuilding()
        if self._books is None:
            raise StoreUnavailable(f"{self.rebuilding}; try again with the same idempotency key")
        return self._books

    @property
    def rebuilding(self) -> str | None:
        """How far the books have been made again, in words; None where they are whole."""
        if self._books is not None:
            return None
        sealed = 0 if self._sealing is None else self._sealing.sealed_segments
        full = self._head.seq // self._segment_entries
        return f"the books are being made again from the journal: {sealed} of {full} segments"

    @property
    def takes_writes(self) -> bool:
        """Whether the idempotency keys are known; not so after a start without books, until they are made again."""
        return self._is_built

    def _suspect(self, damage: BooksDamaged) -> None:
        self._suspected = damage

    def _from_books(self, read: Callable[[Books], T]) -> T:
        """Read from the books; where they do not check, begin to make them again."""
        try:
            return read(self._need_books())
        except BooksDamaged as damage:
            self._rebuild(damage)
        books = self._need_books()
        try:
            return read(books)
        except BooksDamaged as again:
            raise StoreUnavailable(f"the books do not check although they were just made again: {again}") from again

    def _rebuild(self, damage: BooksDamaged) -> None:
        """Throw the books away and make them again: at once where that is quick, else in the process that seals."""
        if self._is_prepared:
            raise damage  # the store that it is prepared for makes them again
        self.rebuilds += 1
        self._repairs.append(f"{damage}; they were made again from the journal")
        _log.error("%s; they are made again from the journal", damage)
        self._close_books()
        self._next_due_ms = None  # what is due in the books waits for them; nobody can use it meanwhile
        self._end_preparing()
        if self._sealing is not None:
            self._sealing.kill()  # what it is at is thrown away
            self._sealing.sealed_segments = 0
        _throw_away(self._folder)
        if self._sealing is None:
            self._seal_here()
            self._take_over_books()
        elif self._head.seq < self._segment_entries:  # no segment is full: the books are empty
            self._take_over_books()
        else:
            self._go_on_rebuilding()
        if not self._is_built:
            self._list_coins()

    def _list_coins(self) -> None:
        """List the coins that the journal lists, so that entries can be read until the books are there."""
        with translated("read"):
            rows = self._read.execute(
                "SELECT seq FROM entry WHERE instr(body, ?) > 0 AND body ->> '$.kind' = ?",
                (f'"kind":"{ListCoin.kind}"', ListCoin.kind),
            ).fetchall()
        for (seq,) in rows:
            entry = self.entry(seq)
            if entry is not None and entry.refusal is None:
                self._memory.list_coin(Coin(entry.request["coin"], entry.request["scale"]))

    def go_on_rebuilding(self) -> None:
        """
        Take over books that have been made again; does not wait for them.

        Raises:
            StoreUnavailable: They are not there yet, and without them nothing is known; else most writes go on.
        """
        try:
            self._need_books()
        except BooksDamaged as damage:
            self._rebuild(damage)
        except StoreUnavailable:
            if not self._is_built:
                raise

    def _go_on_rebuilding(self) -> None:
        full = self._head.seq // self._segment_entries
        if self._preparing is not None:
            self._take_over_prepared(self._preparing)
        elif self._sealing is not None:
            if full:
                self._sealing.seal(full - 1)
                self._sealing.poll()
            if self._sealing.sealed_segments >= full:
                self._preparing = _Preparation(self._prepared)
                self._preparing.start()

    def _take_over_books(self) -> None:
        """Open books that were made again; memory keeps what it has of the segments that are open."""
        self._open_books()
        if not self._is_built:
            self._empty_memory()
            self._load()
        self._next_due_ms = self._need_books().next_due_ms(self._due_cursor)

    def _prepared(self) -> RebuiltBooks:
        """Take over the books in a copy of this store, which takes long: in a thread, over another connection."""
        made = copy(self)
        made._is_prepared, made._preparing = True, None
        made._read = open_reader(self._path, JOURNAL)
        try:
            made._take_over_books()
        except BaseException:
            made._close_books()
            raise
        finally:
            made._read.close()
        return made

    def _take_over_prepared(self, preparing: _Preparation) -> None:
        """Take over from a copy what it has prepared, once it has."""
        if preparing.is_alive():
            return
        self._preparing = None
        if preparing.problem is not None:
            raise preparing.problem
        made = preparing.made
        assert made is not None, "it ended without a problem"  # noqa: S101
        self._books, self._next_due_ms = made._books, made._next_due_ms
        if not self._is_built:
            for name in _MEMORY:
                setattr(self, name, getattr(made, name))

    def _end_preparing(self) -> None:
        """Wait for a preparation that is under way, and let go of what it has made."""
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.join()
            if preparing.made is not None:
                preparing.made._close_books()

    def _close_books(self) -> None:
        books, self._books = self._books, None
        if books is not None:
            books.close()

    def _seal_here(self) -> None:
        with closing(Sealer(self._path, self._folder / BOOKS_FILE)) as sealer:
            sealer.seal_all()


class _Preparation(threading.Thread):
    """A thread that prepares a copy of the store: ``made``, unless there is a ``problem``."""

    def __init__(self, prepare: Callable[[], RebuiltBooks]) -> None:
        super().__init__(name="books", daemon=True)
        self._prepare = prepare
        self.made: RebuiltBooks | None = None
        self.problem: Exception | None = None

    def run(self) -> None:
        """Prepare it."""
        try:
            self.made = self._prepare()
        except Exception as problem:  # noqa: BLE001 - raised by whoever takes over
            self.problem = problem


def _throw_away(folder: Path) -> None:
    """Take the books in *folder* away; a large file is removed in a thread, because that takes the disk a while."""
    thrown = []
    for suffix in ("", "-wal", "-shm"):
        file = folder / f"{BOOKS_FILE}{suffix}"
        with suppress(FileNotFoundError):
            thrown.append(file.replace(file.with_name(f"{file.name}.thrown-away")))
    threading.Thread(target=_remove, args=(thrown,), name="books-removal", daemon=True).start()


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):  # another rebuild, or a start, removes it
            file.unlink()


def remove_books(folder: Path) -> None:
    """Remove the books in *folder*, and their log; they can be made again."""
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{BOOKS_FILE}{suffix}").unlink(missing_ok=True)
        (folder / f"{BOOKS_FILE}{suffix}.thrown-away").unlink(missing_ok=True)

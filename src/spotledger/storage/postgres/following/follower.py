"""
A thread that follows the journal and applies entries of other nodes to the store's memory, and tells others of its own.

Notices make this quicker, and nothing rests on them: every node polls as well.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import psycopg

from spotledger.errors import LedgerCorrupt, SpotledgerError
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.bounded_reader import Connect
from spotledger.storage.postgres.session import Session, number

#: How long one round trip may take before the connection counts as lost.
PATIENCE_SECONDS: Final = 5.0
#: The pause after the connection was lost.
PAUSE_SECONDS: Final = 0.3
#: How many times longer the poll interval is while a group of this node is being written.
WRITING_POLLS: Final = 5
#: How long a node that waits for the write lock ignores a notice: it may have the lock by then.
GRACE_SECONDS: Final = 0.001
#: How long to ignore notices after one that was not new: a node that writes is notified of its own groups.
DEAF_SECONDS: Final = 0.01
#: How long :meth:`Follower.stop` waits for the thread.
STOP_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class Followed(Protocol):
    """The store whose memory follows the journal."""

    @property
    def head_seq(self) -> int:
        """The entry that memory stands at."""

    @property
    def is_writing(self) -> bool:
        """Whether a group is being written, which advances memory itself."""

    @property
    def is_waiting(self) -> bool:
        """Whether a group waits for the write lock, and for memory to advance meanwhile."""

    def follow(self, session: Session) -> Any:
        """Advance memory to the head of the journal."""


class Follower:
    """Listens for new entries, and polls for them as well."""

    def __init__(self, connect: Connect, store: Followed, poll_seconds: float, *, listens: bool = True) -> None:
        """Start to follow the journal that *connect* leads to with *store*: by polling and, if *listens*, by LISTEN."""
        self._listens = listens
        self._connect = connect
        self._store = store
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._wakened, self._waker = os.pipe()
        os.set_blocking(self._wakened, False)
        #: The last entry that others are to be told of, and whether the thread knows of it.
        self._own_seq = self._told_seq = 0
        self._may_tell = listens
        self._thread = threading.Thread(target=self._run, name="follow journal", daemon=True)
        self._thread.start()

    def tell_others(self, seq: int) -> None:
        """Have other nodes told that this one has committed the entry *seq*."""
        if self._may_tell:
            is_known, self._own_seq = self._own_seq > self._told_seq, seq
            if not is_known:
                os.write(self._waker, b"!")

    def stop(self) -> None:
        """Stop the thread and close its connection."""
        self._stopped.set()
        os.write(self._waker, b"!")
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wakened)
            os.close(self._waker)

    def _run(self) -> None:
        said = ""
        while not self._stopped.is_set():
            try:
                self._listen()
            except LedgerCorrupt as corrupt:
                # The next write finds the same, and stops all writes.
                _log.error("the journal is no longer followed: %s", corrupt)
                return
            except (psycopg.Error, SpotledgerError) as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("the journal could not be followed: %s", error)
                self._stopped.wait(PAUSE_SECONDS)

    def _is_new(self, told: Sequence[bytes]) -> bool:
        """Return whether to read after the notices *told*; a group with the write lock reads new entries anyway."""
        store = self._store
        if not any(int(seq) > store.head_seq for seq in told):
            return False
        if store.is_waiting:
            self._stopped.wait(GRACE_SECONDS)
        return store.is_waiting or not store.is_writing

    def _is_time(self, followed: float) -> bool:
        """Return whether to poll; *followed* is the time of the last read."""
        polls = WRITING_POLLS if self._store.is_writing else 1
        return time.monotonic() >= followed + self._poll_seconds * polls

    def _tell(self, session: Session) -> None:
        """Tell others of the last own entry, if they were not told."""
        seq = self._own_seq
        if seq <= self._told_seq or not self._may_tell:
            return
        self._told_seq = seq
        with suppress(BlockingIOError):
            os.read(self._wakened, 4096)
        try:
            session.send(sql.NOTIFY, number(seq))
            session.collect()
        except psycopg.errors.InsufficientPrivilege as error:
            self._may_tell = False
            _log.warning("other nodes are not notified of new entries, and find them by polling: %s", error)

    def _listen(self) -> None:
        session = Session(self._connect(), sql.FOLLOWING, PATIENCE_SECONDS)
        try:
            if self._listens:
                session.send(sql.LISTEN)
                session.collect()
            self._store.follow(session)
            followed = time.monotonic()
            while not self._stopped.is_set():
                told = session.notices()
                left = followed + self._poll_seconds - time.monotonic()
                if not told and session.wait_for_notice(left if left > 0 else self._poll_seconds, self._wakened):
                    told = session.notices()
                if self._stopped.is_set():
                    return
                self._tell(session)
                if self._is_time(followed) or self._is_new(told):
                    self._store.follow(session)
                    followed = time.monotonic()
                elif told:
                    self._stopped.wait(DEAF_SECONDS)
        finally:
            session.close()

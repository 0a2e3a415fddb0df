"""Following the journal: a thread that hears of entries of other nodes, and brings the store's memory along."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import psycopg

from spotledger.errors import LedgerCorrupt, SpotledgerError
from spotledger.storage.base import Head
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.session import Session

PATIENCE_SECONDS: Final = 5.0
#: How long nothing is tried after the connection was lost.
PAUSE_SECONDS: Final = 0.3
#: How many times longer than else nothing is asked unless it is told of, while a group is under way.
WRITING_POLLS: Final = 5
#: How long a node that is told of news while it waits for its turn leaves them: the turn may be its own now.
GRACE_SECONDS: Final = 0.001
#: How long nothing is listened to after what was told was no news: a node that writes is told of each of its groups.
DEAF_SECONDS: Final = 0.01
STOP_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class Followed(Protocol):
    """The store whose memory is brought along."""

    @property
    def head(self) -> Head:
        """Where memory stands."""

    @property
    def is_writing(self) -> bool:
        """Whether a group is under way, which brings memory along by itself."""

    @property
    def is_waiting(self) -> bool:
        """Whether a group waits for its turn, and for memory to be brought along meanwhile."""

    def follow(self, session: Session) -> Any:
        """Bring memory to the head of the journal."""


class Follower:
    """Listens for new entries, and asks for them every so often even where nothing is heard."""

    def __init__(self, url: str, store: Followed, poll_seconds: float, *, listens: bool = True) -> None:
        """Begin to keep the memory of *store* at the head of the journal at *url*; *listens*: not only by asking."""
        self._listens = listens
        self._url = url
        self._store = store
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._wakened, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="follow journal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stopped.set()
        os.write(self._waker, b"!")
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            os.close(self._wakened)
            os.close(self._waker)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except LedgerCorrupt as corrupt:
                # The next write finds the same, and stops all writing.
                _log.error("the journal is not followed any more: %s", corrupt)
                return
            except (psycopg.Error, SpotledgerError) as error:
                _log.warning("the journal could not be followed: %s", error)
                self._stopped.wait(PAUSE_SECONDS)

    def _is_news(self, told: Sequence[bytes]) -> bool:
        """Say whether what was *told* is worth a question: a group that has its turn reads the news in any case."""
        store = self._store
        if not any(int(seq) > store.head.seq for seq in told):
            return False
        if store.is_waiting:
            self._stopped.wait(GRACE_SECONDS)
        return store.is_waiting or not store.is_writing

    def _is_time(self, followed: float) -> bool:
        """Say whether to ask even though nothing was heard; *followed*: when it was asked for the last time."""
        polls = WRITING_POLLS if self._store.is_writing else 1
        return time.monotonic() >= followed + self._poll_seconds * polls

    def _listen(self) -> None:
        session = Session(connect(self._url, application="spotledger follow"), sql.FOLLOWING, PATIENCE_SECONDS)
        try:
            if self._listens:
                session.send(sql.LISTEN)
                session.collect()
            self._store.follow(session)
            followed = time.monotonic()
            while not self._stopped.is_set():
                told = session.notices()
                left = followed + self._poll_seconds - time.monotonic()
                if not told and session.heard(left if left > 0 else self._poll_seconds, self._wakened):
                    told = session.notices()
                if self._stopped.is_set():
                    return
                if self._is_time(followed) or self._is_news(told):
                    self._store.follow(session)
                    followed = time.monotonic()
                elif told:
                    self._stopped.wait(DEAF_SECONDS)
        finally:
            session.close()

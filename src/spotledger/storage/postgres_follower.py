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
from spotledger.storage import postgres_statements as sql
from spotledger.storage.base import Head
from spotledger.storage.postgres_connection import connect
from spotledger.storage.postgres_session import Session

PATIENCE_SECONDS: Final = 5.0
#: How long nothing is tried after the connection was lost.
PAUSE_SECONDS: Final = 0.3
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
        """Say whether what was *told* is worth a question: while this node writes, it reads the news in any case."""
        return not self._store.is_writing and any(int(seq) > self._store.head.seq for seq in told)

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
                if not told and session.heard(
                    max(0.0, followed + self._poll_seconds - time.monotonic()), self._wakened
                ):
                    told = session.notices()
                if self._stopped.is_set():
                    return
                if time.monotonic() >= followed + self._poll_seconds or self._is_news(told):
                    self._store.follow(session)
                    followed = time.monotonic()
        finally:
            session.close()

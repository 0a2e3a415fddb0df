"""
The last entry that a node of a fleet saw, kept in its data folder across restarts: it tells which server is right.

A server that was the primary once may come back, and another one may be put back to an earlier state. Both are whole in
themselves, and both lack what this node has answered. A node works only with a server that has the entry that it saw
last, or that began a later epoch since.

What is kept is a lower bound. A node that was cut off from the fleet may have seen less than others have.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.errors import StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.two_slots import Form, TwoSlots, read_two_slots

SEEN_FILE: Final = "seen-head"
SYNC_SECONDS: Final = 1.0
NEW_NODE: Final = (
    f"Name the right database. If this node is to serve another ledger, give it a data folder without {SEEN_FILE}"
)
_log = logging.getLogger("spotledger.store")


class ServerId(NamedTuple):
    """Which server it is: the cluster's system identifier, and its timeline; zeros where the server does not say."""

    system: int = 0
    timeline: int = 0


class Seen(NamedTuple):
    """What a node saw last."""

    ledger_id: str
    epoch: int
    seq: int
    #: The hash of the entry *seq*.
    hash: bytes
    #: The server's system identifier and timeline, as in `ServerId`.
    system: int = 0
    timeline: int = 0

    @property
    def server(self) -> ServerId:
        """Which server it was."""
        return ServerId(self.system, self.timeline)

    @property
    def position(self) -> str:
        """The position as text, for people."""
        return f"{self.seq} of epoch {self.epoch}"


#: The fields after the ledger id.
_FORM: Final = Form(
    b"SpoS\x01\x00\x00\x00", "QQ32sQQ", Seen, "what this node saw; if the database is the right one, remove the file"
)


class Place(NamedTuple):
    """What a server has, in one snapshot."""

    #: For people: its address.
    name: str
    ledger_id: str
    epoch: int
    #: Its last entry.
    seq: int
    #: The hash of its entry in the place of the one that was seen; None if it has none there.
    kept: bytes | None
    server: ServerId = ServerId()
    is_standby: bool = False


class OtherHistory(StoreUnavailable):
    """The server has another history than the one this node saw; try again once the right one is back."""

    def __init__(self, message: str, *, noted: int | None = None, found: int | None = None) -> None:
        """Say what was found; *noted* and *found* are the entries, where the server's journal only ends too early."""
        super().__init__(message)
        self.noted = noted
        self.found = found


class NotCaughtUp(StoreUnavailable):
    """The standby lacks what this node saw before, and will have it soon; try again."""


def check_place(seen: Seen, place: Place) -> None:
    """
    Check that the server at *place* goes on from what was *seen*.

    A journal that ends after the seen entry and lacks it is damaged; it passes here, for whoever reads it to find.

    Raises:
        OtherHistory: It does not.
        NotCaughtUp: It is a standby that is merely behind.
    """
    where = f"the server {place.name} is not the right one: "
    if place.ledger_id != seen.ledger_id:
        raise OtherHistory(
            f"{where}it has the ledger {place.ledger_id}, and this node serves {seen.ledger_id}. {NEW_NODE}"
        )
    if place.epoch > seen.epoch:
        return
    if seen.seq and place.kept is None and place.seq < seen.seq:
        if place.is_standby:
            raise NotCaughtUp(
                f"the standby {place.name} is at entry {place.seq}, behind entry {seen.seq}, which was seen before"
            )
        raise OtherHistory(
            f"{where}its journal ends at entry {place.seq} of epoch {place.epoch}, and this node has seen entry"
            f" {seen.position}. {advice(seen, place.epoch)}",
            noted=seen.seq,
            found=place.seq,
        )
    if seen.seq and place.kept is not None and place.kept != seen.hash:
        raise OtherHistory(
            f"{where}it has another entry {seen.seq} than the one of epoch {seen.epoch} that this node has seen; its"
            f" journal ends at entry {place.seq} of epoch {place.epoch}. {advice(seen, place.epoch)}"
        )
    if is_older(place.server, seen.server):
        raise OtherHistory(
            f"{where}it is on timeline {place.server.timeline}, at entry {place.seq}, and this node has seen timeline"
            f" {seen.server.timeline} of the same system, with entry {seen.position}; it was the primary before another"
            " server was promoted"
        )


def advice(seen: Seen, epoch: int) -> str:
    """Return what an operator can do about a server with the *epoch* that lacks what was *seen*."""
    number = f" --epoch {seen.epoch + 1}" if seen.epoch > epoch else ""
    return (
        "Start the server again that has it, or make this one its standby. Only if the database was put back to an"
        " earlier state on purpose, as by a point-in-time recovery:"
        f" spotledger epoch begin --database …{number} --accept-loss --reason …"
    )


def is_older(server: ServerId, than: ServerId) -> bool:
    """Return whether *server* is on an older timeline of the same system than another one."""
    return bool(server.system) and server.system == than.system and 0 < server.timeline < than.timeline


class SeenHead:
    """What this node saw last, in memory and, if it has a folder, in a file. Any thread may use it."""

    def __init__(self, folder: Path | None = None, worker: int = 0, *, seen: Seen | None = None) -> None:
        """
        Open the file in *folder*, or make it, and read it; None: begin with *seen*, remember nothing across restarts.

        Each *worker* of one machine has a file of its own, because each writes when it likes; what any of them saw
        counts for all of them at a start.

        Raises:
            LedgerCorrupt: Both slots of a file are damaged.
            StoreUnavailable: A file can be neither read nor made.
        """
        self._lock = threading.Lock()
        self._file: TwoSlots[Seen] | None = None
        self.seen = seen
        self._server = ServerId() if seen is None else seen.server
        self._stopped = threading.Event()
        self._is_failing = False
        if folder is None:
            return
        path = folder / (f"{SEEN_FILE}-{worker}" if worker else SEEN_FILE)
        try:
            self._file = TwoSlots(path, _FORM)
            self.seen = _latest([self._file.note, *_notes_in(folder, path.name)])
        except OSError as problem:
            raise StoreUnavailable(f"{path} cannot be used: {problem.strerror}") from problem
        if self._file.damaged_slot is not None:
            _log.warning("slot %d of %s is damaged; the other one counts", self._file.damaged_slot, path)
        self._server = self.seen.server if self.seen is not None else ServerId()
        self._syncing = threading.Thread(target=self._sync, name="seen-sync", daemon=True)
        self._syncing.start()

    def note(self, ledger_id: str, epoch: int, head: Head) -> None:
        """Note *head*, in *epoch*, unless something later was seen; what cannot be written is logged, once."""
        seen = self.seen
        if seen is not None and (seen.epoch, seen.seq) >= (epoch, head.seq):
            return
        with self._lock:
            seen = self.seen
            if seen is None or (seen.epoch, seen.seq) < (epoch, head.seq):
                self._write(Seen(ledger_id, epoch, head.seq, head.hash, *self._server))

    def note_server(self, server: ServerId, *, later_epoch: bool = False) -> None:
        """Note which server it is that was found to be the right one, if need be because it began a later epoch."""
        with self._lock:
            if not server.system or server == self._server or (is_older(server, self._server) and not later_epoch):
                return
            self._server = server
            if self.seen is not None:
                self._write(self.seen._replace(system=server.system, timeline=server.timeline))

    def is_current(self, server: ServerId) -> bool:
        """Return whether nothing newer than *server* was seen since it was found to be the right one."""
        return not server.system or server == self._server

    def close(self) -> None:
        """Sync and close the file."""
        self._stopped.set()
        if self._file is not None:
            self._syncing.join()
            with self._lock:
                file, self._file = self._file, None
            if file is not None:
                file.close()

    def _write(self, seen: Seen) -> None:
        """Remember *seen*; the lock is held."""
        self.seen = seen
        if self._file is None:
            return
        try:
            self._file.write(seen)
        except OSError as problem:
            if not self._is_failing:
                _log.error(
                    "what this node saw last could not be noted in %s: %s; after a restart it may take an old server"
                    " for the right one", self._file.path, problem.strerror or problem,
                )  # fmt: skip
            self._is_failing = True
        else:
            self._is_failing = False

    def _sync(self) -> None:
        while not self._stopped.wait(SYNC_SECONDS):
            try:
                if self._file is not None:
                    self._file.sync()
            except OSError as problem:
                _log.warning("what this node saw last could not be synced: %s", problem.strerror)


def read_seen(folder: Path) -> Seen | None:
    """
    Return what the node with the data *folder* saw last; None if it saw nothing, or is no node of a fleet.

    Nothing is written there, so a node may be running in it.

    Raises:
        LedgerCorrupt: Both slots of a file are damaged.
        StoreUnavailable: The folder or a file in it cannot be read.
    """
    try:
        return _latest(_notes_in(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise StoreUnavailable(
            f"what the node with the data folder {folder} has seen cannot be read: {problem.strerror}. Name the folder"
            " of a node with --data, or one that does not exist"
        ) from problem


def _notes_in(folder: Path, but: str = "") -> list[Seen | None]:
    """Return what each worker with a file in *folder* saw last, leaving out the file named *but*."""
    paths = [path for path in folder.iterdir() if path.name.startswith(SEEN_FILE) and path.name != but]
    return [read_two_slots(path, _FORM).note for path in paths]


def _latest(notes: Iterable[Seen | None]) -> Seen | None:
    """Return what any of the workers of one machine saw last."""
    there = [seen for seen in notes if seen is not None]
    if not there:
        return None
    last = max(there, key=lambda seen: (seen.epoch, seen.seq))
    same = [seen.server for seen in there if seen.server.system == last.server.system and seen.epoch == last.epoch]
    return last._replace(timeline=max(same).timeline)

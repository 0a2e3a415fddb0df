"""
The memory of signed requests over a restart (rule R12): it is saved at a stop, and taken at the next start.

A process that was killed leaves no file, so a start without one knows that it does not remember, and refuses nonces
that may have been used before. Therefore the file is removed, and the folder synced, before the first request: a memory
that is older than the last request must never be believed. Each worker of a machine saves what it admitted itself.

The file has neither access keys nor signatures, but hashes and beginnings of them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from spotledger.clock import Clock
from spotledger.errors import SpotledgerError
from spotledger.security.gate import Gate, Unremembered
from spotledger.security.replay import ReplayMode, Uses
from spotledger.storage.atomic_file import sync, write_atomically
from spotledger.storage.folder import unusable
from spotledger.storage.packed_file import NotAsWritten, packed, read_packed

REPLAY_FILE: Final = "replay-memory"
#: A longer file is none of ours: so many signatures cannot be admitted in two windows.
REPLAY_FILE_LIMIT_BYTES: Final = 256 * 1024 * 1024
#: Longer than any window.
EVER_MS: Final = 10**15

_MAGIC: Final = b"SpoR\x01\x00\x00\x00"
_NAME: Final = re.compile(rf"{REPLAY_FILE}(?:-[1-9][0-9]*)?")
_log = logging.getLogger("spotledger.gate")


class KeptUses(msgspec.Struct, frozen=True, array_like=True):
    """What one process remembered when it stopped."""

    ledger_id: str
    epoch: int
    #: Its number among the workers, and how many they were.
    worker: int
    workers: int
    unremembered: Unremembered
    uses: Uses
    #: By which settings it remembered.
    mode: ReplayMode = "off"
    past_ms: int = 0
    future_ms: int = 0


def take_replay_files(folder: Path) -> list[KeptUses]:
    """
    Return what the processes in *folder* saved at their stop, and remove it; empty if there is nothing, or damage.

    Raises:
        FileUnusable: A file belongs to somebody else, others may use it, or it is a link.
        DataFolderUnusable: A file cannot be removed, so that it might be believed once more.
    """
    files = [file for file in sorted(folder.iterdir()) if _NAME.fullmatch(file.name)]
    kept: list[KeptUses] | None = []
    try:
        for file in files:
            found = _read(file)
            kept = None if kept is None or found is None else [*kept, found]
        for file in files:
            file.unlink()
        if files:
            sync(folder)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    return kept or []


def _read(file: Path) -> KeptUses | None:
    try:
        return read_packed(file, _MAGIC, KeptUses, REPLAY_FILE_LIMIT_BYTES)
    except NotAsWritten as problem:
        _log.warning("%s is damaged (%s), so nothing in it is believed; it was removed", file, problem)
        return None


def save_replay_memory(folder: Path, gate: Gate, ledger_id: str, epoch: int, worker: int = 0, workers: int = 1) -> None:
    """
    Save what *gate* remembers, once it admits nobody any more; a failure is logged, and the next start refuses.

    Args:
        folder: The data folder, which this process or its parent owns.
        gate: The gate.
        ledger_id: The ledger.
        epoch: Its epoch.
        worker: The number of this process among the workers.
        workers: How many workers there are.
    """
    kept = KeptUses(
        ledger_id,
        epoch,
        worker,
        workers,
        gate.unremembered,
        gate.replay.uses(),
        gate.settings.replay,
        gate.settings.nonce_past_ms,
        gate.settings.nonce_future_ms,
    )
    try:
        _write(folder, kept)
    except SpotledgerError as problem:
        _log.warning("the memory of signed requests was not saved: %s", problem)


def save_empty_memory(folder: Path, ledger_id: str, epoch: int) -> None:
    """Save, where a ledger is new, that there is nothing to remember; a file that is there stays as it is."""
    if not os.path.lexists(folder / REPLAY_FILE):
        _write(folder, KeptUses(ledger_id, epoch, 0, 1, Unremembered(), {}, "strict", past_ms=EVER_MS))


def _write(folder: Path, kept: KeptUses) -> None:
    content = packed(_MAGIC, kept)
    if len(content) > REPLAY_FILE_LIMIT_BYTES:
        _log.warning("the memory of signed requests is %d bytes long, too long to be saved", len(content))
        return
    name = f"{REPLAY_FILE}-{kept.worker}" if kept.worker else REPLAY_FILE
    with write_atomically(folder / name, "memory of signed requests") as partial:
        partial.write_bytes(content)


def restore_replay_memory(gate: Gate, kept: Sequence[KeptUses], ledger_id: str, epoch: int, clock: Clock) -> bool:
    """
    Have *gate* remember what was *kept*; if that is not complete, have it refuse what it may have forgotten.

    Args:
        gate: The gate, before its first request.
        kept: What :func:`take_replay_files` returned.
        ledger_id: The ledger that is served now.
        epoch: Its epoch.
        clock: The clock of the service.

    Returns:
        Whether it remembers.
    """
    if _is_complete(kept, ledger_id, epoch):
        for part in kept:
            gate.replay.restore(part.uses, clock.now_ms())
            gate.forget(*part.unremembered)
        return _lasts(kept[0], gate, clock)
    gate.forget(clock.reached_ms(), clock.wall_if_untrusted_ms())
    _log.warning(
        "this start does not know which signed requests were used before: the service was killed, or has never run on"
        " this folder; for up to %g s nonces that may have been used are refused",
        gate.settings.nonce_future_ms / 1000,
    )
    return False


def _lasts(kept: KeptUses, gate: Gate, clock: Clock) -> bool:
    """Say whether *kept* is enough for the settings of *gate*; if not, have it refuse what may be missing."""
    settings = gate.settings
    is_off = kept.mode == "off" and settings.replay != "off"
    is_short = kept.past_ms + kept.future_ms < settings.nonce_past_ms + settings.nonce_future_ms
    surplus_ms = max(0, kept.future_ms - settings.nonce_future_ms)  # so much longer may a nonce be ahead
    if not (is_off or is_short or surplus_ms):
        return True
    wall_ms = clock.wall_if_untrusted_ms()
    gate.forget(clock.reached_ms() + surplus_ms, None if wall_ms is None else wall_ms + surplus_ms)
    _log.warning(
        "replay, nonce_past_ms or nonce_future_ms was changed, so not all signed requests that were used before are"
        " remembered; for up to %g s nonces that may have been used are refused",
        (settings.nonce_future_ms + surplus_ms) / 1000,
    )
    return False


def _is_complete(kept: Sequence[KeptUses], ledger_id: str, epoch: int) -> bool:
    """Say whether *kept* is what every worker of one stop saved, of this ledger and epoch."""
    if not kept or any((part.ledger_id, part.epoch) != (ledger_id, epoch) for part in kept):
        return False
    return sorted(part.worker for part in kept) == list(range(kept[0].workers))

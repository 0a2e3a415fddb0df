"""The files of a ledger as files: pages, schemas, write-ahead logs, the noted head, and the rows of access keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from spotledger.audit.credentials import wrong_columns
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.domain.positions import Epochs
from spotledger.errors import FileUnusable, MasterKeyRefused
from spotledger.security.cipher import AccessKeyDamaged, Cipher
from spotledger.storage.credentials.master_key_files import NEXT_FILE, read_own
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.folder import load_master_key
from spotledger.storage.sqlite.audit import AuditFile, KeysFile, LedgerRow, damaged_logs
from spotledger.storage.sqlite.file import KEYS, schema_of
from spotledger.storage.sqlite.keys import TABLES
from spotledger.storage.sqlite.noted_head import NOTE_FILE
from spotledger.storage.sqlite.raw import Damaged, RawFile

_AS_IN_SCHEMA: Final = "as the schema has it"


def check_logs(path: Path, findings: Findings) -> None:
    """Check the write-ahead logs, before SQLite takes a damaged one for a short one."""
    with findings.noting("the write-ahead logs"):
        for name, damage in damaged_logs(path):
            findings.add("log_damaged", None, name, damage, "whole, or cut off within its last transaction")


def check_files(file: AuditFile, findings: Findings) -> None:
    """Check the schema of each file, the checksum of every page, and SQLite's own structures."""
    for problem in file.problems:
        findings.unreadable(problem, code="file_damaged")
    for each in file.files():
        with findings.noting("a schema"):
            has_keys = each is file.journal and file.is_backup
            for what, name in each.changed_schema(schema_of(each.kind) | (schema_of(KEYS) if has_keys else {})):
                code = "trigger_changed" if what == "trigger" else "schema_changed"
                where = f"{each.name}: {what} {name}"
                findings.add(code, None, where, "missing, another, or one too many", _AS_IN_SCHEMA)
        with findings.noting("a structure"):
            _check_structure(each, findings)


def _check_structure(file: RawFile, findings: Findings) -> None:
    try:
        found = file.structure()
    except Damaged as error:
        findings.unreadable(error)
        found = [""]
    for text in filter(None, found):
        findings.add("structure_damaged", None, file.name, text, "ok")
    if found:
        for page in file.damaged_pages():
            findings.add(
                "page_damaged", None, f"{file.name}: page {page}", "it does not fit its checksum", "what was written"
            )


def check_note(file: AuditFile, findings: Findings, ledger: LedgerRow, epochs: Epochs) -> int:
    """
    Compare the journal with the note of its head, which may be of an entry before the last.

    Returns the number of the last change of access keys that was noted.
    """
    try:
        note, damaged_slot = file.note()
    except Damaged as error:
        findings.add("note_damaged", None, NOTE_FILE, str(error), "one whole slot")
        return 0
    if damaged_slot is not None:
        where = f"{NOTE_FILE}: slot {damaged_slot}"
        findings.add("note_slot_damaged", None, where, "does not check", "what was written")
    _, last_seq = file.journal.extent()
    if note is None:
        if last_seq and not file.is_alone:
            findings.leave_out(f"{NOTE_FILE}: there is none, so that entries cut off at the end would not show")
        return 0
    if note.ledger_id == ledger.ledger_id and note.epoch < epochs.current:
        return note.keys_change  # a later epoch began, as after the journal was put back
    kept = file.journal.hash_of(note.seq) if 0 < note.seq <= last_seq else None
    found_hash = genesis_hash(ledger.ledger_id) if note.seq == 0 else kept
    if (ledger.ledger_id, epochs.current, found_hash) != (note.ledger_id, note.epoch, note.hash):
        noted = f"ledger {note.ledger_id}, epoch {note.epoch}, entry {note.seq} with {note.hash.hex()}"
        actual = "no such entry" if found_hash is None else f"epoch {epochs.current}, {found_hash.hex()}"
        findings.add("note_differs", note.seq, NOTE_FILE, f"ledger {ledger.ledger_id}, {actual}", noted)
    return note.keys_change


def check_backup(file: AuditFile, findings: Findings, ledger: LedgerRow, epochs: Epochs) -> None:
    """Compare what a backup says it is with what is in it."""
    head = file.journal.head()
    said, found = file.journal.backup_row(), None if head is None else (ledger.ledger_id, epochs.current, *head)
    if said != found:
        findings.add("backup_differs", None, "backup", str(said), str(found))


def check_access_keys(file: AuditFile, findings: Findings, noted_change: int, journal: JournalPass) -> None:
    """
    Read every access key and token as the service does.

    Secrets are opened where the folder or the environment has the master key that they were sealed with.
    """
    if file.keys is None:
        if noted_change and not file.problems:
            findings.add("access_keys_behind", None, "keys.db", "no file", f"change {noted_change} or later")
        return
    ledger = file.journal.ledger()
    ledger_id, change = file.keys.of_ledger() or ("no ledger", 0)
    if ledger is None or ledger_id != ledger.ledger_id:
        expected = "" if ledger is None else ledger.ledger_id
        findings.add("access_key_malformed", None, "keys_of", ledger_id, expected)
    if change < noted_change:
        findings.add("access_keys_behind", None, "keys_of", f"change {change}", f"change {noted_change} or later")
    with findings.noting("the sum of the access keys"):
        wrong_sum = file.keys.wrong_sum()
        if wrong_sum is not None:
            findings.add("access_keys_differ", None, "keys_of", wrong_sum, "the rows that were written last")
    for table in TABLES:
        with findings.noting(table):
            cipher, rows = _rows_of(file.keys, file.path.parent, findings, table)
            for row in rows:
                # Not more of the name than the first characters: it is half of a credential.
                where = f"{table} {str(row[0])[:8]}…"
                wrong = wrong_columns(TABLES[table], row)
                if wrong is not None:
                    findings.add("access_key_malformed", None, where, wrong, "a row of the schema")
                elif table == "access_keys" and cipher is not None and not _opens_if_needed(cipher, row):
                    findings.add("access_key_malformed", None, where, "sealed_secret", "a secret that opens")
                elif table == "access_keys" and row[1] not in journal.customers:
                    _check_owner(file, findings, where, row[1], journal)


def _rows_of(
    keys: KeysFile, folder: Path, findings: Findings, table: str
) -> tuple[Cipher | None, list[tuple[Any, ...]]]:
    """Return the rows of *table*, and for access keys what opens their secrets, both as of one instant."""
    if table != "access_keys":
        return None, keys.rows_of(table)
    with keys.one_instant("the access keys"):
        cipher = None
        with findings.noting("master_key_mark"):
            cipher = _cipher_of(keys, folder)
        return cipher, keys.rows_of(table)


def _cipher_of(keys: KeysFile, folder: Path) -> Cipher | None:
    """Return the cipher of the access keys; None where its master key is not at hand."""
    marks = [row[1] for row in keys.rows_of("master_key_mark")]
    set_key = partial(load_master_key, folder, None, os.environ, may_make=False)
    for at_hand in (set_key, partial(read_own, folder, NEXT_FILE)):  # a rotation may have been cut off
        with suppress(MasterKeyRefused, FileUnusable):
            key = at_hand()
            if key is not None and marks == [Cipher(key).fingerprint]:
                return Cipher(key)
    return None


def _opens_if_needed(cipher: Cipher, row: Sequence[Any]) -> bool:
    """Say whether the secret of an access key opens, or is needed no more, because the key is revoked."""
    columns = dict(zip(TABLES["access_keys"], row, strict=True))
    accesskey, sealed = columns["accesskey"], columns["sealed_secret"]
    if columns["revoked_ms"] is not None:
        return True
    try:
        cipher.open(accesskey, sealed)
    except AccessKeyDamaged:
        return False
    return True


def _check_owner(file: AuditFile, findings: Findings, where: str, customer: str, journal: JournalPass) -> None:
    """Note that nobody has registered the *customer* of an access key, unless that may have been since."""
    head = file.journal.head()
    if head is None or head.seq <= journal.seq:
        findings.add("access_key_malformed", None, where, f"of {customer}", "of a customer who is registered")

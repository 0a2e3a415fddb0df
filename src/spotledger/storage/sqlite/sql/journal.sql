-- journal.db: the truth of the embedded store. A commit appends entries and moves the head, and nothing else.

CREATE TABLE entry (
    seq   INTEGER PRIMARY KEY CHECK (seq > 0),
    body  TEXT NOT NULL,             -- JSON, units as decimal text; the bytes that are hashed
    hash  BLOB NOT NULL              -- SHA-256 of the hash before it and the body
) STRICT;

CREATE TRIGGER entry_is_never_updated BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never updated'); END;

CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never deleted'); END;

-- INSERT OR REPLACE would delete without asking the trigger above.
CREATE TRIGGER entry_is_never_replaced BEFORE INSERT ON entry WHEN EXISTS (SELECT 1 FROM entry WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never replaced'); END;

-- One row: the last entry of the last commit. It shows a journal that was cut at its end.
CREATE TABLE head (
    only_row  INTEGER PRIMARY KEY CHECK (only_row = 1),
    seq       INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    booked_ms INTEGER NOT NULL
) STRICT;

CREATE TRIGGER head_never_goes_back BEFORE UPDATE ON head WHEN NEW.seq <= OLD.seq OR NEW.booked_ms < OLD.booked_ms
BEGIN SELECT RAISE(ABORT, 'the head of the journal never goes back'); END;

CREATE TRIGGER head_is_never_deleted BEFORE DELETE ON head
BEGIN SELECT RAISE(ABORT, 'the head of the journal is never deleted'); END;

CREATE TRIGGER head_is_never_replaced BEFORE INSERT ON head WHEN EXISTS (SELECT 1 FROM head)
BEGIN SELECT RAISE(ABORT, 'the head of the journal is never replaced'); END;

-- Which ledger this is, the entry with which its epoch began (0 in the first one), the size of a segment, and how often
-- it was started.
CREATE TABLE ledger (
    only_row        INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id       TEXT NOT NULL,
    epoch_seq       INTEGER NOT NULL,
    segment_entries INTEGER NOT NULL,
    starts          INTEGER NOT NULL
) STRICT;

-- For people with an SQLite shell: the journal as postings, one per row.
CREATE VIEW posting AS
SELECT entry.seq                            AS seq,
       entry.body ->> '$.kind'              AS kind,
       balance.value ->> '$[0][0]'          AS customer,
       balance.value ->> '$[0][1]'          AS account,
       balance.value ->> '$[1]'             AS coin,
       line.value ->> '$[1]'                AS side,
       line.value ->> '$[2]'                AS units,
       line.value ->> '$[3]'                AS hold,
       entry.body ->> '$.key'               AS "key",
       entry.body ->> '$.actor'             AS actor,
       datetime((entry.body ->> '$.booked_ms') / 1000, 'unixepoch') AS booked
FROM entry, json_each(entry.body, '$.postings') AS line
-- A posting begins with the place, from 0, of the balance that it is about.
LEFT JOIN json_each(entry.body, '$.balances') AS balance ON balance.key = line.value ->> '$[0]';

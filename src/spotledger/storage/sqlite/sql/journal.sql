-- The ledger file of the embedded store. The journal and its head are the truth. Everything else about money is derived
-- from them, segment by segment, and can be rebuilt.
--
-- Units are INTEGER if they fit in 64 bits, else decimal text (columns of type ANY). Never sum them in SQL.

CREATE TABLE entry (
    seq   INTEGER PRIMARY KEY CHECK (seq > 0),
    body  TEXT NOT NULL,             -- JSON, units as decimal text; the bytes that are hashed
    hash  BLOB NOT NULL              -- SHA-256 of the previous hash and the body
) STRICT;

CREATE TRIGGER entry_is_never_updated BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never updated'); END;

CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never deleted'); END;

-- INSERT OR REPLACE deletes without firing the trigger above.
CREATE TRIGGER entry_is_never_replaced BEFORE INSERT ON entry WHEN EXISTS (SELECT 1 FROM entry WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'an entry of the journal is never replaced'); END;

-- One row: the last entry of the last commit. It reveals a journal that was cut at its end.
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

-- One row: the id of the ledger, the epoch, which each restore increments, the size of a segment, and what is sealed.
CREATE TABLE ledger (
    only_row        INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id       TEXT NOT NULL,
    epoch           INTEGER NOT NULL,
    segment_entries INTEGER NOT NULL,
    sealed_to       INTEGER NOT NULL,   -- the last seq whose derived rows below are complete
    starts          INTEGER NOT NULL
) STRICT;

-- Derived: idempotency keys, by a 128-bit BLAKE2b digest of the key, clustered by segment.
CREATE TABLE key_seq (
    segment INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (segment, digest, seq)
) STRICT, WITHOUT ROWID;

-- Derived: which entries of a segment changed a coin of an account. The balances after them are in the entries.
CREATE TABLE history (
    segment   INTEGER NOT NULL,
    customer  TEXT NOT NULL,
    account   TEXT NOT NULL,
    coin      TEXT NOT NULL,
    places    BLOB NOT NULL,         -- positions of the entries in the segment, from 0, ascending; 16-bit little-endian
    PRIMARY KEY (segment, customer, account, coin)
) STRICT, WITHOUT ROWID;

-- Derived: the balances as of sealed_to.
CREATE TABLE balance (
    customer  TEXT NOT NULL,
    account   TEXT NOT NULL,
    coin      TEXT NOT NULL,
    available ANY NOT NULL,
    "freeze"  ANY NOT NULL,
    seq       INTEGER NOT NULL,
    PRIMARY KEY (customer, account, coin)
) STRICT, WITHOUT ROWID;

-- Derived: the holds as of sealed_to; hold_id is the seq of the entry that opened it.
CREATE TABLE hold (
    hold_id    INTEGER PRIMARY KEY,
    customer   TEXT NOT NULL,
    account    TEXT NOT NULL,
    coin       TEXT NOT NULL,
    amount     ANY NOT NULL,
    remaining  ANY NOT NULL,
    reference  TEXT,
    expires_ms INTEGER,
    opened_ms  INTEGER NOT NULL,
    closed_seq INTEGER
) STRICT;

CREATE INDEX hold_open ON hold (customer, hold_id) WHERE closed_seq IS NULL;
CREATE INDEX hold_age ON hold (hold_id) WHERE closed_seq IS NULL;
CREATE INDEX hold_due ON hold (expires_ms, hold_id) WHERE closed_seq IS NULL AND expires_ms IS NOT NULL;

-- Derived: the holds that a segment opened, by customer.
CREATE TABLE hold_of (
    segment  INTEGER NOT NULL,
    customer TEXT NOT NULL,
    places   BLOB NOT NULL,          -- positions of the entries that opened them, as in history
    PRIMARY KEY (segment, customer)
) STRICT, WITHOUT ROWID;

CREATE TABLE coin (
    coin  TEXT PRIMARY KEY,
    scale INTEGER NOT NULL,
    seq   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE customer (
    customer TEXT PRIMARY KEY,
    seq      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Derived: which entry was reversed, and by which entry.
CREATE TABLE reversal (
    seq    INTEGER PRIMARY KEY,
    by_seq INTEGER NOT NULL
) STRICT;

-- The filter of known idempotency keys, in levels that double in size; each page has a checksum.
CREATE TABLE key_filter (
    level      INTEGER PRIMARY KEY,
    covered_to INTEGER NOT NULL,        -- the last segment whose keys are in the pages of the level
    checksum   BLOB NOT NULL
) STRICT;

CREATE TABLE key_filter_page (
    level    INTEGER NOT NULL,
    page     INTEGER NOT NULL,
    bits     BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (level, page)
) STRICT;

-- For use in an SQLite shell: the journal with one posting per row.
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
       datetime((entry.body ->> '$.booked_ms') / 1000, 'unixepoch') AS booked
FROM entry, json_each(entry.body, '$.postings') AS line
-- The first item of a posting is the position, from 0, of its balance.
LEFT JOIN json_each(entry.body, '$.balances') AS balance ON balance.key = line.value ->> '$[0]';

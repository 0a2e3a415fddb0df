-- books.db: everything that is derived from the journal, written a segment at a time. It may be deleted while the
-- service is stopped; the service makes it again.
--
-- What proves that something is *not* there is kept as a unit with a checksum: keys, references and history of a segment
-- in buckets that always exist, and a count and a digest for the rows of each bucket of owners and of holds.
-- Units are INTEGER while they fit 64 bits and decimal text beyond that (columns of type ANY); never sum them in SQL.

-- One row: the ledger, how far its journal is sealed, and what the small tables add up to.
CREATE TABLE books (
    only_row         INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id        TEXT NOT NULL,
    segment_entries  INTEGER NOT NULL,
    sealed_to        INTEGER NOT NULL,  -- the last seq that is in here
    sealed_hash      BLOB NOT NULL,     -- the hash of that entry
    coins            INTEGER NOT NULL,
    coins_digest     BLOB NOT NULL,     -- sums of the digests of the rows
    reversals        INTEGER NOT NULL,
    reversals_digest BLOB NOT NULL,
    buckets          INTEGER NOT NULL,  -- of the tables owner_bucket and hold_bucket together, so that none is an older one
    buckets_digest   BLOB NOT NULL,
    customers        INTEGER NOT NULL,
    open_holds       INTEGER NOT NULL,
    expiring_holds   INTEGER NOT NULL   -- of the open ones, those with an expiry
) STRICT;

-- The idempotency keys of a segment by bucket: id = segment * 512 + bucket.
CREATE TABLE key_bucket (
    id     INTEGER PRIMARY KEY,
    packed BLOB NOT NULL
) STRICT;

-- The references of the entries of a segment, in buckets like those of the keys.
CREATE TABLE reference_bucket (
    id     INTEGER PRIMARY KEY,
    packed BLOB NOT NULL
) STRICT;

-- Which entries of a segment touched an account and coin, and which opened holds, by bucket of the owner.
CREATE TABLE history_bucket (
    id     INTEGER PRIMARY KEY,
    packed BLOB NOT NULL
) STRICT;

-- The balances as of sealed_to, and the segments in which each was touched.
CREATE TABLE balance (
    bucket    INTEGER NOT NULL,
    customer  TEXT NOT NULL,
    account   TEXT NOT NULL,
    coin      TEXT NOT NULL,
    available ANY NOT NULL,
    "freeze"  ANY NOT NULL,
    seq       INTEGER NOT NULL,         -- the last entry that touched it
    segments  BLOB NOT NULL,            -- rising; four bytes each, low one first
    PRIMARY KEY (bucket, customer, account, coin)
) STRICT, WITHOUT ROWID;

CREATE TABLE customer (
    bucket   INTEGER NOT NULL,
    customer TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    PRIMARY KEY (bucket, customer)
) STRICT, WITHOUT ROWID;

CREATE INDEX customer_name ON customer (customer);

-- What the rows of balance and customer in a bucket of owners add up to.
CREATE TABLE owner_bucket (
    bucket INTEGER PRIMARY KEY,
    rows   INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;

-- The holds as of sealed_to; hold_id is the seq of the entry that opened it.
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

-- What 256 holds in a row add up to.
CREATE TABLE hold_bucket (
    bucket INTEGER PRIMARY KEY,         -- hold_id / 256
    rows   INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;

CREATE TABLE coin (
    coin  TEXT PRIMARY KEY,
    scale INTEGER NOT NULL,
    seq   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which entry was reversed, and by which.
CREATE TABLE reversal (
    seq    INTEGER PRIMARY KEY,
    by_seq INTEGER NOT NULL
) STRICT;

-- The filter that says of a key that it was never seen, in levels that double in size; each page with its checksum.
CREATE TABLE key_filter (
    level      INTEGER PRIMARY KEY,
    covered_to INTEGER NOT NULL,        -- the last segment whose keys are in the level's pages
    checksum   BLOB NOT NULL
) STRICT;

CREATE TABLE key_filter_page (
    level    INTEGER NOT NULL,
    page     INTEGER NOT NULL,
    bits     BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (level, page)
) STRICT;

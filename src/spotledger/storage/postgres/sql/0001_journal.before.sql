-- The ledger on PostgreSQL. The journal and its head are the truth. Everything else about money is derived from them in
-- the same transaction, and can be rebuilt.
--
-- Units are NUMERIC(38,0): |units| < 10^38. Texts compare by their bytes (COLLATE "C"), as everywhere in spotledger.
-- A segment is 65,536 consecutive entries; rows with a segment number first are written close together.

-- body and hash are the same as in the embedded store, so the hash chain does not depend on the store.
CREATE TABLE entry (
    seq        bigint PRIMARY KEY CHECK (seq > 0),
    body       text COLLATE "C" NOT NULL,  -- JSON, units as decimal text; the bytes that are hashed
    hash       bytea NOT NULL,             -- SHA-256 of the previous hash and the body
    key_digest uuid NOT NULL               -- derived: the 128-bit BLAKE2b digest of the idempotency key
);

CREATE UNIQUE INDEX entry_key ON entry (key_digest);

-- One row: the last entry of the last commit. Its row lock is the write lock of the journal.
CREATE TABLE head (
    only_row  smallint PRIMARY KEY CHECK (only_row = 1),
    seq       bigint NOT NULL,
    hash      bytea NOT NULL,
    booked_ms bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

CREATE FUNCTION refuse_change_of_journal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the table % is the journal: % is never done to it', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE FUNCTION refuse_head_going_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the head of the journal never goes back' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_journal();
CREATE TRIGGER head_is_never_deleted BEFORE DELETE OR TRUNCATE ON head
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_journal();
CREATE TRIGGER head_never_goes_back BEFORE UPDATE ON head
    FOR EACH ROW WHEN (NEW.seq <= OLD.seq OR NEW.booked_ms < OLD.booked_ms)
    EXECUTE FUNCTION refuse_head_going_back();

-- One row: the id of the ledger, and the entry with which its epoch began (0 in the first one).
CREATE TABLE ledger (
    only_row  smallint PRIMARY KEY CHECK (only_row = 1),
    ledger_id text COLLATE "C" NOT NULL,
    epoch_seq bigint NOT NULL,
    syncs     bigint NOT NULL              -- incremented only to make a commit that is synced
) WITH (fillfactor = 10);

-- Derived: which entries changed a coin of an account, clustered by segment. The balances after them are in the entries.
CREATE TABLE history (
    segment  integer NOT NULL,
    customer text COLLATE "C" NOT NULL,
    account  text COLLATE "C" NOT NULL,
    coin     text COLLATE "C" NOT NULL,
    seq      bigint NOT NULL,
    PRIMARY KEY (segment, customer, account, coin, seq)
);

-- Derived: the balances at the head. Free space on each page keeps new versions of a row on the page of the old ones.
CREATE TABLE balance (
    customer  text COLLATE "C" NOT NULL,
    account   text COLLATE "C" NOT NULL,
    coin      text COLLATE "C" NOT NULL,
    available numeric(38, 0) NOT NULL,
    "freeze"  numeric(38, 0) NOT NULL CHECK ("freeze" >= 0),
    seq       bigint NOT NULL,
    PRIMARY KEY (customer, account, coin),
    CHECK (available >= 0 OR account = 'house')
) WITH (fillfactor = 60, autovacuum_vacuum_cost_delay = 0);

-- Derived: all holds at the head, open and closed.
CREATE TABLE hold (
    hold_id    bigint PRIMARY KEY,
    customer   text COLLATE "C" NOT NULL,
    account    text COLLATE "C" NOT NULL,
    coin       text COLLATE "C" NOT NULL,
    amount     numeric(38, 0) NOT NULL,
    remaining  numeric(38, 0) NOT NULL CHECK (remaining >= 0),
    reference  text COLLATE "C",
    expires_ms bigint,
    opened_ms  bigint NOT NULL,
    closed_seq bigint,
    CHECK ((remaining = 0) = (closed_seq IS NOT NULL))
) WITH (fillfactor = 70);

CREATE INDEX hold_of ON hold (((hold_id - 1) / 65536), customer, hold_id);

-- Derived: the open holds. A row is deleted when its hold closes, so that the rows of hold can stay in place.
CREATE TABLE open_hold (
    hold_id    bigint PRIMARY KEY,
    customer   text COLLATE "C" NOT NULL,
    expires_ms bigint
) WITH (autovacuum_vacuum_cost_delay = 0);

CREATE INDEX open_hold_of ON open_hold (customer, hold_id);
CREATE INDEX open_hold_due ON open_hold (expires_ms, hold_id) WHERE expires_ms IS NOT NULL;

CREATE TABLE coin (
    coin  text COLLATE "C" PRIMARY KEY,
    scale smallint NOT NULL,
    seq   bigint NOT NULL
);

CREATE TABLE customer (
    customer text COLLATE "C" PRIMARY KEY,
    seq      bigint NOT NULL
);

-- Derived: which entry was reversed, and by which entry.
CREATE TABLE reversal (
    seq    bigint PRIMARY KEY,
    by_seq bigint NOT NULL
);

-- For use in an SQL shell: the journal with one posting per row.
CREATE VIEW posting AS
SELECT entry.seq                            AS seq,
       body.value ->> 'kind'                AS kind,
       line.value -> 0 ->> 0                AS customer,
       line.value -> 0 ->> 1                AS account,
       line.value ->> 1                     AS coin,
       line.value ->> 2                     AS side,
       (line.value ->> 3)::numeric          AS units,
       (line.value ->> 4)::bigint           AS hold,
       body.value ->> 'key'                 AS key,
       to_timestamp((body.value ->> 'booked_ms')::bigint / 1000.0) AS booked
FROM entry,
     LATERAL (SELECT entry.body::jsonb) AS body (value),
     LATERAL jsonb_array_elements(body.value -> 'postings') WITH ORDINALITY AS line (value, place)
ORDER BY entry.seq, line.place;

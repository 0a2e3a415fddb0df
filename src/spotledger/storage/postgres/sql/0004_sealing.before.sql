-- A commit appends entries and updates no row. What is derived from them is written behind it, a segment at a time, by
-- whichever node has locked the row of the table sealed.

-- A node of the previous version would go on writing what is derived with each commit, so it is refused from now on.
INSERT INTO schema_version (number, phase, name) VALUES (4, 'after', '0004_sealing.before.sql');

-- Such a node may be in the midst of a write: only when it is done do the tables stand at one entry.
LOCK TABLE head IN ACCESS EXCLUSIVE MODE;

-- One row: the last entry from which everything derived was written, and its hash.
CREATE TABLE sealed (
    only_row smallint PRIMARY KEY CHECK (only_row = 1),
    seq      bigint NOT NULL CHECK (seq >= 0),
    hash     bytea NOT NULL
);
INSERT INTO sealed (only_row, seq, hash) SELECT only_row, seq, hash FROM head;

-- The row of the ledger is the write lock of the journal. It also says how many entries are sealed at once.
ALTER TABLE ledger ADD COLUMN segment_entries integer NOT NULL DEFAULT 65536
    CHECK (segment_entries BETWEEN 1 AND 65536);
ALTER TABLE ledger ALTER COLUMN segment_entries DROP DEFAULT;

DROP TABLE head;
DROP FUNCTION refuse_head_going_back();

-- Distributed databases have no statement-level triggers. There, TRUNCATE of this table alone is refused because another
-- one refers to it.
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON entry
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_journal();
ALTER TABLE coin ADD CONSTRAINT coin_listed FOREIGN KEY (seq) REFERENCES entry (seq);
DO $$
BEGIN
    CREATE TRIGGER entry_is_never_truncated BEFORE TRUNCATE ON entry
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_journal();
EXCEPTION
    WHEN feature_not_supported THEN NULL;
END
$$;

-- For use in an SQL shell: the last entry of the journal; before the first one, what that is chained to.
-- Not under the name of the old table: nodes of the previous version that still run would take what is sealed for the
-- state at this entry.
CREATE VIEW journal_head AS
SELECT ledger.only_row                                                                          AS only_row,
       coalesce(last.seq, 0)                                                                    AS seq,
       coalesce(last.hash, sha256(convert_to('spotledger ledger ' || ledger.ledger_id, 'UTF8'))) AS hash,
       coalesce((last.body::json ->> 'booked_ms')::bigint, 0)                                   AS booked_ms
FROM ledger
LEFT JOIN LATERAL (SELECT seq, hash, body FROM entry ORDER BY seq DESC LIMIT 1) AS last ON true;

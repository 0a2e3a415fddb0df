-- The master key can be rotated.

-- A node of the previous version would go on sealing with the key before, so it is refused from now on.
INSERT INTO schema_version (number, phase, name) VALUES (7, 'after', '0007_master_key.before.sql');

-- is_swept is 0 from a rotation of the master key until what was sealed with the key before is in no file of the table.
ALTER TABLE master_key_mark ADD COLUMN is_swept smallint NOT NULL DEFAULT 1 CHECK (is_swept IN (0, 1));
ALTER TABLE master_key_mark ALTER COLUMN is_swept DROP DEFAULT;

-- The fingerprints of the master keys that were in force before. None of them may come into force again.
CREATE TABLE retired_master_keys (
    fingerprint text COLLATE "C" PRIMARY KEY,
    retired_ms  bigint NOT NULL
);

-- One row per process of a node: the fingerprints of the master keys that it holds, and when it last said so. A rotation
-- waits until each that is alive holds the next one. A row that is too old counts for nothing.
CREATE TABLE master_key_holders (
    holder       text COLLATE "C" PRIMARY KEY,  -- a random id of the process
    place        text NOT NULL,                 -- what tells people which one it is
    fingerprints text[] NOT NULL,
    announced    timestamptz NOT NULL
);

-- Entries are found by their reference, in an index that sealing writes. Stop the nodes of the previous version first:
-- one that runs on would seal without it, until spotledger rebuild.

INSERT INTO schema_version (number, phase, name) VALUES (8, 'after', '0008_references.before.sql');

-- Nobody seals meanwhile.
LOCK TABLE sealed IN ACCESS EXCLUSIVE MODE;

-- Derived: which sealed entries have a reference; segment is (seq - 1) / 65536.
CREATE TABLE reference (
    segment   integer NOT NULL,
    reference text COLLATE "C" NOT NULL,
    seq       bigint NOT NULL,
    PRIMARY KEY (segment, reference, seq)
);

INSERT INTO reference (segment, reference, seq)
SELECT (seq - 1) / 65536, body::json #>> '{request,reference}', seq
FROM entry
WHERE seq <= (SELECT seq FROM sealed) AND body::json #>> '{request,reference}' IS NOT NULL;

-- Who used which credential from where, summed by minute. Nothing in it is a secret. Times are ms since 1970.

-- One row a line. Only its count changes, and only while its minute runs. Lines that are written later have greater
-- numbers, so that somebody who reads in pages misses nothing.
CREATE TABLE lines (
    line        INTEGER PRIMARY KEY AUTOINCREMENT,
    minute_ms   INTEGER NOT NULL,
    actor       TEXT NOT NULL,  -- token:ID, key:FIRST-EIGHT, library; empty if no credential is known
    actor_label TEXT NOT NULL,
    address     TEXT NOT NULL,
    call        TEXT NOT NULL,
    reason      TEXT NOT NULL,  -- the code of the refusal; empty if the call passed
    count       INTEGER NOT NULL CHECK (count > 0)
) STRICT;

CREATE INDEX lines_of_actor ON lines (actor, line);
CREATE INDEX lines_of_address ON lines (address, line);
CREATE INDEX lines_refused ON lines (line) WHERE reason <> '';

CREATE TRIGGER lines_only_grow BEFORE UPDATE ON lines
WHEN new.count <= old.count
    OR (new.line, new.minute_ms, new.actor, new.actor_label, new.address, new.call, new.reason)
    IS NOT (old.line, old.minute_ms, old.actor, old.actor_label, old.address, old.call, old.reason)
BEGIN
    SELECT RAISE(ABORT, 'a line of the access log only grows');
END;

-- The first line of each minute: lines from some time on are found by it.
CREATE TABLE minutes (
    minute_ms  INTEGER PRIMARY KEY,
    first_line INTEGER NOT NULL
) STRICT;

-- How many lines there are that passed (refused = 0) and that were refused (1).
CREATE TABLE held (
    refused INTEGER PRIMARY KEY CHECK (refused IN (0, 1)),
    lines   INTEGER NOT NULL
) STRICT;

INSERT INTO held VALUES (0, 0), (1, 0);

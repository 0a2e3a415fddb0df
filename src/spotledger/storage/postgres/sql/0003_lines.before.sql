-- A posting refers to one of the entry's balances by position, and no longer repeats account and coin. Older entries
-- cannot be converted, because their hashes cover their bytes.

DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM entry) THEN
        RAISE EXCEPTION 'the journal has entries of the form before version 3; only the spotledger that wrote them reads it';
    END IF;
END
$$;

-- A node of the previous version would go on writing entries of the old form, so it is refused from now on.
INSERT INTO schema_version (number, phase, name) VALUES (3, 'after', '0003_lines.before.sql');

DROP VIEW posting;

CREATE VIEW posting AS
SELECT entry.seq                            AS seq,
       body.value ->> 'kind'                AS kind,
       balance.value -> 0 ->> 0             AS customer,
       balance.value -> 0 ->> 1             AS account,
       balance.value ->> 1                  AS coin,
       line.value ->> 1                     AS side,
       (line.value ->> 2)::numeric          AS units,
       (line.value ->> 3)::bigint           AS hold,
       body.value ->> 'key'                 AS key,
       to_timestamp((body.value ->> 'booked_ms')::bigint / 1000.0) AS booked
FROM entry,
     LATERAL (SELECT entry.body::jsonb) AS body (value),
     LATERAL jsonb_array_elements(body.value -> 'postings') WITH ORDINALITY AS line (value, place),
     LATERAL (SELECT body.value -> 'balances' -> (line.value ->> 0)::integer) AS balance (value)
ORDER BY entry.seq, line.place;

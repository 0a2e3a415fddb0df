--! Damage to the journal, the row that says what is sealed, and the row that identifies the ledger.
--! Each kind: its name, the code of a finding, the place that the finding names; then the statements that do it.
--! {hold} is an open hold that expires, {closed} a closed one, {last} the last entry, {reversed} an entry that was reversed.

-- entry.body: trailing blank | chain_broken | hash
UPDATE entry SET body = body || ' ' WHERE seq = 6;

-- entry.body: not json | entry_unreadable | body
UPDATE entry SET body = '[[' WHERE seq = 6;

-- entry.body: empty | entry_unreadable | body
UPDATE entry SET body = '' WHERE seq = 6;

-- entry.body: key changed | chain_broken | hash
UPDATE entry SET body = replace(body, '"key":"', '"key":"x') WHERE seq = 6;

-- entry.body: another key | key_row_missing | entry 6: key_digest
UPDATE entry SET body = replace(body, '"key":"', '"key":"x') WHERE seq = 6;

-- entry.body: booked_ms | time_falls | booked_ms
UPDATE entry SET body = replace(body, '"booked_ms":', '"booked_ms":9') WHERE seq = 6;

-- entry.body: deep | entry_unreadable | body
UPDATE entry SET body = repeat('[', 100000) WHERE seq = 6;

-- entry.body: an enormous number | chain_broken | hash
UPDATE entry SET body = replace(body, '"units":"', '"units":"' || repeat('9', 9000)) WHERE seq = 6;

-- entry.body null | entry_unreadable | row
ALTER TABLE entry ALTER body DROP NOT NULL;
UPDATE entry SET body = NULL WHERE seq = 6;

-- entry.body made json | schema_changed | entry: column body
DROP VIEW posting, journal_head;
ALTER TABLE entry ALTER body TYPE jsonb USING body::jsonb;

-- entry.body made bytes | schema_changed | entry: column body
DROP VIEW posting, journal_head;
ALTER TABLE entry ALTER body TYPE bytea USING convert_to(body, 'UTF8');

-- entry.hash null-length | chain_broken | hash
UPDATE entry SET hash = '' WHERE seq = 6;

-- entry.hash long | chain_broken | hash
UPDATE entry SET hash = hash || hash WHERE seq = 6;

-- entry.hash null | entry_unreadable | row
ALTER TABLE entry ALTER hash DROP NOT NULL;
UPDATE entry SET hash = NULL WHERE seq = 6;

-- entry.key_digest null | key_row_missing | entry 6: key_digest
ALTER TABLE entry ALTER key_digest DROP NOT NULL;
UPDATE entry SET key_digest = NULL WHERE seq = 6;

-- entry.key_digest made text | schema_changed | entry: column key_digest
ALTER TABLE entry ALTER key_digest TYPE text;

-- entry.key_digest: swap of two in one segment | key_row_extra | entry 7: key_digest
CREATE TABLE kept AS SELECT seq, key_digest FROM entry WHERE seq IN (6, 7);
UPDATE entry SET key_digest = gen_random_uuid() WHERE seq IN (6, 7);
UPDATE entry SET key_digest = kept.key_digest FROM kept WHERE kept.seq = 13 - entry.seq AND entry.seq IN (6, 7);

-- entry.last row body replaced w/ hash recomputed | customer_row_missing | customer adam
UPDATE entry SET body = replace(body, '"customer":"eve"', '"customer":"adam"') WHERE seq = {last};
UPDATE entry SET hash = sha256((SELECT hash FROM entry WHERE seq = {last} - 1) || convert_to(body, 'UTF8')) WHERE seq
    = {last};
UPDATE sealed SET hash = (SELECT hash FROM entry WHERE seq = {last});

-- entry.seq: no number | entry_out_of_place | entry
ALTER TABLE entry DROP CONSTRAINT entry_pkey CASCADE, ALTER seq DROP NOT NULL;
INSERT INTO entry VALUES (NULL, '', '', gen_random_uuid());

-- entry.seq: zero | entry_out_of_place | entry
ALTER TABLE entry DROP CONSTRAINT entry_seq_check;
UPDATE entry SET seq = 0 WHERE seq = 6;

-- entry.seq made text | schema_changed | entry: column seq
DROP VIEW posting, journal_head;
ALTER TABLE coin DROP CONSTRAINT coin_listed;
ALTER TABLE entry DROP CONSTRAINT entry_seq_check, ALTER seq TYPE text;

-- entry.seq made double | schema_changed | entry: column seq
DROP VIEW posting, journal_head;
ALTER TABLE coin DROP CONSTRAINT coin_listed;
ALTER TABLE entry ALTER seq TYPE double precision;

-- entry: dup after pk dropped | row_repeated | entry 6
ALTER TABLE entry DROP CONSTRAINT entry_pkey CASCADE;
INSERT INTO entry SELECT seq, body, hash, gen_random_uuid() FROM entry WHERE seq = 6;

-- entry: body dropped | schema_changed | entry: column body
ALTER TABLE entry DROP COLUMN body CASCADE;

-- entry: all gone | journal_cut | journal
DELETE FROM entry;

-- sealed.hash | books_differ | sealed
UPDATE sealed SET hash = sha256(hash);

-- sealed.hash empty | books_differ | sealed
UPDATE sealed SET hash = '';

-- sealed.seq+1 | journal_cut | journal
UPDATE sealed SET seq = seq + 1;

-- sealed.seq-1 | books_differ | sealed
UPDATE sealed SET seq = seq - 1;

-- sealed.seq-1 with its hash | rows_beyond_journal | history
UPDATE sealed SET seq = seq - 3, hash = (SELECT hash FROM entry WHERE entry.seq = sealed.seq - 3);

-- sealed.seq below zero | sealed_to_wrong | sealed
ALTER TABLE sealed DROP CONSTRAINT sealed_seq_check;
UPDATE sealed SET seq = -1;

-- sealed.seq null | sealed_to_wrong | sealed
ALTER TABLE sealed ALTER seq DROP NOT NULL;
UPDATE sealed SET seq = NULL;

-- sealed.hash null | books_differ | sealed
ALTER TABLE sealed ALTER hash DROP NOT NULL;
UPDATE sealed SET hash = NULL;

-- sealed.seq zero | balance_row_extra | balance ann spot btc
UPDATE sealed SET seq = 0;

-- sealed gone | books_differ | sealed
DELETE FROM sealed;

-- sealed twice | row_repeated | sealed
ALTER TABLE sealed DROP CONSTRAINT sealed_pkey;
INSERT INTO sealed SELECT * FROM sealed;

-- sealed: another row | row_repeated | sealed
ALTER TABLE sealed DROP CONSTRAINT sealed_only_row_check;
INSERT INTO sealed SELECT 2, seq, hash FROM sealed;

-- ledger.segment_entries | ledger_row_wrong | ledger
ALTER TABLE ledger DROP CONSTRAINT ledger_segment_entries_check;
UPDATE ledger SET segment_entries = 0;

-- ledger.segment_entries null | ledger_row_wrong | ledger
ALTER TABLE ledger ALTER segment_entries DROP NOT NULL;
UPDATE ledger SET segment_entries = NULL;

-- ledger.id | chain_broken | hash
UPDATE ledger SET ledger_id = 'another';

-- ledger.id empty | ledger_row_wrong | ledger
UPDATE ledger SET ledger_id = '';

-- ledger.id null | ledger_row_wrong | ledger
ALTER TABLE ledger ALTER ledger_id DROP NOT NULL;
UPDATE ledger SET ledger_id = NULL;

-- ledger.epoch | ledger_row_wrong | ledger
UPDATE ledger SET epoch_seq = 3;

-- ledger.epoch null | ledger_row_wrong | ledger
ALTER TABLE ledger ALTER epoch_seq DROP NOT NULL;
UPDATE ledger SET epoch_seq = NULL;

-- ledger.syncs | ledger_row_wrong | ledger
UPDATE ledger SET syncs = -1;

-- ledger.syncs null | ledger_row_wrong | ledger
ALTER TABLE ledger ALTER syncs DROP NOT NULL;
UPDATE ledger SET syncs = NULL;

-- ledger gone | ledger_row_missing | ledger
DELETE FROM ledger;

-- ledger twice | row_repeated | ledger
ALTER TABLE ledger DROP CONSTRAINT ledger_pkey;
INSERT INTO ledger SELECT * FROM ledger;

-- clock_trust.number | ledger_row_wrong | clock_trust
ALTER TABLE clock_trust DROP CONSTRAINT clock_trust_number_check;
UPDATE clock_trust SET number = -1;

-- clock_trust twice | row_repeated | clock_trust
ALTER TABLE clock_trust DROP CONSTRAINT clock_trust_pkey;
INSERT INTO clock_trust SELECT * FROM clock_trust;

-- copy_going_on left | ledger_row_wrong | copy_going_on
INSERT INTO copy_going_on VALUES (1, 3, '');

-- entry.seq: far away | entry_missing | journal
UPDATE entry SET seq = 9223372036854775807 WHERE seq = {last};

-- entry: a second row at the end of all numbers | entry_missing | journal
INSERT INTO entry SELECT 9223372036854775807, body, hash, gen_random_uuid() FROM entry WHERE seq = 6;

-- sealed.only_row | books_differ | sealed
ALTER TABLE sealed DROP CONSTRAINT sealed_only_row_check;
UPDATE sealed SET only_row = 2;

-- ledger.only_row | ledger_row_missing | ledger
ALTER TABLE ledger DROP CONSTRAINT ledger_only_row_check;
UPDATE ledger SET only_row = 2;

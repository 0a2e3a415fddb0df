--! Damage to tables, columns, constraints, indexes, triggers, rules and views.
--! Each kind: its name, the code of a finding, the place that the finding names; then the statements that do it.
--! {hold} is an open hold that expires, {closed} a closed one, {last} the last entry, {reversed} an entry that was reversed.

-- trigger entry dropped | trigger_changed | entry: trigger entry_is_never_changed
DROP TRIGGER entry_is_never_changed ON entry;

-- trigger entry moved to another table | trigger_changed | entry: trigger entry_is_never_changed
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON coin FOR EACH ROW EXECUTE FUNCTION
    refuse_change_of_journal();

-- trigger entry: only TRUNCATE now | trigger_changed | entry: trigger entry_is_never_changed
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE TRUNCATE ON entry FOR EACH STATEMENT EXECUTE FUNCTION
    refuse_change_of_journal();

-- trigger entry: of some columns | trigger_changed | entry: trigger entry_is_never_changed
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OF hash OR DELETE ON entry FOR EACH ROW EXECUTE
    FUNCTION refuse_change_of_journal();

-- trigger entry: another function of that name | trigger_changed | entry: trigger entry_is_never_changed
CREATE SCHEMA other;
CREATE FUNCTION other.refuse_change_of_journal() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON entry FOR EACH ROW EXECUTE FUNCTION
    other.refuse_change_of_journal();

-- trigger dropped while another schema has one of that name | trigger_changed | entry: trigger entry_is_never_changed
CREATE SCHEMA other;
CREATE TABLE other.entry (LIKE entry);
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON other.entry FOR EACH ROW EXECUTE
    FUNCTION refuse_change_of_journal();

-- trigger function made harmless | trigger_changed | refuse_change_of_journal(): function
CREATE OR REPLACE FUNCTION refuse_change_of_journal() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';

-- trigger function of another language | trigger_changed | refuse_change_of_journal(): function
CREATE OR REPLACE FUNCTION refuse_change_of_journal() RETURNS trigger LANGUAGE internal AS
    'suppress_redundant_updates_trigger';

-- trigger entry: WHEN (false) | trigger_changed | entry: trigger entry_is_never_changed
DROP TRIGGER entry_is_never_changed ON entry;
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE OR DELETE ON entry FOR EACH ROW WHEN (false)
    EXECUTE FUNCTION refuse_change_of_journal();

-- trigger on entry that drops inserts | trigger_changed | entry: trigger lost
CREATE FUNCTION harmless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER lost BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION harmless();

-- trigger on balance | trigger_changed | balance: trigger lost
CREATE FUNCTION harmless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER lost BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION harmless();

-- trigger replica only | trigger_changed | entry: trigger entry_is_never_changed
ALTER TABLE entry ENABLE REPLICA TRIGGER entry_is_never_changed;

-- trigger disabled | trigger_changed | entry: trigger entry_is_never_changed
ALTER TABLE entry DISABLE TRIGGER entry_is_never_changed;

-- rule on balance | schema_changed | balance: rule lost
CREATE RULE lost AS ON UPDATE TO balance DO INSTEAD NOTHING;

-- policy on balance | schema_changed | balance: policy few
CREATE POLICY few ON balance USING (customer <> 'ann');
ALTER TABLE balance ENABLE ROW LEVEL SECURITY;

-- row security on balance | schema_changed | balance: table
ALTER TABLE balance ENABLE ROW LEVEL SECURITY;

-- forced row security on entry | schema_changed | entry: table
ALTER TABLE entry FORCE ROW LEVEL SECURITY;

-- unique index non-unique | schema_changed | entry: index entry_key
DROP INDEX entry_key;
CREATE INDEX entry_key ON entry (key_digest);

-- unique index on other expr | schema_changed | entry: index entry_key
DROP INDEX entry_key;
CREATE UNIQUE INDEX entry_key ON entry ((key_digest::text));

-- unique index of some rows | schema_changed | entry: index entry_key
DROP INDEX entry_key;
CREATE UNIQUE INDEX entry_key ON entry (key_digest) WHERE seq > 6;

-- unique index invalid | schema_changed | entry: index entry_key
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'entry_key'::regclass;

-- index added | schema_changed | balance: index more
CREATE INDEX more ON balance (seq);

-- hold: index hold_of dropped | schema_changed | hold: index hold_of
DROP INDEX hold_of;

-- open_hold: index due dropped | schema_changed | open_hold: index open_hold_due
DROP INDEX open_hold_due;

-- access_keys: index dropped | schema_changed | access_keys: index access_keys_revoked
DROP INDEX access_keys_revoked;

-- balance: pk dropped only | schema_changed | balance: constraint balance_pkey
ALTER TABLE balance DROP CONSTRAINT balance_pkey;

-- balance: pk deferrable | schema_changed | balance: constraint balance_pkey
ALTER TABLE balance DROP CONSTRAINT balance_pkey, ADD CONSTRAINT balance_pkey PRIMARY KEY (customer, account, coin)
    DEFERRABLE;

-- balance: check dropped | schema_changed | balance: constraint balance_check
ALTER TABLE balance DROP CONSTRAINT balance_check;

-- balance: check of another | schema_changed | balance: constraint balance_check
ALTER TABLE balance DROP CONSTRAINT balance_check, ADD CONSTRAINT balance_check CHECK (available >= 0 OR account =
    'house' OR customer = 'ann');

-- balance: check not validated | schema_changed | balance: constraint balance_check
ALTER TABLE balance DROP CONSTRAINT balance_check, ADD CONSTRAINT balance_check CHECK (available >= 0 OR account =
    'house') NOT VALID;

-- balance: check added | schema_changed | balance: constraint more
ALTER TABLE balance ADD CONSTRAINT more CHECK (available < 10::numeric ^ 37);

-- open_hold: referenced by another table | schema_changed | open_hold: foreign key note_hold_fkey of note
CREATE TABLE note (hold bigint REFERENCES open_hold (hold_id));

-- balance.available made numeric(20,0) | schema_changed | balance: column available
UPDATE pg_attribute SET atttypmod = (20 << 16) + 4 WHERE attrelid = 'balance'::regclass AND attname = 'available';

-- balance.available made double | schema_changed | balance: column available
ALTER TABLE balance ALTER available TYPE double precision;

-- balance.seq made text | schema_changed | balance: column seq
ALTER TABLE balance ALTER seq TYPE text;

-- balance.customer made an array | schema_changed | balance: column customer
ALTER TABLE balance DROP CONSTRAINT balance_check, DROP CONSTRAINT balance_pkey, ALTER customer TYPE text[] USING
    ARRAY[customer];

-- balance.freeze dropped | schema_changed | balance: column freeze
ALTER TABLE balance DROP COLUMN "freeze";

-- balance.seq may be null | schema_changed | balance: column seq
ALTER TABLE balance ALTER seq DROP NOT NULL;

-- balance.customer: another collation | schema_changed | balance: column customer
ALTER TABLE balance ALTER customer TYPE text COLLATE "default";

-- balance: a column added | schema_changed | balance: column more
ALTER TABLE balance ADD more text;

-- balance.available: a default | schema_changed | balance: column available
ALTER TABLE balance ALTER available SET DEFAULT 7;

-- hold.hold_id: a sequence | schema_changed | hold: column hold_id
ALTER TABLE hold ALTER hold_id ADD GENERATED ALWAYS AS IDENTITY;

-- entry.seq: a sequence | schema_changed | entry: column seq
CREATE SEQUENCE numbers;
ALTER TABLE entry ALTER seq SET DEFAULT nextval('numbers');

-- view posting changed | schema_changed | posting: view
CREATE OR REPLACE VIEW posting AS SELECT entry.seq, ''::text AS kind, ''::text AS customer, ''::text AS account,
    ''::text AS coin, ''::text AS side, 0::numeric AS units, 0::bigint AS hold, ''::text AS key, now() AS booked FROM
    entry;

-- view posting dropped | schema_changed | posting: view
DROP VIEW posting;

-- balance made a view | schema_changed | balance: table
ALTER TABLE balance RENAME TO balances;
CREATE VIEW balance AS SELECT * FROM balances;

-- balance partitioned | schema_changed | balance: table
ALTER TABLE balance RENAME TO old;
CREATE TABLE balance (LIKE old) PARTITION BY LIST (coin);
CREATE TABLE part PARTITION OF balance DEFAULT;
INSERT INTO balance SELECT * FROM old;

-- balance inherited from | schema_changed | balance: child more
CREATE TABLE more () INHERITS (balance);
INSERT INTO more VALUES ('ann', 'spot', 'doge', 5, 0, 3);

-- balance inherits | schema_changed | balance: parent less
CREATE TABLE less (seq bigint);
ALTER TABLE balance INHERIT less;

-- reversal table gone | schema_changed | reversal: table
DROP TABLE reversal;

-- key table gone | schema_changed | operator_tokens: table
DROP TABLE operator_tokens;

-- schema_version gone | schema_changed | schema_version: table
DROP TABLE schema_version;

-- schema_version row gone | schema_changed | schema_version: row 3 before
DELETE FROM schema_version WHERE (number, phase) = (3, 'before');

-- schema_version: another name | schema_changed | schema_version: row 1 before
UPDATE schema_version SET name = 'x' WHERE number = 1;

-- schema_version: a row too many | schema_changed | schema_version: row 1 after
INSERT INTO schema_version VALUES (1, 'after', 'x');

-- entry unlogged | schema_changed | entry: table
ALTER TABLE coin DROP CONSTRAINT coin_listed;
ALTER TABLE entry SET UNLOGGED;

-- balance unlogged | schema_changed | balance: table
ALTER TABLE balance SET UNLOGGED;

-- ledger: options reset | schema_changed | ledger: table
ALTER TABLE ledger RESET (fillfactor);

-- trigger that refuses TRUNCATE dropped | trigger_changed | entry: trigger entry_is_never_truncated
DROP TRIGGER entry_is_never_truncated ON entry;

-- constraint that refuses TRUNCATE dropped | schema_changed | coin: constraint coin_listed
ALTER TABLE coin DROP CONSTRAINT coin_listed;

-- view journal_head dropped | schema_changed | journal_head: view
DROP VIEW journal_head;

-- view journal_head changed | schema_changed | journal_head: view
CREATE OR REPLACE VIEW journal_head AS SELECT 1::smallint AS only_row, 7::bigint AS seq, ''::bytea AS hash, 0::bigint AS booked_ms;

-- search path: another schema in front | schema_changed | balance: schema
CREATE SCHEMA other;
CREATE TABLE other.balance (LIKE balance INCLUDING ALL);
INSERT INTO other.balance SELECT * FROM balance;
ALTER DATABASE {database} SET search_path = other, public;

-- search path: before the server's own | schema_changed | search path
ALTER DATABASE {database} SET search_path = public, pg_catalog;

-- triggers ignored for all sessions | trigger_changed | session_replication_role
ALTER DATABASE {database} SET session_replication_role = replica;

-- triggers of entry hidden in the catalog | schema_changed | entry: table
UPDATE pg_class SET relhastriggers = false WHERE oid = 'entry'::regclass;

-- indexes of entry hidden in the catalog | schema_changed | entry: table
UPDATE pg_class SET relhasindex = false WHERE oid = 'entry'::regclass;

-- checks of balance hidden in the catalog | schema_changed | balance: table
UPDATE pg_class SET relchecks = 0 WHERE oid = 'balance'::regclass;

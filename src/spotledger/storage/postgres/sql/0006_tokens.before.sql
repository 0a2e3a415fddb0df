-- Operator tokens expire, may be limited to addresses, and say when they were last used. Times are ms since 1970.

-- A node of the previous version would let in a token that has expired or comes from elsewhere, so it is refused from
-- now on.
INSERT INTO schema_version (number, phase, name) VALUES (6, 'after', '0006_tokens.before.sql');

ALTER TABLE operator_tokens
    ADD COLUMN expires_ms   bigint,
    ADD COLUMN addresses    text[] NOT NULL DEFAULT '{}',  -- CIDR texts, empty for anywhere
    ADD COLUMN last_used_ms bigint;

ALTER TABLE operator_tokens ALTER COLUMN addresses DROP DEFAULT;

--! Damage to access keys, tokens and what belongs to them.
--! Each kind: its name, the code of a finding, the place that the finding names; then the statements that do it.
--! {hold} is an open hold that expires, {closed} a closed one, {last} the last entry, {reversed} an entry that was reversed.

-- access key of nobody | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET customer = 'zed';

-- access key: no secret | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET sealed_secret = '';

-- access key: no permissions | access_key_malformed | access_keys 3f0c1a52…
ALTER TABLE access_keys ALTER permissions DROP NOT NULL;
UPDATE access_keys SET permissions = NULL;

-- access key: a permission without a value | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET permissions = ARRAY['read', NULL];

-- access key: made before 1970 | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET created_ms = -1;

-- access key: revocation taken back by half | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET revoked_change = NULL, revoked_ms = 7;

-- access key: revoked by a change to come | access_key_malformed | access_keys 3f0c1a52…
UPDATE access_keys SET revoked_change = 99, revoked_ms = 7;

-- access key: dup after pk dropped | row_repeated | access_keys 3f0c1a52…
ALTER TABLE access_keys DROP CONSTRAINT access_keys_pkey;
INSERT INTO access_keys SELECT * FROM access_keys;

-- access key: expires made text | access_key_malformed | access_keys 3f0c1a52…
ALTER TABLE access_keys ALTER expires_ms TYPE text;
UPDATE access_keys SET expires_ms = 'soon';

-- token: short digest | access_key_malformed | operator_tokens tok…
ALTER TABLE operator_tokens DROP CONSTRAINT operator_tokens_digest_check;
UPDATE operator_tokens SET digest = 'x';

-- token: revocation taken back by half | access_key_malformed | operator_tokens tok…
UPDATE operator_tokens SET revoked_ms = NULL, revoked_change = 1;

-- token: an expiry before all times | access_key_malformed | operator_tokens tok…
UPDATE operator_tokens SET expires_ms = -1;

-- token: a use before all times | access_key_malformed | operator_tokens tok…
UPDATE operator_tokens SET last_used_ms = -1;

-- token: digests not unique | schema_changed | operator_tokens: constraint operator_tokens_digest_key
ALTER TABLE operator_tokens DROP CONSTRAINT operator_tokens_digest_key;

-- kept request: not json | access_key_malformed | kept_key_requests kept-1…
UPDATE kept_key_requests SET answer_json = '[';

-- key_version gone | access_key_malformed | key_version
DELETE FROM key_version;

-- key_version negative | access_key_malformed | key_version 1…
UPDATE key_version SET version = -1;

-- key_version set back | access_key_malformed | operator_tokens tok…
UPDATE operator_tokens SET revoked_ms = 7, revoked_change = 2;
UPDATE key_version SET version = 1;

-- master_key_mark twice | row_repeated | master_key_mark
ALTER TABLE master_key_mark DROP CONSTRAINT master_key_mark_id_check;
INSERT INTO master_key_mark VALUES (2, 'b', 1);

-- master_key_mark empty | access_key_malformed | master_key_mark 1…
UPDATE master_key_mark SET fingerprint = '';

-- master_key_mark gone | access_key_malformed | master_key_mark
DELETE FROM master_key_mark;

-- master_key_mark half swept | access_key_malformed | master_key_mark 1…
ALTER TABLE master_key_mark DROP CONSTRAINT master_key_mark_is_swept_check;
UPDATE master_key_mark SET is_swept = -1;

-- retired_master_keys empty | access_key_malformed | retired_master_keys …
INSERT INTO retired_master_keys VALUES ('', 7);

-- Access keys, operator tokens and what belongs to them. They are not part of the journal.
-- Times are ms since 1970.

-- One row per access key. sealed_secret is AES-256-GCM under the master key, with the access key as associated data.
CREATE TABLE IF NOT EXISTS access_keys (
    accesskey     TEXT PRIMARY KEY,
    customer      TEXT NOT NULL,
    permissions   TEXT NOT NULL CHECK (json_valid(permissions)),  -- ["read", …]
    label         TEXT NOT NULL,
    addresses     TEXT NOT NULL CHECK (json_valid(addresses)),    -- CIDR texts, [] for anywhere
    sealed_secret BLOB NOT NULL,
    created_ms    INTEGER NOT NULL,
    expires_ms    INTEGER,
    revoked_ms    INTEGER,
    last_used_ms  INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS access_keys_of_customer ON access_keys (customer, accesskey);

-- One row per operator token. digest is its SHA-256; the token itself is not stored.
CREATE TABLE IF NOT EXISTS operator_tokens (
    token_id   TEXT PRIMARY KEY,
    digest     BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    scopes     TEXT NOT NULL CHECK (json_valid(scopes)),
    label      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

-- The idempotency keys of writes about access keys and tokens. answer_json never contains a secret.
CREATE TABLE IF NOT EXISTS kept_key_requests (
    idempotency_key TEXT PRIMARY KEY,
    request_json    TEXT NOT NULL,
    answer_json     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: the fingerprint of the master key that seals the secrets. It reveals nothing about the key.
CREATE TABLE IF NOT EXISTS master_key_mark (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL
) STRICT;

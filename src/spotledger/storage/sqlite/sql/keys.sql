-- Access keys, operator tokens, and what goes with them. They are no part of the journal: no money is in them.
-- Times are ms since 1970.

-- One row an access key. sealed_secret is AES-256-GCM under the master key, with the access key as associated data.
CREATE TABLE access_keys (
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

CREATE INDEX access_keys_of_customer ON access_keys (customer, accesskey);

-- One row an operator token; digest is the SHA-256 of it, the token itself is kept nowhere.
CREATE TABLE operator_tokens (
    token_id     TEXT PRIMARY KEY,
    digest       BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    scopes       TEXT NOT NULL CHECK (json_valid(scopes)),
    label        TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER,
    addresses    TEXT NOT NULL CHECK (json_valid(addresses)),     -- CIDR texts, [] for anywhere
    revoked_ms   INTEGER,
    last_used_ms INTEGER
) STRICT, WITHOUT ROWID;

-- The idempotency keys of writes about access keys and tokens. answer_json never holds a secret.
CREATE TABLE kept_key_requests (
    idempotency_key TEXT PRIMARY KEY,
    request_json    TEXT NOT NULL,
    answer_json     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Which master key the secrets were sealed with: one row, nothing that gives the key away.
CREATE TABLE master_key_mark (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL
) STRICT;

-- Which ledger the keys are of, and the number of the last change: a file that is behind what was noted is not served.
-- Count and digest are of all rows of the other tables, so that a page that was swapped or set back shows.
CREATE TABLE keys_of (
    only_row  INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id TEXT NOT NULL,
    change    INTEGER NOT NULL,
    rows      INTEGER NOT NULL,
    digest    BLOB NOT NULL
) STRICT;

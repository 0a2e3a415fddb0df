-- Access keys, operator tokens and what belongs to them. They are not part of the journal. Times are ms since 1970.
-- Every write except that of last_used_ms locks the row of key_version first. So the writes of all nodes are serialized,
-- and revoked_change numbers the revocations in the order of their commits.

CREATE TABLE key_version (
    id      integer PRIMARY KEY CHECK (id = 1),
    version bigint NOT NULL
);
INSERT INTO key_version (id, version) VALUES (1, 0);

-- One row per access key. sealed_secret is AES-256-GCM under the master key, with the access key as associated data.
CREATE TABLE access_keys (
    accesskey      text COLLATE "C" PRIMARY KEY,
    customer       text COLLATE "C" NOT NULL,
    permissions    text[] NOT NULL,
    label          text NOT NULL,
    addresses      text[] NOT NULL,             -- CIDR texts, empty for anywhere
    sealed_secret  bytea NOT NULL,
    created_ms     bigint NOT NULL,
    expires_ms     bigint,
    revoked_ms     bigint,
    last_used_ms   bigint,
    revoked_change bigint                       -- the key_version that revoked it
);
CREATE INDEX access_keys_of_customer ON access_keys (customer, accesskey);
CREATE INDEX access_keys_revoked ON access_keys (revoked_change) WHERE revoked_change IS NOT NULL;

-- One row per operator token. digest is its SHA-256; the token itself is not stored.
CREATE TABLE operator_tokens (
    token_id       text COLLATE "C" PRIMARY KEY,
    digest         bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    scopes         text[] NOT NULL,
    label          text NOT NULL,
    created_ms     bigint NOT NULL,
    revoked_ms     bigint,
    revoked_change bigint
);
CREATE INDEX operator_tokens_revoked ON operator_tokens (revoked_change) WHERE revoked_change IS NOT NULL;

-- The idempotency keys of writes about access keys and tokens. answer_json never contains a secret.
CREATE TABLE kept_key_requests (
    idempotency_key text COLLATE "C" PRIMARY KEY,
    request_json    text NOT NULL,
    answer_json     text NOT NULL
);

-- One row, the last entry of the source, while an embedded ledger is copied into this database. No node starts then.
CREATE TABLE copy_going_on (
    only_row smallint PRIMARY KEY CHECK (only_row = 1),
    seq      bigint NOT NULL,
    hash     bytea NOT NULL
);

-- One row: the fingerprint of the master key that seals the secrets. It reveals nothing about the key.
CREATE TABLE master_key_mark (
    id          integer PRIMARY KEY CHECK (id = 1),
    fingerprint text NOT NULL
);

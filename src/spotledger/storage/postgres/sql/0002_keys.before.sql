-- Access keys, operator tokens, and what goes with them. They are no part of the journal: no money is in them.
-- Times are ms since 1970. Every write of these tables but last_used_ms locks the one row of key_version first, so
-- writes of all nodes follow one another, and revoked_change numbers the revocations in the order of their commits.

CREATE TABLE key_version (
    id      integer PRIMARY KEY CHECK (id = 1),
    version bigint NOT NULL
);
INSERT INTO key_version (id, version) VALUES (1, 0);

-- One row an access key. sealed_secret is AES-256-GCM under the master key, with the access key as associated data.
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

-- One row an operator token; digest is the SHA-256 of it, the token itself is kept nowhere.
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

-- The idempotency keys of writes about access keys and tokens. answer_json never holds a secret.
CREATE TABLE kept_key_requests (
    idempotency_key text COLLATE "C" PRIMARY KEY,
    request_json    text NOT NULL,
    answer_json     text NOT NULL
);

-- One row while an embedded ledger is being copied into this database: its last entry. No node starts meanwhile.
CREATE TABLE copy_going_on (
    only_row smallint PRIMARY KEY CHECK (only_row = 1),
    seq      bigint NOT NULL,
    hash     bytea NOT NULL
);

-- Which master key the secrets were sealed with: one row, nothing that gives the key away.
CREATE TABLE master_key_mark (
    id          integer PRIMARY KEY CHECK (id = 1),
    fingerprint text NOT NULL
);

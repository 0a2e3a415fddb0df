"""The prepared statements of the store on PostgreSQL."""

from __future__ import annotations

from typing import Final

from spotledger.storage.postgres.session import Statement, statement

SEGMENT_ENTRIES: Final = 65_536
#: How many due holds are looked up with each group.
DUE_LIMIT: Final = 500
#: How much later than it was decided a group may get the write lock.
AHEAD_LIMIT_MS: Final = 1_000
HOLD_COLUMNS: Final = (
    "hold.hold_id, hold.customer, hold.account, hold.coin, hold.amount, hold.remaining, hold.reference,"
    " hold.expires_ms, hold.opened_ms, hold.closed_seq"
)
#: The server's clock in ms since 1970 when the statement arrived, which is after the previous statement ended.
_CLOCK: Final = "floor(extract(epoch FROM statement_timestamp()) * 1000)::bigint"

# --- the beginnings and ends of transactions --------------------------------------------------------

BEGIN: Final = statement("begin", "BEGIN ISOLATION LEVEL READ COMMITTED")
BEGIN_SNAPSHOT: Final = statement("begin_snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
COMMIT: Final = statement("commit", "COMMIT")
ROLLBACK: Final = statement("rollback", "ROLLBACK")
LISTEN: Final = statement("listen", "LISTEN spotledger_head")

# --- the head, and what follows it ------------------------------------------------------------------

# The write lock of the journal. A separate statement: those after it take their snapshots once the lock is held.
LOCK: Final = statement("lock", "SELECT ledger_id FROM ledger WHERE only_row = 1 FOR UPDATE")
CLOCK: Final = statement("clock", f"SELECT {_CLOCK}")
HEAD: Final = statement(
    "head",
    "SELECT sealed.seq, last.seq, last.hash, last.body FROM sealed"
    " LEFT JOIN LATERAL (SELECT seq, hash, body FROM entry ORDER BY seq DESC LIMIT 1) AS last ON true"
    " WHERE only_row = 1",
)
SEALED: Final = statement(
    "sealed",
    "SELECT sealed.seq, sealed.hash, entry.hash, entry.body FROM sealed LEFT JOIN entry ON entry.seq = sealed.seq"
    " WHERE only_row = 1",
)
_ENTRIES: Final = "SELECT {columns} FROM entry WHERE seq > $1 ORDER BY seq LIMIT $2::bigint"
ENTRIES: Final = statement("entries", _ENTRIES.format(columns="body"))
NEW_ENTRIES: Final = statement("new_entries", _ENTRIES.format(columns="seq, hash, body"), binary_rows=True)
HASH: Final = statement("hash", "SELECT hash FROM entry WHERE seq = $1")
LEDGER: Final = statement(
    "ledger",
    "SELECT ledger_id, epoch_seq, segment_entries, body FROM ledger LEFT JOIN entry ON entry.seq = epoch_seq"
    " WHERE only_row = 1",
)
COINS: Final = statement("coins", "SELECT coin, scale FROM coin ORDER BY coin")
#: Those who owe something as of the last sealed entry.
DEBTORS: Final = statement(
    "debtors",
    "SELECT customer, account, coin, available FROM balance"
    " WHERE customer >= '@receivable:' AND customer < '@receivable;' AND available < 0",
)
#: The entries that opened house accounts, which are registered like customers.
HOUSE_ACCOUNTS: Final = statement(
    "house_accounts",
    "SELECT customer, entry.body FROM customer LEFT JOIN entry USING (seq) WHERE customer >= '@' AND customer < 'A'",
)

# --- what a group reads -------------------------------------------------------------------------------

ENTRIES_OF_KEYS: Final = statement(
    "entries_of_keys", "SELECT key_digest, seq, body FROM entry WHERE key_digest = ANY ($1::uuid[])", "b"
)
ENTRIES_OF_SEQS: Final = statement("entries_of_seqs", "SELECT seq, body FROM entry WHERE seq = ANY ($1::bigint[])")
HOLDS: Final = statement("holds", f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id = ANY ($1::bigint[])")
HOLDS_OF_KEYS: Final = statement(
    "holds_of_keys",
    f"SELECT {HOLD_COLUMNS} FROM entry JOIN hold ON hold.hold_id = entry.seq WHERE entry.key_digest = ANY ($1::uuid[])",
    "b",
)
BALANCES: Final = statement(
    "balances",
    'SELECT balance.customer, balance.account, coin, available, "freeze", seq'
    " FROM unnest($1::text[], $2::text[]) AS wanted (customer, account)"
    " JOIN balance ON balance.customer = wanted.customer AND balance.account = wanted.account",
    "bb",
)
LINES: Final = statement(
    "lines",
    'SELECT balance.customer, balance.account, balance.coin, available, "freeze", seq'
    " FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (customer, account, coin)"
    " JOIN balance ON balance.customer = wanted.customer AND balance.account = wanted.account"
    " AND balance.coin = wanted.coin",
    "bbb",
)
# The balances of those who own holds. The entry that opened a hold names its account, whether or not it is sealed.
_OF_HOLDS: Final = (
    'SELECT balance.customer, balance.account, coin, available, "freeze", seq'
    " FROM (SELECT DISTINCT body::json #>> '{{balances,0,0,0}}', body::json #>> '{{balances,0,0,1}}'"
    " FROM entry WHERE {which}) AS wanted (customer, account)"
    " JOIN balance ON balance.customer = wanted.customer AND balance.account = wanted.account"
)
BALANCES_OF_HOLDS: Final = statement("balances_of_holds", _OF_HOLDS.format(which="entry.seq = ANY ($1::bigint[])"))
BALANCES_OF_KEYS: Final = statement(
    "balances_of_keys", _OF_HOLDS.format(which="entry.key_digest = ANY ($1::uuid[])"), "b"
)
CUSTOMERS: Final = statement("customers", "SELECT customer FROM customer WHERE customer = ANY ($1::text[])", "b")
REVERSALS: Final = statement("reversals", "SELECT seq, by_seq FROM reversal WHERE seq = ANY ($1::bigint[])")
#: Those after the expiry $3 and the hold $4, in this order, because the caller knows those before.
DUE: Final = statement(
    "due",
    f"SELECT {HOLD_COLUMNS} FROM open_hold AS due JOIN hold USING (hold_id)"
    f" WHERE due.expires_ms <= coalesce($1::bigint, greatest({_CLOCK}, $5::bigint))"
    " AND (due.expires_ms, due.hold_id) > ($3::bigint, $4::bigint)"
    " ORDER BY due.expires_ms, due.hold_id LIMIT $2::bigint",
)

# Whether what was decided before the lock still stands, for `ADD_IF_IT_STANDS` and the client: the entry $1 with the
# hash $2 is the last one; the server's time is $3, or a little later; no hold is due at $4 that memory does not know;
# and no entry up to $7 has one of the idempotency keys $8. It raises no error, because the server would log one each
# time that another node was quicker.
STANDS: Final = statement(
    "stands",
    "SELECT set_config('spotledger.stands', (EXISTS (SELECT FROM entry WHERE seq = $1::bigint AND hash = $2::bytea)"
    " AND NOT EXISTS (SELECT FROM entry WHERE seq > $1::bigint)"
    f" AND coalesce({_CLOCK} BETWEEN $3::bigint AND $3::bigint + {AHEAD_LIMIT_MS}, true)"
    " AND NOT EXISTS (SELECT FROM open_hold WHERE expires_ms <= $4::bigint"
    " AND (expires_ms, hold_id) > ($5::bigint, $6::bigint))"
    " AND NOT EXISTS (SELECT FROM entry WHERE key_digest = ANY ($8::uuid[]) AND seq <= $7::bigint)"
    f")::text, true), {_CLOCK}, seq FROM sealed WHERE only_row = 1",
    "tttttttb",
)

# --- what a group writes, and what sealing derives from it ----------------------------------------------

_ADD_ENTRIES: Final = (
    "INSERT INTO entry (seq, body, hash, key_digest)"
    " SELECT $1::bigint + place, body, hash, key_digest"
    " FROM unnest($2::text[], $3::bytea[], $4::uuid[]) WITH ORDINALITY AS new (body, hash, key_digest, place)"
)
ADD_ENTRIES: Final = statement("add_entries", _ADD_ENTRIES, "tbbb")
ADD_IF_IT_STANDS: Final = statement(
    "add_if_it_stands", f"{_ADD_ENTRIES} WHERE current_setting('spotledger.stands') = 'true'", "tbbb"
)
ADD_HISTORY: Final = statement(
    "add_history",
    "INSERT INTO history (segment, customer, account, coin, seq)"
    f" SELECT (touch.seq - 1) / {SEGMENT_ENTRIES}, customer, account, coin, touch.seq"
    " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS line (customer, account, coin, seqs)"
    " CROSS JOIN LATERAL unnest(line.seqs::bigint[]) AS touch (seq)",
)
ADD_REFERENCES: Final = statement(
    "add_references",
    "INSERT INTO reference (segment, reference, seq)"
    f" SELECT (seq - 1) / {SEGMENT_ENTRIES}, reference, seq"
    " FROM unnest($1::text[], $2::bigint[]) AS new (reference, seq)",
    "bt",
)
PUT_BALANCES: Final = statement(
    "put_balances",
    'INSERT INTO balance (customer, account, coin, available, "freeze", seq)'
    " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::numeric[], $5::numeric[], $6::bigint[])"
    " ON CONFLICT (customer, account, coin) DO UPDATE"
    ' SET available = excluded.available, "freeze" = excluded."freeze", seq = excluded.seq',
)
ADD_HOLDS: Final = statement(
    "add_holds",
    "INSERT INTO hold (hold_id, customer, account, coin, amount, remaining, reference, expires_ms, opened_ms,"
    " closed_seq) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::numeric[],"
    " $6::numeric[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[])",
    "ttttttbttt",
)
# These divide by zero unless they change as many rows as they have to: the group then fails before its commit.
_COUNTED: Final = "WITH done AS ({} RETURNING 1) SELECT 1 / (count(*) = {})::integer FROM done"
CHANGE_HOLDS: Final = statement(
    "change_holds",
    _COUNTED.format(
        "UPDATE hold SET remaining = new.remaining, closed_seq = new.closed_seq"
        " FROM unnest($1::bigint[], $2::numeric[], $3::bigint[]) AS new (hold_id, remaining, closed_seq)"
        " WHERE hold.hold_id = new.hold_id",
        "cardinality($1::bigint[])",
    ),
)
ADD_OPEN_HOLDS: Final = statement(
    "add_open_holds",
    "INSERT INTO open_hold (hold_id, customer, expires_ms)"
    " SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])",
)
DROP_OPEN_HOLDS: Final = statement(
    "drop_open_holds",
    _COUNTED.format("DELETE FROM open_hold WHERE hold_id = ANY ($1::bigint[])", "cardinality($1::bigint[])"),
)
MOVE_EPOCH: Final = statement("move_epoch", "UPDATE ledger SET epoch_seq = $1 WHERE only_row = 1")
ADD_COINS: Final = statement(
    "add_coins",
    "INSERT INTO coin (coin, scale, seq) SELECT * FROM unnest($1::text[], $2::smallint[], $3::bigint[])",
    "btt",
)
ADD_CUSTOMERS: Final = statement(
    "add_customers",
    "INSERT INTO customer (customer, seq) SELECT * FROM unnest($1::text[], $2::bigint[])",
    "bt",
)
ADD_REVERSALS: Final = statement(
    "add_reversals", "INSERT INTO reversal (seq, by_seq) SELECT * FROM unnest($1::bigint[], $2::bigint[])"
)
LEASE: Final = statement("lease", "SELECT seq, hash FROM sealed WHERE only_row = 1 FOR UPDATE SKIP LOCKED")
MOVE_SEALED: Final = statement(
    "move_sealed", _COUNTED.format("UPDATE sealed SET seq = $1, hash = $2 WHERE only_row = 1", "1")
)
# Fails with 2201E, the logarithm of zero, unless a synchronous standby is connected.
STANDBY_THERE: Final = statement(
    "standby_there",
    "SELECT ln(count(*)::float8) FROM pg_stat_get_wal_senders()"
    " WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')",
)
# By itself, after the commit: in a commit it takes a lock of the whole server until a standby has it. Unsynced, because
# it is only a hint.
NOTIFY_TEXT: Final = "SELECT set_config('synchronous_commit', 'off', true), pg_notify({}, $1)"
NOTIFY: Final = statement("notify", NOTIFY_TEXT.format("'spotledger_head'"))
# Has no meaning, but makes the commit one that is synced, and with it all earlier commits.
SYNC: Final = statement("sync", "UPDATE ledger SET syncs = syncs + 1 WHERE only_row = 1")

#: Ends a session that holds the write lock and was silent for $1 seconds: its node has frozen.
END_STUCK_WRITERS: Final = statement(
    "end_stuck_writers",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND usename = current_user AND wait_event = 'ClientRead'"
    " AND xact_start IS NOT NULL AND state_change < clock_timestamp() - $1::float8 * interval '1 second'"
    " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'relation' AND relation = 'ledger'::regclass"
    " AND mode = 'RowShareLock' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
)

# --- reads -----------------------------------------------------------------------------------------------

OPEN_HOLDS_OF: Final = statement(
    "open_holds_of",
    f"SELECT {HOLD_COLUMNS} FROM open_hold AS open JOIN hold USING (hold_id)"
    " WHERE open.customer = $1 AND open.hold_id > $2 ORDER BY open.hold_id LIMIT $3::bigint",
)
HOLDS_OF: Final = statement(
    "holds_of",
    "SELECT hold.* FROM generate_series(($2::bigint) / 65536, (SELECT seq FROM sealed) / 65536) AS part (segment)"
    f" CROSS JOIN LATERAL (SELECT {HOLD_COLUMNS} FROM hold"
    " WHERE (hold_id - 1) / 65536 = part.segment AND customer = $1 AND hold_id > $2"
    " ORDER BY hold_id LIMIT $3::bigint) AS hold LIMIT $3::bigint",
)
OLD_HOLDS: Final = statement(
    "old_holds",
    f"SELECT {HOLD_COLUMNS} FROM open_hold AS open JOIN hold USING (hold_id)"
    " WHERE open.hold_id > $1 AND hold.opened_ms <= $2 ORDER BY open.hold_id LIMIT $3::bigint",
)
CUSTOMERS_AFTER: Final = statement(
    "customers_after",
    "SELECT customer FROM customer WHERE customer > $1 AND customer NOT LIKE '@%' ORDER BY customer LIMIT $2::bigint",
)
TIMES: Final = statement(
    "times", "SELECT seq, (body::json ->> 'booked_ms')::bigint FROM entry WHERE seq = ANY ($1::bigint[]) ORDER BY seq"
)
TOUCHES: Final = statement(
    "touches",
    "SELECT touch.seq FROM generate_series($3::bigint / 65536, (SELECT seq FROM sealed) / 65536) AS part (segment)"
    " CROSS JOIN LATERAL (SELECT DISTINCT seq FROM history"
    " WHERE history.segment = part.segment AND customer = ANY ($1::text[]) AND account = ANY ($5::text[])"
    " AND ($2::text IS NULL OR coin = $2) AND seq > $3 ORDER BY seq LIMIT $4::bigint) AS touch LIMIT $4::bigint",
    "btttb",
)
#: In $4 segments from that of the entry $2 on.
WITH_REFERENCE: Final = statement(
    "with_reference",
    "SELECT touch.seq FROM generate_series($2::bigint / 65536,"
    " least((SELECT seq FROM sealed) / 65536, $2::bigint / 65536 + $4::bigint - 1)) AS part (segment)"
    " CROSS JOIN LATERAL (SELECT seq FROM reference WHERE reference.segment = part.segment AND reference = $1::text"
    " AND seq > $2 ORDER BY seq LIMIT $3::bigint) AS touch LIMIT $3::bigint",
)
LAST_TOUCHES: Final = statement(
    "last_touches",
    "SELECT wanted.coin, entry.body FROM unnest($1::text[]) AS wanted (coin)"
    " CROSS JOIN LATERAL (SELECT touch.seq FROM generate_series(($4::bigint - 1) / 65536, 0, -1) AS part (segment)"
    " CROSS JOIN LATERAL (SELECT seq FROM history WHERE history.segment = part.segment AND customer = $2"
    " AND account = $3 AND coin = wanted.coin AND seq <= $4 ORDER BY seq DESC LIMIT 1) AS touch LIMIT 1) AS last"
    " JOIN entry ON entry.seq = last.seq",
    "bttt",
)

_FOLLOWED: Final = (HEAD, SEALED, NEW_ENTRIES, HASH, LEDGER, COINS, HOUSE_ACCOUNTS, DEBTORS)
WRITING: Final[tuple[Statement, ...]] = (
    *(BEGIN, COMMIT, ROLLBACK, LOCK, CLOCK, *_FOLLOWED),
    *(ENTRIES_OF_KEYS, ENTRIES_OF_SEQS, HOLDS, HOLDS_OF_KEYS, BALANCES, BALANCES_OF_HOLDS, BALANCES_OF_KEYS),
    *(CUSTOMERS, REVERSALS, DUE, STANDS, ADD_ENTRIES, ADD_IF_IT_STANDS, MOVE_EPOCH, SYNC, STANDBY_THERE),
)
READING: Final[tuple[Statement, ...]] = (
    *(BEGIN_SNAPSHOT, COMMIT, *_FOLLOWED, ENTRIES, ENTRIES_OF_KEYS, ENTRIES_OF_SEQS, HOLDS, BALANCES, CUSTOMERS),
    *(REVERSALS, OPEN_HOLDS_OF, HOLDS_OF, OLD_HOLDS, CUSTOMERS_AFTER, TIMES, TOUCHES, WITH_REFERENCE, LAST_TOUCHES),
    END_STUCK_WRITERS,
)
FOLLOWING: Final[tuple[Statement, ...]] = (BEGIN_SNAPSHOT, COMMIT, LISTEN, NOTIFY, *_FOLLOWED)
SEALING: Final[tuple[Statement, ...]] = (
    *(
        BEGIN,
        COMMIT,
        ROLLBACK,
        LEDGER,
        HEAD,
        HASH,
        LEASE,
        NEW_ENTRIES,
        LINES,
        HOLDS,
        ADD_HISTORY,
        ADD_REFERENCES,
        PUT_BALANCES,
        ADD_HOLDS,
    ),
    *(CHANGE_HOLDS, ADD_OPEN_HOLDS, DROP_OPEN_HOLDS, ADD_COINS, ADD_CUSTOMERS, ADD_REVERSALS, MOVE_SEALED),
)

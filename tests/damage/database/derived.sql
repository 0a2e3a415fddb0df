--! Damage to the tables that are derived from the journal.
--! Each kind: its name, the code of a finding, the place that the finding names; then the statements that do it.
--! {hold} is an open hold that expires, {closed} a closed one, {last} the last entry, {reversed} an entry that was reversed.

-- history: row removed | history_row_missing | history 0 @external house btc 6
DELETE FROM history WHERE seq = 6;

-- history: extra row | history_row_extra | history 0 ann spot btc 1
INSERT INTO history VALUES (0, 'ann', 'spot', 'btc', 1);

-- history: all gone | history_row_missing | history 0 ann spot btc 6
TRUNCATE history;

-- history: wrong segment | history_row_extra | history 3 ann spot btc 6
UPDATE history SET segment = 3 WHERE seq = 6;

-- history: segment -1 | history_row_extra | history -1 ann spot btc 6
UPDATE history SET segment = -1 WHERE seq = 6;

-- history: segment null | rows_beyond_journal | history
ALTER TABLE history DROP CONSTRAINT history_pkey;
ALTER TABLE history ALTER segment DROP NOT NULL;
INSERT INTO history VALUES (NULL, 'ann', 'spot', 'btc', 6);

-- history: seq null | rows_beyond_journal | history
ALTER TABLE history DROP CONSTRAINT history_pkey;
ALTER TABLE history ALTER seq DROP NOT NULL;
INSERT INTO history VALUES (0, 'ann', 'spot', 'btc', NULL);

-- history: customer null | history_row_extra | history 0 None spot btc 6
ALTER TABLE history DROP CONSTRAINT history_pkey;
ALTER TABLE history ALTER customer DROP NOT NULL;
INSERT INTO history VALUES (0, NULL, 'spot', 'btc', 6);

-- history: coin | history_row_extra | history 0 ann spot usdt 6
UPDATE history SET coin = 'usdt' WHERE seq = 6 AND customer = 'ann';

-- history: account | history_row_extra | history 0 ann fiat btc 6
UPDATE history SET account = 'fiat' WHERE seq = 6 AND customer = 'ann';

-- history: dup after pk dropped | row_repeated | history 0 ann spot btc 6
ALTER TABLE history DROP CONSTRAINT history_pkey;
INSERT INTO history SELECT * FROM history WHERE seq = 6 AND customer = 'ann';

-- history: a row of another segment, of nobody | history_row_extra | history 3 zed spot btc 6
INSERT INTO history VALUES (3, 'zed', 'spot', 'btc', 6);

-- history: segment made text | schema_changed | history: column segment
ALTER TABLE history ALTER segment TYPE text;

-- reference: row removed | reference_row_missing | reference 0 block 7 6
DELETE FROM reference WHERE seq = 6;

-- reference: extra row | reference_row_extra | reference 0 block 7 7
INSERT INTO reference VALUES (0, 'block 7', 7);

-- reference: extra row of an entry without one | reference_row_extra | reference 0 never 1
INSERT INTO reference VALUES (0, 'never', 1);

-- reference: all gone | reference_row_missing | reference 0 block 7 6
TRUNCATE reference;

-- reference: wrong segment | reference_row_extra | reference 3 block 7 6
UPDATE reference SET segment = 3 WHERE seq = 6;

-- reference: segment -1 | reference_row_extra | reference -1 block 7 6
UPDATE reference SET segment = -1 WHERE seq = 6;

-- reference: segment null | rows_beyond_journal | reference
ALTER TABLE reference DROP CONSTRAINT reference_pkey;
ALTER TABLE reference ALTER segment DROP NOT NULL;
INSERT INTO reference VALUES (NULL, 'block 7', 6);

-- reference: seq null | rows_beyond_journal | reference
ALTER TABLE reference DROP CONSTRAINT reference_pkey;
ALTER TABLE reference ALTER seq DROP NOT NULL;
INSERT INTO reference VALUES (0, 'block 7', NULL);

-- reference: text null | reference_row_extra | reference 0 None 6
ALTER TABLE reference DROP CONSTRAINT reference_pkey;
ALTER TABLE reference ALTER reference DROP NOT NULL;
INSERT INTO reference VALUES (0, NULL, 6);

-- reference: another text | reference_row_missing | reference 0 block 7 6
UPDATE reference SET reference = 'block 8' WHERE seq = 6;

-- reference: far off | rows_beyond_journal | reference
INSERT INTO reference VALUES (76, 'block 7', 5000000);

-- reference: dup after pk dropped | row_repeated | reference 0 block 7 6
ALTER TABLE reference DROP CONSTRAINT reference_pkey;
INSERT INTO reference SELECT * FROM reference WHERE seq = 6;

-- reference: segment made text | schema_changed | reference: column segment
ALTER TABLE reference ALTER segment TYPE text;

-- reference unlogged | schema_changed | reference: table
ALTER TABLE reference SET UNLOGGED;

-- balance.available+1 | balance_row_differs | balance ann spot btc
UPDATE balance SET available = available + 1 WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.available NaN | balance_row_differs | balance ann spot btc
UPDATE balance SET available = 'NaN' WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.available null | balance_row_differs | balance ann spot btc
ALTER TABLE balance ALTER available DROP NOT NULL;
UPDATE balance SET available = NULL WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.available a fraction | balance_row_differs | balance ann spot btc
ALTER TABLE balance ALTER available TYPE numeric;
UPDATE balance SET available = available + 0.5 WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.available infinite | balance_row_differs | balance ann spot btc
ALTER TABLE balance ALTER available TYPE numeric;
UPDATE balance SET available = 'Infinity' WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.freeze NaN | balance_row_differs | balance ann spot btc
UPDATE balance SET "freeze" = 'NaN' WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.freeze+1 | balance_row_differs | balance ann spot btc
UPDATE balance SET "freeze" = "freeze" + 1 WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.seq | balance_row_differs | balance ann spot btc
UPDATE balance SET seq = seq - 1 WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.coin renamed | balance_row_extra | balance ann spot doge
UPDATE balance SET coin = 'doge' WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance.account | balance_row_missing | balance ann spot btc
UPDATE balance SET account = 'fiat' WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance removed | balance_row_missing | balance ann spot btc
DELETE FROM balance WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- balance: swapped between two rows | balance_row_differs | balance ann spot btc
ALTER TABLE balance DROP CONSTRAINT balance_pkey;
UPDATE balance SET customer = CASE customer WHEN 'ann' THEN 'bob' ELSE 'ann' END WHERE customer IN ('ann', 'bob') AND
    account = 'spot' AND coin = 'btc';

-- balance: duplicate after pk dropped (true row last) | row_repeated | balance ann spot btc
ALTER TABLE balance DROP CONSTRAINT balance_pkey;
CREATE TABLE kept AS SELECT * FROM balance WHERE (customer, account, coin) = ('ann', 'spot', 'btc');
UPDATE balance SET available = 1 WHERE (customer, account, coin) = ('ann', 'spot', 'btc');
INSERT INTO balance SELECT * FROM kept;

-- balance: customer null | balance_row_extra | balance None spot btc
ALTER TABLE balance DROP CONSTRAINT balance_pkey;
ALTER TABLE balance ALTER customer DROP NOT NULL;
UPDATE balance SET customer = NULL WHERE (customer, account, coin) = ('ann', 'spot', 'btc');

-- hold.amount | hold_row_differs | hold {hold}
UPDATE hold SET amount = amount + 1 WHERE hold_id = {hold};

-- hold.amount NaN | hold_row_differs | hold {hold}
UPDATE hold SET amount = 'NaN' WHERE hold_id = {hold};

-- hold.amount null | hold_row_differs | hold {hold}
ALTER TABLE hold ALTER amount DROP NOT NULL;
UPDATE hold SET amount = NULL WHERE hold_id = {hold};

-- hold.remaining | hold_row_differs | hold {hold}
UPDATE hold SET remaining = remaining + 1 WHERE hold_id = {hold};

-- hold.remaining NaN | hold_row_differs | hold {hold}
UPDATE hold SET remaining = 'NaN' WHERE hold_id = {hold};

-- hold.reference | hold_row_differs | hold {hold}
UPDATE hold SET reference = 'x' WHERE hold_id = {hold};

-- hold.reference null | hold_row_differs | hold {closed}
UPDATE hold SET reference = NULL WHERE hold_id = {closed};

-- hold.expires | hold_row_differs | hold {hold}
UPDATE hold SET expires_ms = expires_ms + 1 WHERE hold_id = {hold};

-- hold.opened_ms | hold_row_differs | hold {hold}
UPDATE hold SET opened_ms = opened_ms + 1 WHERE hold_id = {hold};

-- hold.closed_seq | hold_row_differs | hold {closed}
UPDATE hold SET closed_seq = closed_seq - 1 WHERE hold_id = {closed};

-- hold.closed_seq null | hold_row_differs | hold {closed}
ALTER TABLE hold DROP CONSTRAINT hold_check;
UPDATE hold SET closed_seq = NULL WHERE hold_id = {closed};

-- hold.closed while open | hold_row_missing | hold {hold}
ALTER TABLE hold DROP CONSTRAINT hold_check;
UPDATE hold SET closed_seq = {last} WHERE hold_id = {hold};

-- hold.customer | hold_row_differs | hold {hold}
UPDATE hold SET customer = 'bob' WHERE hold_id = {hold};

-- hold.coin | hold_row_differs | hold {hold}
UPDATE hold SET coin = 'usdt' WHERE hold_id = {hold};

-- hold.account | hold_row_differs | hold {hold}
UPDATE hold SET account = 'fiat' WHERE hold_id = {hold};

-- hold removed | hold_row_missing | hold {hold}
DELETE FROM hold WHERE hold_id = {hold};

-- hold id 0 | rows_beyond_journal | hold
UPDATE hold SET hold_id = 0 WHERE hold_id = {hold};

-- hold id null | rows_beyond_journal | hold
ALTER TABLE hold DROP CONSTRAINT hold_pkey;
ALTER TABLE hold ALTER hold_id DROP NOT NULL;
UPDATE hold SET hold_id = NULL WHERE hold_id = {hold};

-- hold: dup after pk dropped | row_repeated | hold {hold}
ALTER TABLE hold DROP CONSTRAINT hold_pkey;
INSERT INTO hold SELECT * FROM hold WHERE hold_id = {hold};

-- open_hold gone | hold_owner_row_missing | open_hold {hold}
DELETE FROM open_hold WHERE hold_id = {hold};

-- open_hold extra | hold_owner_row_extra | open_hold {closed}
INSERT INTO open_hold VALUES ({closed}, 'ann', NULL);

-- open_hold.customer | hold_row_differs | open_hold {hold}
UPDATE open_hold SET customer = 'bob' WHERE hold_id = {hold};

-- open_hold.expires null | hold_row_differs | open_hold {hold}
UPDATE open_hold SET expires_ms = NULL WHERE hold_id = {hold};

-- open_hold.expires set | hold_row_differs | open_hold {hold}
UPDATE open_hold SET expires_ms = 5 WHERE hold_id = {hold};

-- open_hold: dup after pk dropped | row_repeated | open_hold {hold}
ALTER TABLE open_hold DROP CONSTRAINT open_hold_pkey;
INSERT INTO open_hold SELECT * FROM open_hold WHERE hold_id = {hold};

-- open_hold: id null | hold_owner_row_extra | open_hold None
ALTER TABLE open_hold DROP CONSTRAINT open_hold_pkey;
ALTER TABLE open_hold ALTER hold_id DROP NOT NULL;
INSERT INTO open_hold VALUES (NULL, 'ann', NULL);

-- coin.scale | coin_row_differs | coin btc
UPDATE coin SET scale = 9 WHERE coin = 'btc';

-- coin.scale null | coin_row_differs | coin btc
ALTER TABLE coin ALTER scale DROP NOT NULL;
UPDATE coin SET scale = NULL WHERE coin = 'btc';

-- coin.seq | coin_row_differs | coin btc
UPDATE coin SET seq = 9 WHERE coin = 'btc';

-- coin gone | coin_row_missing | coin btc
DELETE FROM coin WHERE coin = 'btc';

-- coin extra | coin_row_extra | coin doge
INSERT INTO coin VALUES ('doge', 8, 1);

-- coin dup after pk dropped | row_repeated | coin btc
ALTER TABLE coin DROP CONSTRAINT coin_pkey;
INSERT INTO coin SELECT * FROM coin WHERE coin = 'btc';

-- customer gone | customer_row_missing | customer ann
DELETE FROM customer WHERE customer = 'ann';

-- customer.seq | customer_row_differs | customer ann
UPDATE customer SET seq = 9 WHERE customer = 'ann';

-- customer.seq null | customer_row_differs | customer ann
ALTER TABLE customer ALTER seq DROP NOT NULL;
UPDATE customer SET seq = NULL WHERE customer = 'ann';

-- customer extra | customer_row_extra | customer zed
INSERT INTO customer VALUES ('zed', 2);

-- customer dup after pk dropped | row_repeated | customer ann
ALTER TABLE customer DROP CONSTRAINT customer_pkey;
INSERT INTO customer SELECT * FROM customer WHERE customer = 'ann';

-- reversal.by | reversal_row_differs | reversal {reversed}
UPDATE reversal SET by_seq = by_seq + 1 WHERE seq = {reversed};

-- reversal gone | reversal_row_missing | reversal {reversed}
DELETE FROM reversal WHERE seq = {reversed};

-- reversal extra | reversal_row_extra | reversal 1
INSERT INTO reversal VALUES (1, 2);

-- reversal dup after pk dropped | row_repeated | reversal {reversed}
ALTER TABLE reversal DROP CONSTRAINT reversal_pkey;
INSERT INTO reversal SELECT * FROM reversal WHERE seq = {reversed};

-- history.seq: the least number | rows_beyond_journal | history
UPDATE history SET seq = -9223372036854775808 WHERE seq = 6 AND customer = 'ann';

-- balance: a customer with an enormous name | balance_row_extra | {long}
ALTER TABLE balance DROP CONSTRAINT balance_pkey;
INSERT INTO balance VALUES (repeat('x', 1000000), 'spot', 'btc', 0, 0, 1);

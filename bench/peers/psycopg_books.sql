-- The books of an exchange in rows, and one function that does an operation in a single call.

CREATE TABLE plain_balance (
    customer text NOT NULL, coin text NOT NULL, available numeric(38) NOT NULL, frozen numeric(38) NOT NULL,
    PRIMARY KEY (customer, coin)
);
CREATE TABLE plain_entry (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL UNIQUE, request jsonb NOT NULL,
    refusal text, booked timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE plain_hold (
    key text PRIMARY KEY, customer text NOT NULL, coin text NOT NULL, amount numeric(38) NOT NULL,
    remaining numeric(38) NOT NULL
);
CREATE TABLE plain_posting (
    entry_id bigint NOT NULL REFERENCES plain_entry, customer text NOT NULL, coin text NOT NULL, side text NOT NULL,
    units numeric(38) NOT NULL, after numeric(38) NOT NULL
);
CREATE INDEX plain_posting_entry ON plain_posting (entry_id);
CREATE INDEX plain_posting_balance ON plain_posting (customer, coin, entry_id);

CREATE FUNCTION plain_post(entry_id bigint, who text, what text, side text, units numeric) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    after numeric;
BEGIN
    IF units = 0 THEN
        RETURN;
    END IF;
    INSERT INTO plain_balance AS b VALUES (who, what, CASE side WHEN 'available' THEN units ELSE 0 END,
                                           CASE side WHEN 'frozen' THEN units ELSE 0 END)
    ON CONFLICT (customer, coin) DO UPDATE SET available = b.available + excluded.available,
                                               frozen = b.frozen + excluded.frozen
    RETURNING CASE side WHEN 'available' THEN available ELSE frozen END INTO after;
    IF after < 0 AND who NOT LIKE '@%' THEN
        RAISE EXCEPTION 'insufficient' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO plain_posting VALUES (entry_id, who, what, side, units, after);
END
$$;

CREATE FUNCTION plain_do(request jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    made bigint;
    op text := request ->> 'op';
    units numeric := request ->> 'units';
    buy plain_hold;
    sell plain_hold;
    one plain_hold;
    base_units numeric := request ->> 'base_units';
    quote_units numeric := request ->> 'quote_units';
    base_fee numeric := request ->> 'base_fee';
    quote_fee numeric := request ->> 'quote_fee';
    line record;
BEGIN
    INSERT INTO plain_entry (key, request) VALUES (request ->> 'key', request)
    ON CONFLICT (key) DO NOTHING RETURNING id INTO made;
    IF made IS NULL THEN
        SELECT id INTO made FROM plain_entry WHERE key = request ->> 'key';
        RETURN made;
    END IF;
    BEGIN
        IF op = 'freeze' THEN
            PERFORM plain_post(made, request ->> 'customer', request ->> 'coin', 'available', -units);
            PERFORM plain_post(made, request ->> 'customer', request ->> 'coin', 'frozen', units);
            INSERT INTO plain_hold VALUES (request ->> 'key', request ->> 'customer', request ->> 'coin', units, units);
        ELSIF op = 'unfreeze' THEN
            SELECT * INTO one FROM plain_hold WHERE key = request ->> 'hold' FOR UPDATE;
            UPDATE plain_hold SET remaining = 0 WHERE key = one.key;
            PERFORM plain_post(made, one.customer, one.coin, 'frozen', -one.remaining);
            PERFORM plain_post(made, one.customer, one.coin, 'available', one.remaining);
        ELSIF op = 'settle' THEN
            SELECT * INTO buy FROM plain_hold WHERE key = request ->> 'buyer' FOR UPDATE;
            SELECT * INTO sell FROM plain_hold WHERE key = request ->> 'seller' FOR UPDATE;
            UPDATE plain_hold SET remaining = remaining - quote_units WHERE key = buy.key;
            UPDATE plain_hold SET remaining = remaining - base_units WHERE key = sell.key;
            -- In one order for all, so that no two wait for each other: a deadlock costs both a second. The rows that
            -- everybody wants come last, so that they are held for the shortest time.
            FOR line IN
                SELECT * FROM (VALUES
                    (buy.customer, buy.coin, 'frozen', -quote_units),
                    (sell.customer, sell.coin, 'frozen', -base_units),
                    (buy.customer, sell.coin, 'available', base_units - base_fee),
                    (sell.customer, buy.coin, 'available', quote_units - quote_fee),
                    ('@fees', sell.coin, 'available', base_fee),
                    ('@fees', buy.coin, 'available', quote_fee)
                ) AS lines (who, what, side, units)
                ORDER BY starts_with(who, '@'), who, what
            LOOP
                PERFORM plain_post(made, line.who, line.what, line.side, line.units);
            END LOOP;
        ELSE
            IF op = 'withdraw' THEN
                units := -units;
            END IF;
            PERFORM plain_post(made, request ->> 'customer', request ->> 'coin', 'available', units);
            PERFORM plain_post(made, '@external', request ->> 'coin', 'available', -units);
        END IF;
    EXCEPTION WHEN check_violation THEN
        UPDATE plain_entry SET refusal = 'insufficient' WHERE id = made;
    END;
    RETURN made;
END
$$;

"""
The books of an exchange with plain psycopg: statement after statement, or one call of a plpgsql function.

Called as: python psycopg_books.py DATABASE_URL WORK.jsonl SECONDS CONNECTIONS statements|function; a process for each
connection. Prints one line of JSON. The tables are in psycopg_books.sql. Statements are prepared by the driver; a
deadlock is tried again.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import psycopg
from psycopg.errors import DeadlockDetected

POST = """INSERT INTO plain_balance AS b VALUES (%(who)s, %(what)s, %(available)s, %(frozen)s)
    ON CONFLICT (customer, coin) DO UPDATE SET available = b.available + excluded.available,
    frozen = b.frozen + excluded.frozen RETURNING available, frozen"""


class Refused(Exception):
    """The operation does nothing; the reason is kept with the key."""


def do_function(connection, request):
    """Do *request* with one call."""
    connection.execute("SELECT plain_do(%s::jsonb)", [json.dumps(request)], prepare=True)


def do_statements(connection, request):
    """Do *request* with one statement after the other, in one transaction."""
    with connection.transaction():
        made = connection.execute(
            "INSERT INTO plain_entry (key, request) VALUES (%s, %s) ON CONFLICT (key) DO NOTHING RETURNING id",
            [request["key"], json.dumps(request)],
        ).fetchone()
        if made is None:
            connection.execute("SELECT id FROM plain_entry WHERE key = %s", [request["key"]]).fetchone()
            return
        try:
            with connection.transaction() if request["op"] in ("freeze", "withdraw") else nothing():
                change(connection, made[0], request)
        except Refused:
            connection.execute("UPDATE plain_entry SET refusal = 'insufficient' WHERE id = %s", made)


class nothing:
    """No savepoint: what is done here cannot be refused."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def change(connection, entry, request):
    """Change holds and balances as *request* says, and write the postings."""
    op, customer, coin, units = (request.get(name) for name in ("op", "customer", "coin", "units"))
    if op == "freeze":
        post(connection, entry, customer, coin, "available", -units)
        post(connection, entry, customer, coin, "frozen", units)
        connection.execute(
            "INSERT INTO plain_hold VALUES (%s, %s, %s, %s, %s)", [request["key"], customer, coin, units, units]
        )
    elif op == "unfreeze":
        customer, coin, remaining = hold(connection, request["hold"])
        connection.execute("UPDATE plain_hold SET remaining = 0 WHERE key = %s", [request["hold"]])
        post(connection, entry, customer, coin, "frozen", -remaining)
        post(connection, entry, customer, coin, "available", remaining)
    elif op == "settle":
        settle(connection, entry, request)
    else:
        units = -units if op == "withdraw" else units
        post(connection, entry, customer, coin, "available", units)
        post(connection, entry, "@external", coin, "available", -units)


def settle(connection, entry, request):
    """
    Settle one fill: balances in one order for all, so that no two settlements wait for each other, which costs both of
    them a second; the rows of the fees, which everybody wants, come last.
    """
    base, quote, base_fee, quote_fee = (request[n] for n in ("base_units", "quote_units", "base_fee", "quote_fee"))
    buyer, buyer_coin, _ = hold(connection, request["buyer"])
    seller, seller_coin, _ = hold(connection, request["seller"])
    for key, units in ((request["buyer"], quote), (request["seller"], base)):
        connection.execute("UPDATE plain_hold SET remaining = remaining - %s WHERE key = %s", [units, key])
    lines = [
        (buyer, buyer_coin, "frozen", -quote),
        (seller, seller_coin, "frozen", -base),
        (buyer, seller_coin, "available", base - base_fee),
        (seller, buyer_coin, "available", quote - quote_fee),
        ("@fees", seller_coin, "available", base_fee),
        ("@fees", buyer_coin, "available", quote_fee),
    ]
    for line in sorted(lines, key=lambda line: (line[0].startswith("@"), line)):
        post(connection, entry, *line)


def hold(connection, key):
    """Lock and return a hold."""
    return connection.execute(
        "SELECT customer, coin, remaining FROM plain_hold WHERE key = %s FOR UPDATE", [key]
    ).fetchone()


def post(connection, entry, who, what, side, units):
    """Change one side of a balance and write the posting."""
    if not units:
        return
    values = {"who": who, "what": what, "available": 0, "frozen": 0, side: units}
    after = connection.execute(POST, values).fetchone()[side == "frozen"]
    if after < 0 and not who.startswith("@"):
        raise Refused
    connection.execute(
        "INSERT INTO plain_posting VALUES (%s, %s, %s, %s, %s, %s)", [entry, who, what, side, units, after]
    )


def connect(url):
    """Connect in autocommit; the server says yes to a commit when it is on the disk."""
    return psycopg.connect(url, autocommit=True, prepare_threshold=2)


def prepare(url, pairs, units, holds):
    """Make tables, balances, and the holds that were opened before."""
    with connect(url) as connection, connection.cursor() as cursor:
        if cursor.execute("SELECT to_regclass('plain_entry')").fetchone()[0] is None:
            cursor.execute(Path(__file__).with_name("psycopg_books.sql").read_text(encoding="utf-8"))
        cursor.execute("TRUNCATE plain_posting, plain_hold, plain_entry, plain_balance")
        with cursor.copy("COPY plain_balance FROM STDIN") as copy:
            for customer, coin in pairs:
                copy.write_row((customer, coin, units, units))
        with cursor.copy("COPY plain_hold FROM STDIN") as copy:
            for each in holds:
                copy.write_row((each["key"], each["customer"], each["coin"], each["units"], each["units"]))


def work(url, requests, seconds, how, barrier, results):
    """Do *requests* until the time is over."""
    do = {"statements": do_statements, "function": do_function}[how]
    with connect(url) as connection:
        barrier.wait()
        done, processor, started = 0, time.process_time(), time.perf_counter()
        for request in requests:
            while True:
                try:
                    do(connection, request)
                    break
                except DeadlockDetected:
                    continue
            done += 1
            if time.perf_counter() - started > seconds:
                break
        results.put((done, time.perf_counter() - started, time.process_time() - processor))


def main() -> None:
    """Prepare, then do the work on so many connections; print what came of it."""
    url, path, seconds, connections, how = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    with Path(path).open(encoding="utf-8") as lines:
        first, *requests = [json.loads(line) for line in lines]
    prepare(url, first["pairs"], first["units"], first["holds"])
    barrier, results = multiprocessing.Barrier(connections), multiprocessing.Queue()
    workers = [
        multiprocessing.Process(
            target=work, daemon=True, args=(url, requests[n::connections], seconds, how, barrier, results)
        )
        for n in range(connections)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=seconds + 20) for _ in workers]
    for worker in workers:
        worker.join()
    done = sum(each[0] for each in found)
    rate = sum(each[0] / each[1] for each in found)
    print(json.dumps({"operations": done, "rate": rate, "processor_us": sum(each[2] for each in found) / done * 1e6}))


if __name__ == "__main__":
    main()

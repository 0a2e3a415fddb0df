"""
The account after a drill: the journal, read by an independent reader; the product's own audit; what the nodes answer.

Nothing here reads a table that is derived from the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal

import psycopg

import support_service
from fleet.nodes import Node, balance
from support_books import Books, check_holds, read_journal

AUDIT_SECONDS = 120


def read_books(url: str) -> Books:
    """Read the journal in the database at *url*, assert what is promised of it, and return what it adds up to."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        [(ledger_id,)] = connection.execute("SELECT ledger_id FROM ledger").fetchall()
        rows = connection.execute("SELECT seq, body, hash FROM entry ORDER BY seq").fetchall()
        [head] = connection.execute("SELECT seq, hash, booked_ms FROM journal_head").fetchall()
    books = read_journal(ledger_id, rows, head)
    check_holds(books)
    return books


def last_entry(url: str) -> int:
    """Return the number of the last entry in the database at *url*."""
    with psycopg.connect(url) as connection:
        [(seq,)] = connection.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchall()
    return int(seq)


def booked_ms(url: str) -> int:
    """Return when the last entry in the database at *url* was booked, in ms since 1970."""
    with psycopg.connect(url) as connection:
        [(body,)] = connection.execute("SELECT body FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
    return int(json.loads(body)["booked_ms"])


def audit(url: str) -> None:
    """Have the product audit the database at *url*, and assert that it is clean."""
    environment = support_service.environment(SPOTLEDGER_DATABASE=url)
    done = support_service.run("audit", "--json", env=environment, timeout=AUDIT_SECONDS)
    assert done.returncode == 0, f"the audit is not clean: {done.stdout}{done.stderr}"
    assert json.loads(done.stdout)["verdict"] == "clean"


def check_answers(nodes: Iterable[Node], token: str, books: Books, customers: Iterable[str]) -> None:
    """Assert that each of *nodes* that is ready answers with the balances of *books*, which has the last entry."""
    names = list(customers)
    for node in nodes:
        if node.process is None or not node.is_ready():
            continue
        for name in names:
            told = {
                coin: [int(Decimal(sides[side]).scaleb(books.coins[coin])) for side in ("available", "freeze")]
                for coin, sides in balance(node, token, name, min_seq=books.head)["balances"].items()
            }
            expected = {coin: books.balances.get((name, "spot", coin), [0, 0]) for coin in told}
            assert told == expected, f"{node.name} answers for {name} other than the journal adds up to"

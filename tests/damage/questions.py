"""All that a ledger can be asked, and 300 further operations; each answer is text, so that two can be compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from spotledger.domain.accounts import ACCOUNT_IDS, DUST, EXTERNAL, FEES, Account, receivable_of
from spotledger.domain.operations import (
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.ledger.finding import Criteria
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import Tokens
from support_core import Clock

CIPHER = Cipher(b"0123456789abcdef" * 2)
FURTHER_OPERATIONS = 300
#: Operations in one group.
GROUP = 12

Question = tuple[str, Callable[[], Any]]


@dataclass(frozen=True)
class Known:
    """What an undamaged ledger has: the names to ask for."""

    head: int
    keys: tuple[str, ...]
    references: tuple[str, ...]
    customers: tuple[str, ...]
    holds: tuple[int, ...]
    reversible: tuple[int, ...]
    accesskeys: tuple[str, ...]
    tokens: tuple[tuple[str, bytes], ...]


def known_of(ledger: Ledger) -> Known:
    """Return the names in an undamaged ledger."""
    entries = ledger.entries(0, 10_000)
    return Known(
        ledger.head.seq,
        tuple(entry.key for entry in entries if not entry.key.startswith(" ")),  # the ledger's own cannot be sent
        tuple(sorted({entry.request["reference"] for entry in entries if entry.request.get("reference")})),
        tuple(ledger.customers()),
        tuple(entry.seq for entry in entries if entry.kind == "freeze" and entry.refusal is None),
        tuple(
            entry.seq for entry in entries if entry.kind in ("deposit", "withdraw", "transfer") and not entry.refusal
        ),
        tuple(record.accesskey for record in ledger.key_tables.access_keys.list(None, "", 10_000)),
        tuple((record.token_id, record.digest) for record in ledger.key_tables.tokens.list("", 10_000)),
    )


# --- reads ----------------------------------------------------------------------------------------------


def questions(ledger: Ledger, known: Known, clock: Clock) -> Iterator[Question]:
    """Give every question with its name; the same ones for each ledger that began as the same files."""
    yield "head", lambda: ledger.head
    yield "coins", lambda: ledger.coins
    yield "trial balance", ledger.trial_balance
    yield "old holds", lambda: ledger.old_holds(clock.now_ms)
    for start in range(0, known.head, 50):
        yield f"entries after {start}", partial(ledger.entries, start, 50)
    for key in (*known.keys, "never-used", "in:nobody"):
        yield f"key {key}", partial(_seq_of_key, ledger, key)
    for reference in (*known.references, "never-used"):
        yield f"reference {reference}", partial(_seqs_of_reference, ledger, reference)
    for seq in range(1, known.head + 1, 5):
        yield f"entry {seq}", partial(ledger.entry, seq)
        yield f"reversal of {seq}", partial(ledger.reversal_of, seq)
    for hold in (*known.holds, 1, 2, known.head):
        yield f"hold {hold}", partial(ledger.hold, hold)
    yield "customers", ledger.customers
    for after in ("customer-05", "idle-033", "idle-080"):
        yield f"customers after {after}", partial(ledger.customers, after, 7)
    for customer in known.customers:
        yield f"has {customer}", partial(ledger.has_customer, customer)
    for customer in (*(name for name in known.customers if not name.startswith("idle")), "idle-077", "nobody"):
        yield from _questions_of(ledger, customer, known.head)
    for house in (EXTERNAL, FEES, DUST):
        yield f"{house}", partial(ledger.balances, house)
        yield f"{house} early", partial(ledger.balances, house, at_seq=known.head // 3)
    for time_ms in range(clock.now_ms - 4_000, clock.now_ms, 400):
        yield f"entry at {time_ms}", partial(ledger.seq_at, time_ms)
    yield from _questions_of_keys(ledger, known, clock)


def _seq_of_key(ledger: Ledger, key: str) -> int | None:
    entry = ledger.entry_of_key(key)
    return None if entry is None else entry.seq


def _seqs_of_reference(ledger: Ledger, reference: str) -> list[int]:
    return [entry.seq for entry in ledger.find(Criteria(reference=reference)).entries]


def _questions_of(ledger: Ledger, customer: str, head: int) -> Iterator[Question]:
    yield f"has {customer}", partial(ledger.has_customer, customer)
    for kind in ACCOUNT_IDS:
        account = Account(customer, kind)
        yield f"{customer} {kind}", partial(ledger.balances, account)
        yield (
            f"{customer} {kind} viewed",
            lambda account=account: dict(sorted(ledger.account(account).balances.items())),
        )
    for seq in range(3, head + 1, head // 4):
        yield f"{customer} at {seq}", partial(ledger.balances, Account(customer, "spot"), at_seq=seq)
    yield f"owed by {customer}", partial(ledger.balances, receivable_of(customer))
    for state in ("open", "closed"):
        yield f"{state} holds of {customer}", partial(ledger.holds, customer, state)
    yield f"statement of {customer}", lambda: [entry.seq for entry in ledger.statement(customer)]
    yield f"btc statement of {customer}", lambda: [entry.seq for entry in ledger.statement(customer, "btc", 40, 20)]


def _questions_of_keys(ledger: Ledger, known: Known, clock: Clock) -> Iterator[Question]:
    tables = ledger.key_tables
    ring, tokens = KeyRing(tables.access_keys, CIPHER, clock), Tokens(tables.tokens, clock)
    yield "access keys", lambda: [(record, record.accesskey, record.sealed_secret) for record in ring.list()]
    for accesskey in (*known.accesskeys, "00000000-0000-4000-8000-000000000000"):
        yield f"access key {accesskey}", partial(_ready, ring, accesskey)
    for customer in (*known.customers[2:26:7], "nobody"):
        yield f"access keys of {customer}", partial(ring.list, customer)
    yield "tokens", lambda: [(record, record.digest) for record in tokens.list()]
    for token_id, digest in known.tokens:
        yield f"token {token_id}", partial(tables.tokens.get, token_id)
        yield f"token {digest.hex()}", partial(tables.tokens.by_digest, digest)
    yield "no token", lambda: tables.tokens.by_digest(bytes(32))
    for key in ("kept", "late:kept", "never-kept"):
        yield f"kept {key}", partial(tables.kept_requests.get, key)
    yield "master key", lambda: tables.master_key_fingerprint


def _ready(ring: KeyRing, accesskey: str) -> object:
    ready = ring.ready(accesskey)
    if ready is None:
        return None
    signature = ready.secret.sign(b"accesskey&nonce")
    return ready.customer, ready.revoked, ready.dead_from_ms, sorted(ready.permissions), ready.networks, signature


# --- further operations -----------------------------------------------------------------------------------


def groups_of(known: Known) -> list[list[Operation]]:
    """Return 300 operations in groups: repeats, conflicts, and every kind of new ones on what is there."""
    chance = random.Random("further operations")
    operations = [_operation(chance, known, number) for number in range(FURTHER_OPERATIONS)]
    return [operations[start : start + GROUP] for start in range(0, FURTHER_OPERATIONS, GROUP)]


def _operation(chance: random.Random, known: Known, number: int) -> Operation:
    key, (customer, other) = f"further:{number}", chance.sample(known.customers, 2)
    hold = str(chance.choice(known.holds))
    amount = chance.choice(("0.25", "1", "3", "1000000"))
    seller = SettleSide(hold, None, None)
    makers: tuple[Callable[[], Operation], ...] = (
        lambda: Deposit(chance.choice(known.keys), customer, "btc", "10"),  # a known key: repeated, or a conflict
        lambda: Deposit(chance.choice(known.keys), known.customers[3], "btc", "10"),
        lambda: Deposit(f"in:{customer[:12]}", customer, "btc", "10"),
        lambda: Freeze(f"hold:{customer[:12]}", customer, "btc", "3", reference="another order"),
        lambda: Deposit(key, customer, chance.choice(("btc", "usdt", "none")), amount),
        lambda: Freeze(key, customer, "btc", amount, reference=key),
        lambda: Unfreeze(key, hold, chance.choice((None, amount))),
        lambda: Unfreeze(
            key, HoldKey(chance.choice((f"hold:{customer[:12]}", f"late:hold:{customer[:12]}", "f4"))), "0.1"
        ),
        lambda: Withdraw(key, amount, hold=hold),
        lambda: Withdraw(key, amount, customer, "btc"),
        lambda: Transfer(key, customer, other, "btc", amount),
        lambda: Reverse(key, chance.choice(known.reversible), "a test"),
        lambda: RegisterCustomer(key, chance.choice((customer, f"new-{number}"))),
        lambda: Settle(key, "btc", "usdt", "0.1", "1", SettleSide(HoldKey("f2"), CoinAmount("btc", "0.01")), seller),
    )
    return chance.choice(makers)()


def said(outcomes: list[Outcome]) -> list[object]:
    """Return what a caller is told of *outcomes*."""
    return [_said(outcome) for outcome in outcomes]


def _said(outcome: Outcome) -> object:
    if isinstance(outcome, Receipt):
        return outcome.seq, outcome.hold, outcome.replayed, outcome.entry
    return outcome.code, outcome.message, outcome.seq, sorted(outcome.details.items())

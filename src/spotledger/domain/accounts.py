"""Who owns what: customers, their accounts, the house's accounts, coins and balances."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from spotledger.domain.amounts import MAX_SCALE, shown
from spotledger.errors import InvalidRequest

#: The three accounts of a customer and their numbers on the wire.
ACCOUNT_IDS: Final = {"wallet": 1, "spot": 2, "fiat": 3}
HOUSE_KIND: Final = "house"

#: The whole text of a customer id, of a coin symbol, and of the name of a customer's account.
CUSTOMER_PATTERN: Final = r"(?!\.\.?(?:\n|\Z))[A-Za-z0-9._-]{1,64}"
COIN_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,31}"
ACCOUNT_PATTERN: Final = "|".join(ACCOUNT_IDS)

_CUSTOMER = re.compile(rf"\A{CUSTOMER_PATTERN}\Z")
_COIN = re.compile(rf"\A{COIN_PATTERN}\Z")


class Account(NamedTuple):
    """One customer's ``wallet``, ``spot`` or ``fiat`` account, or a ``house`` account such as ``@external``."""

    customer: str
    kind: str


class Coin(NamedTuple):
    """A listed coin: its symbol in lower case and its decimal places (10**scale units are one coin)."""

    name: str
    scale: int


class Balance(NamedTuple):
    """The two sides of a balance, in units. The total is derived, never stored."""

    available: int
    freeze: int


ZERO: Final = Balance(0, 0)
#: The outside world. Its balance is at or below zero: what came in is owed to it.
EXTERNAL: Final = Account("@external", HOUSE_KIND)
FEES: Final = Account("@fees", HOUSE_KIND)
DUST: Final = Account("@dust", HOUSE_KIND)
RECEIVABLE: Final = "@receivable"


def receivable_of(customer: str) -> Account:
    """Return the house account of what *customer* owes; its balances are at or below zero."""
    return Account(f"{RECEIVABLE}:{customer}", HOUSE_KIND)


def accounts_about(owner: str) -> tuple[Account, ...]:
    """Return the accounts of *owner*: a house account; or the three of a customer, and that of what they owe."""
    if is_house_name(owner):
        return (Account(owner, HOUSE_KIND),)
    return (*(Account(owner, kind) for kind in ACCOUNT_IDS), receivable_of(owner))


def may_be_negative(account: Account) -> bool:
    """Return whether *account* may be below zero: the outside world and what customers owe may."""
    return account.kind == HOUSE_KIND and (account == EXTERNAL or account.customer.startswith(RECEIVABLE))


def is_house_name(owner: str) -> bool:
    """Say whether *owner* is the name of a house account, and no customer id."""
    return owner.startswith("@")


def check_customer(text: object, field: str = "customer") -> str:
    """Return *text* if it is a valid customer id: 1–64 of ``A-Z a-z 0-9 . _ -``, not ``.`` or ``..``."""
    if isinstance(text, str) and _CUSTOMER.match(text):
        return text
    allowed = "1 to 64 of A-Z a-z 0-9 . _ -, but not '.' or '..',"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_coin(text: object, field: str = "coin") -> str:
    """Return *text* if it is a valid coin symbol: 1–32 of ``a-z 0-9 . _ -``, first a letter or a digit."""
    if isinstance(text, str) and _COIN.match(text):
        return text
    allowed = "1 to 32 of a-z 0-9 . _ -, first a letter or a digit,"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_scale(value: object, field: str = "scale") -> int:
    """Return *value* if it is a valid scale: a whole number from 0 to 24."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SCALE:
        return value
    raise InvalidRequest(f"{field} is {shown(value)}; a whole number from 0 to {MAX_SCALE} would pass", field=field)


def check_account_kind(text: object, field: str = "account") -> str:
    """Return *text* if it names one of a customer's three accounts: ``wallet``, ``spot`` or ``fiat``."""
    if isinstance(text, str) and text in ACCOUNT_IDS:
        return text
    raise InvalidRequest(f"{field} is {shown(text)}; wallet, spot or fiat would pass", field=field)

"""Who owns what: customers, their accounts, the house's accounts, coins and balances."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from spotledger.domain.amounts import MAX_SCALE, shown
from spotledger.errors import HouseAccountReserved, InvalidRequest

#: The three accounts of a customer and their numbers on the wire.
ACCOUNT_IDS: Final = {"wallet": 1, "spot": 2, "fiat": 3}
HOUSE_KIND: Final = "house"

#: The whole text of a customer id, of a coin symbol, of the name of a customer's account, and of a house account's name
#: as it is opened; everywhere else ``@`` precedes the latter.
CUSTOMER_PATTERN: Final = r"(?!\.\.?(?:\n|\Z))[A-Za-z0-9._-]{1,64}"
COIN_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,31}"
ACCOUNT_PATTERN: Final = "|".join(ACCOUNT_IDS)
HOUSE_NAME_PATTERN: Final = r"(?!(?:external|receivable)(?:\n|\Z))[a-z][a-z0-9._-]{0,31}"
#: The whole text of a name that an operation may give: a customer id, or a house account.
OWNER_PATTERN: Final = rf"{CUSTOMER_PATTERN}|@{HOUSE_NAME_PATTERN}"

_CUSTOMER = re.compile(rf"\A{CUSTOMER_PATTERN}\Z")
_HOUSE_NAME = re.compile(rf"\A{HOUSE_NAME_PATTERN}\Z")
_OWNER = re.compile(rf"\A(?:{OWNER_PATTERN})\Z")
_COIN = re.compile(rf"\A{COIN_PATTERN}\Z")


class Account(NamedTuple):
    """One customer's ``wallet``, ``spot`` or ``fiat`` account, or a ``house`` account such as ``@external``."""

    customer: str
    kind: str


class HouseAccount(NamedTuple):
    """A house account: its name with ``@``, and whether its balances may be below zero."""

    name: str
    may_be_negative: bool


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
#: The house accounts that every ledger has from its beginning, besides one receivable for each customer.
FIRST_HOUSE_ACCOUNTS: Final = {
    account.customer: HouseAccount(account.customer, account == EXTERNAL) for account in (DUST, EXTERNAL, FEES)
}
#: Those that only the ledger itself moves money of.
_RESERVED: Final = (EXTERNAL.customer, RECEIVABLE)


def receivable_of(customer: str) -> Account:
    """Return the house account of what *customer* owes; its balances are at or below zero."""
    return Account(f"{RECEIVABLE}:{customer}", HOUSE_KIND)


def accounts_about(owner: str) -> tuple[Account, ...]:
    """Return the accounts of *owner*: a house account; or the three of a customer, and that of what they owe."""
    if is_house_name(owner):
        return (Account(owner, HOUSE_KIND),)
    return (*(Account(owner, kind) for kind in ACCOUNT_IDS), receivable_of(owner))


def is_receivable(owner: str) -> bool:
    """Say whether *owner* is the house account of what a customer owes."""
    return owner.startswith(f"{RECEIVABLE}:")


def may_be_negative(account: Account) -> bool:
    """Return whether *account* may always be below zero: the outside world and what customers owe may."""
    return account.kind == HOUSE_KIND and (account == EXTERNAL or is_receivable(account.customer))


def is_house_name(owner: str) -> bool:
    """Say whether *owner* is the name of a house account, and no customer id."""
    return owner.startswith("@")


def house_name(name: str) -> str:
    """Return how the house account that is opened as *name* is written."""
    return f"@{name}"


def account_of(owner: str) -> Account:
    """Return the account that *owner* means where none is named: the house account itself, or a customer's spot."""
    return Account(owner, HOUSE_KIND if is_house_name(owner) else "spot")


def check_customer(text: object, field: str = "customer") -> str:
    """Return *text* if it is a valid customer id: 1–64 of ``A-Z a-z 0-9 . _ -``, not ``.`` or ``..``."""
    if isinstance(text, str) and _CUSTOMER.match(text):
        return text
    allowed = "1 to 64 of A-Z a-z 0-9 . _ -, but not '.' or '..',"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_house_name(text: object, field: str = "name") -> str:
    """
    Return *text* if a house account can be opened under that name: a letter, then up to 31 of ``a-z 0-9 . _ -``.

    Raises:
        HouseAccountReserved: It is ``external`` or ``receivable``.
    """
    if isinstance(text, str) and _HOUSE_NAME.match(text):
        return text
    if isinstance(text, str) and house_name(text) in _RESERVED:
        raise _reserved(house_name(text), field)
    allowed = 'a letter a-z and up to 31 more of a-z 0-9 . _ -, such as "treasury",'
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_owner(text: object, field: str = "customer") -> str:
    """
    Return *text* if it is a customer id, or the name of a house account that an operation may give.

    Raises:
        HouseAccountReserved: It is ``@external``, or a receivable.
    """
    if isinstance(text, str) and _OWNER.match(text):
        return text
    if not isinstance(text, str) or not is_house_name(text):
        return check_customer(text, field)
    if text in _RESERVED or is_receivable(text):
        raise _reserved(text, field)
    allowed = "@ and the name of a house account, such as '@treasury',"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def _reserved(name: str, field: str) -> HouseAccountReserved:
    return HouseAccountReserved(
        f"{field} is {shown(name)}, of which only the ledger itself moves money; another account would pass",
        field=field,
    )


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

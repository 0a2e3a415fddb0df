"""
Opening balances from CSV: read whole and checked whole, before anything is booked.

What is available becomes a deposit. What is frozen becomes a deposit and a hold, which happen together. The idempotency
keys follow from what a line is about, not from its amounts: the same file again books nothing twice, also with one more
column, and a line whose amount was changed is refused as a conflict instead of booked on top.

Nothing is guessed: a number that is written another way is refused with what would pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.archive.csv_table import BadLine, NotATable, Record, records_of
from spotledger.domain.accounts import account_of, is_house_name
from spotledger.domain.amounts import check_amount, is_zero_text, normal_amount, shown, units_of
from spotledger.domain.operations import KEY_MAX_CHARACTERS, Deposit, Freeze, check_key
from spotledger.errors import InvalidRequest
from spotledger.os_errors import unusable_file

#: What is available has two names.
AVAILABLE: Final = ("available", "amount")
REQUIRED: Final = ("customer", "coin")
OPTIONAL: Final = ("freeze", "account", "reference", "key")
COLUMNS: Final = (*REQUIRED, *AVAILABLE, *OPTIONAL)
HEADER: Final = ",".join((*REQUIRED, AVAILABLE[0]))
#: Names that other systems have for our columns.
_OTHER_NAMES: Final = {
    **dict.fromkeys(("locked", "frozen", "held", "hold", "on_hold", "in_orders", "reserved"), "freeze"),
    **dict.fromkeys(("free", "quantity", "qty"), "available"),
    **dict.fromkeys(("currency", "asset", "symbol", "ticker"), "coin"),
    **dict.fromkeys(("user", "user_id", "uid", "customer_id", "client", "owner"), "customer"),
}
#: All lines are kept in memory until the last one is checked.
LINES_LIMIT: Final = 1_000_000
#: Bad lines that are told one by one; the others are counted.
BAD_LINES_TOLD: Final = 50
KEY_PREFIX: Final = "opening"
DIGEST_BYTES: Final = 16
#: What follows the key of a line in the keys of what is frozen.
FROZEN_KEY: Final = ":frozen"
HOLD_KEY: Final = ":hold"
#: A prefix, a colon, the digest in hex, and what follows for what is frozen make a key.
PREFIX_MAX_CHARACTERS: Final = KEY_MAX_CHARACTERS - 1 - 2 * DIGEST_BYTES - len(FROZEN_KEY)

_EXPONENT: Final = re.compile(r"\A[0-9]{1,38}(?:\.[0-9]{1,38})?[eE][+-]?[0-9]{1,2}\Z")
_DECIMAL_COMMA: Final = re.compile(r"\A[0-9]+,[0-9]+\Z")
#: What people put between thousands: commas, apostrophes, underscores and blanks of all kinds.
_BETWEEN_THOUSANDS: Final = re.compile(r"[,'’_\s]")
_DECIMALS: Final = re.compile(r"\A([0-9]+)(?:\.([0-9]+))?\Z")


class OpeningBalance(NamedTuple):
    """One line of the file, by its number, with what it asks for; what is frozen is deposited, then frozen."""

    line: int
    customer: str
    available: Deposit | None
    frozen: tuple[Deposit, Freeze] | None


class Plan(NamedTuple):
    """What an import will do: balances in the order of the file, after registering customers that are not yet."""

    balances: list[OpeningBalance]
    new_customers: list[str]
    #: Lines whose amounts are zero, which are left out.
    zeros: int


def read_balances(
    file: Path,
    coins: Mapping[str, int],
    customers: Collection[str],
    *,
    key_prefix: str = KEY_PREFIX,
    register: bool = False,
    decimal_comma: bool = False,
) -> Plan:
    """
    Read opening balances from *file* and check every line.

    The first line names the columns: ``customer``, ``coin`` and ``available`` or ``amount`` (decimal text), and where
    wished ``freeze`` (what is held besides), ``account`` (spot where empty), ``reference`` (of the deposit and the
    hold) and ``key`` (an idempotency key, made where empty). :mod:`spotledger.archive.csv_table` says what else a file
    may be like.

    Args:
        file: A CSV file.
        coins: The scale of each listed coin.
        customers: Those that are registered, and the house accounts that are open.
        key_prefix: Begins the keys that are made; another prefix makes other deposits of the same file.
        register: Whether customers that are not registered are to be; else they are bad lines.
        decimal_comma: Whether amounts have a comma in place of the point.

    Raises:
        InvalidRequest: The file cannot be read, or has bad lines; ``details["lines"]`` has each line, field and reason.
    """
    if len(key_prefix) > PREFIX_MAX_CHARACTERS:
        raise InvalidRequest(
            f"the prefix of keys has {len(key_prefix)} characters; at most {PREFIX_MAX_CHARACTERS} would pass",
            field="key_prefix",
        )
    check_key(key_prefix, "key_prefix")
    reading = _Reading(coins, customers, key_prefix, register=register, decimal_comma=decimal_comma)
    try:
        reading.read(file)
    except OSError as problem:
        raise unusable_file(problem, file) from problem
    if reading.bad_count:
        raise _refused(file, reading)
    return Plan(reading.balances, list(reading.new_customers), reading.zeros)


class _Reading:
    """One pass over a file: the good lines, and what is wrong with the others."""

    def __init__(
        self,
        coins: Mapping[str, int],
        customers: Collection[str],
        key_prefix: str,
        *,
        register: bool,
        decimal_comma: bool,
    ) -> None:
        self._coins = coins
        self._customers = customers
        self._key_prefix = key_prefix
        self._register = register
        self._decimal_comma = decimal_comma
        self._line_of_key: dict[str, int] = {}
        self.balances: list[OpeningBalance] = []
        self.new_customers: dict[str, None] = {}
        self.zeros = 0
        self.bad: list[dict[str, Any]] = []
        self.bad_count = 0

    def read(self, file: Path) -> None:
        columns: list[str] | None = None
        try:
            for record in records_of(file):
                if isinstance(record, BadLine):
                    self._note(record.line, None, record.reason)
                elif columns is None:
                    columns = _columns(record)
                elif record.line > LINES_LIMIT:
                    self._note(record.line, None, f"the file has more than {LINES_LIMIT} lines; cut it into several")
                    return
                else:
                    self._try(columns, record)
        except NotATable as problem:
            self._note(problem.line, None, problem.reason)
        if self.bad_count or self.balances or self.zeros:
            return
        if columns is None:
            self._note(1, None, f"the file is empty; a first line such as {HEADER} would pass")
        else:
            self._note(1, None, "no line follows the names of the columns")

    def _try(self, columns: list[str], record: Record) -> None:
        try:
            self._take(
                record.line, _by_name(columns, record.fields), next(name for name in AVAILABLE if name in columns)
            )
        except InvalidRequest as refusal:
            self._note(record.line, refusal.details.get("field"), refusal.message)

    def _take(self, line: int, found: Mapping[str, str], available_column: str) -> None:
        for name in REQUIRED:
            if name not in found:
                raise InvalidRequest(f"{name} is empty", field=name)
        scale = self._scale(found["coin"])
        available = self._amount(found, available_column, scale)
        frozen = self._amount({"freeze": "0", **found}, "freeze", scale)
        key = self._key(found)
        balance = _balance(line, found, key, available, frozen)
        self._check_customer(found["customer"])
        self._check_once(line, key, balance, is_given="key" in found)
        if available is None and frozen is None:
            self.zeros += 1
            return
        if found["customer"] not in self._customers:
            self.new_customers[found["customer"]] = None
        self.balances.append(balance)

    def _scale(self, coin: str) -> int:
        scale = self._coins.get(coin)
        if scale is None:
            known = coin.lower()
            advice = f"{known!r} is, and would pass" if known in self._coins else "list it first"
            raise InvalidRequest(f"coin {shown(coin)} is not listed; {advice}", field="coin")
        return scale

    def _check_customer(self, customer: str) -> None:
        if customer in self._customers:
            return
        if is_house_name(customer):
            raise InvalidRequest(f"house account {customer} is not open; open it first", field="customer")
        if not self._register:
            raise InvalidRequest(
                f"customer {customer} is not registered; register it first, or use --register", field="customer"
            )

    def _amount(self, found: Mapping[str, str], field: str, scale: int) -> str | None:
        """Return the amount in the column *field* without zeros at its end; None for zero."""
        text = found.get(field)
        if text is None:
            raise InvalidRequest(f"{field} is empty; 0 would pass", field=field)
        plain = self._with_point(text, field)
        decimals = _DECIMALS.match(plain)
        if decimals is not None and decimals[2] is not None and not decimals[2][scale:].strip("0"):
            plain = normal_amount(f"{decimals[1]}.{decimals[2][:scale]}0")
        if is_zero_text(plain):
            return None
        try:
            units_of(check_amount(plain, field), scale, field)
        except InvalidRequest as refusal:
            raise _with_advice(refusal, text, field) from None
        return plain

    def _with_point(self, text: str, field: str) -> str:
        if not self._decimal_comma or "," not in text:
            return text
        if _DECIMAL_COMMA.match(text) is None:
            raise InvalidRequest(
                f"{field} is {shown(text)}; digits with one comma, such as '1000,50', would pass", field=field
            )
        return text.replace(",", ".")

    def _key(self, found: Mapping[str, str]) -> str:
        given = found.get("key")
        if given is not None:
            return given
        content = json.dumps([found["customer"], _account_in(found), found["coin"]])
        return f"{self._key_prefix}:{blake2b(content.encode(), digest_size=DIGEST_BYTES).hexdigest()}"

    def _check_once(self, line: int, key: str, balance: OpeningBalance, *, is_given: bool) -> None:
        """Refuse a line with a key of an earlier one, which would be taken for a repeat and not be booked."""
        keys = [key, *(operation.key for operation in balance.frozen or ())]
        key, first = min(((one, self._line_of_key.setdefault(one, line)) for one in keys), key=itemgetter(1))
        if first == line:
            return
        if is_given:
            raise InvalidRequest(f"it has the key {key} of line {first}; a key of its own would pass", field="key")
        raise InvalidRequest(
            f"it is about the same customer, coin and account as line {first}, and a balance stands once; "
            "with different keys in a column key both would pass",
            field="key",
        )

    def _note(self, line: int, field: str | None, reason: str) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_LINES_TOLD:
            self.bad.append({"line": line, "field": field, "reason": reason})


def _balance(
    line: int, found: Mapping[str, str], key: str, available: str | None, frozen: str | None
) -> OpeningBalance:
    """Return what the line asks for; making the operations checks the form of all that it has."""
    customer, coin = found["customer"], found["coin"]
    account, reference = _account_in(found), found.get("reference")
    # A line of zeros is checked like the others.
    deposit = Deposit(key, customer, coin, available or "1", account, reference)
    if frozen is None:
        return OpeningBalance(line, customer, deposit if available else None, None)
    if len(key) + len(FROZEN_KEY) > KEY_MAX_CHARACTERS:
        most = KEY_MAX_CHARACTERS - len(FROZEN_KEY)
        raise InvalidRequest(
            f"key has {len(key)} characters; at most {most} would pass on a line with freeze", field="key"
        )
    both = (
        Deposit(key + FROZEN_KEY, customer, coin, frozen, account, reference),
        Freeze(key + HOLD_KEY, customer, coin, frozen, account, reference),
    )
    return OpeningBalance(line, customer, deposit if available else None, both)


def _columns(record: Record) -> list[str]:
    """Return the names of the columns, which the first record has."""
    names = record.fields
    for name in filter(None, names):
        if name not in COLUMNS:
            known = _OTHER_NAMES.get(name)
            advice = f"{known!r} is" if known else f"{', '.join(COLUMNS)} are"
            raise NotATable(record.line, f"{shown(name)} is no column of opening balances; {advice}")
        if names.count(name) > 1:
            raise NotATable(record.line, f"the column {name} stands twice")
    if all(name in names for name in AVAILABLE):
        raise NotATable(record.line, "available and amount are two names of one column; one of them would pass")
    missing = [name for name in REQUIRED if name not in names]
    if not any(name in names for name in AVAILABLE):
        missing.append(AVAILABLE[0])
    if missing:
        raise NotATable(
            record.line,
            f"the column {missing[0]} is missing; a first line that names the columns, such as {HEADER}, would pass",
        )
    return names


def _by_name(columns: list[str], fields: list[str]) -> dict[str, str]:
    """Return what is in *fields* by the name of its column, without what is empty."""
    if len(fields) != len(columns):
        raise InvalidRequest(f"it has {len(fields)} fields; {len(columns)}, as the first line has, would pass")
    found = {name: field for name, field in zip(columns, fields, strict=True) if field}
    if "" in found:
        raise InvalidRequest(f"it has {shown(found[''])} in a column without a name")
    return found


def _account_in(found: Mapping[str, str]) -> str:
    """Return which account of its owner a line is about, spot by default; a house account is one by itself."""
    return found.get("account") or account_of(found["customer"]).kind


def _with_advice(refusal: InvalidRequest, text: str, field: str) -> InvalidRequest:
    """Return *refusal* of an amount, or one that says how to write the number that *text* seems to be."""
    if _EXPONENT.match(text):
        advice = f"written out, as {format(Decimal(text), 'f')!r}, it would pass"
    elif _DECIMAL_COMMA.match(text):
        advice = f"{text.replace(',', '.')!r} would pass; if commas are decimal ones here, use --decimal-comma"
    else:
        bare = _BETWEEN_THOUSANDS.sub("", text)
        if bare == text or _DECIMALS.match(bare) is None:
            return refusal
        advice = f"without separators, as {bare!r}, it would pass"
    return InvalidRequest(f"{field} is {shown(text)}; {advice}", field=field)


def _refused(file: Path, reading: _Reading) -> InvalidRequest:
    count = reading.bad_count
    if count == 1:
        bad = reading.bad[0]
        message = f"{file}, line {bad['line']}: {bad['reason']}. Nothing was booked."
        return InvalidRequest(message, field="file", lines=reading.bad)
    lines = [f"  line {bad['line']}: {bad['reason']}" for bad in reading.bad]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    return InvalidRequest(
        "\n".join([f"{file} has {count} bad lines; nothing was booked:", *lines]), field="file", lines=reading.bad
    )

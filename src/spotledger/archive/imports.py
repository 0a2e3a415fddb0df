"""
Opening balances from CSV: read whole and checked whole, before anything is booked.

Each line becomes an ordinary deposit. Its idempotency key follows from what it is about, not from its amount: the same
file again books nothing twice, and a line whose amount was changed is refused as a conflict instead of booked on top.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from spotledger.domain.accounts import check_customer
from spotledger.domain.amounts import parse_amount
from spotledger.domain.operations import KEY_MAX_CHARACTERS, Deposit, check_key
from spotledger.errors import InvalidRequest
from spotledger.os_errors import unusable_file

REQUIRED: Final = ("customer", "coin", "amount")
OPTIONAL: Final = ("account", "reference", "key")
#: All lines are kept in memory until the last one is checked.
LINES_LIMIT: Final = 1_000_000
#: Bad lines that are told one by one; the others are counted.
BAD_LINES_TOLD: Final = 50
KEY_PREFIX: Final = "opening"
DIGEST_BYTES: Final = 16
#: A prefix, a colon, and the digest in hex make a key.
PREFIX_MAX_CHARACTERS: Final = KEY_MAX_CHARACTERS - 1 - 2 * DIGEST_BYTES


class OpeningBalance(NamedTuple):
    """One line of the file, by its number, and the deposit that it asks for."""

    line: int
    deposit: Deposit


class Plan(NamedTuple):
    """What an import will do: deposits in the order of the file, after registering customers that are not yet."""

    balances: list[OpeningBalance]
    new_customers: list[str]


def read_balances(
    file: Path,
    coins: Mapping[str, int],
    customers: Collection[str],
    *,
    key_prefix: str = KEY_PREFIX,
    register: bool = False,
) -> Plan:
    """
    Read opening balances from *file* and check every line.

    The first line names the columns: ``customer``, ``coin`` and ``amount`` (decimal text), and where wished
    ``account`` (spot where empty), ``reference`` and ``key`` (an idempotency key, made where empty). UTF-8, with or
    without a byte order mark; fields in quotes where needed.

    Args:
        file: A CSV file.
        coins: The scale of each listed coin.
        customers: Those that are registered.
        key_prefix: Begins the keys that are made; another prefix makes other deposits of the same file.
        register: Whether customers that are not registered are to be; else they are bad lines.

    Raises:
        InvalidRequest: The file cannot be read, or has bad lines; ``details["lines"]`` has each line, field and reason.
    """
    if len(key_prefix) > PREFIX_MAX_CHARACTERS:
        raise InvalidRequest(
            f"the prefix of keys has {len(key_prefix)} characters; at most {PREFIX_MAX_CHARACTERS} would pass",
            field="key_prefix",
        )
    check_key(key_prefix, "key_prefix")
    reading = _Reading(coins, customers, key_prefix, register)
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            reading.read(opened)
    except OSError as problem:
        raise unusable_file(problem, file) from problem
    if reading.bad_count:
        raise _refused(file, reading)
    return Plan(reading.balances, list(reading.new_customers))


class _Reading:
    """One pass over a file: the good lines, and what is wrong with the others."""

    def __init__(self, coins: Mapping[str, int], customers: Collection[str], key_prefix: str, register: bool) -> None:
        self._coins = coins
        self._customers = customers
        self._key_prefix = key_prefix
        self._register = register
        self._line_of_key: dict[str, int] = {}
        self.balances: list[OpeningBalance] = []
        self.new_customers: dict[str, None] = {}
        self.bad: list[dict[str, Any]] = []
        self.bad_count = 0

    def read(self, opened: TextIO) -> None:
        columns: list[str] | None = None
        for line, fields in self._records(opened):
            try:
                if columns is None:
                    columns = _columns(fields)
                else:
                    self._take(line, columns, fields)
            except InvalidRequest as refusal:
                self._note(line, refusal.details.get("field"), refusal.message)
                if columns is None:
                    return
        if columns is None and not self.bad_count:
            self._note(1, None, f"the file is empty; a first line with {', '.join(REQUIRED)} would pass")
        elif not self.balances and not self.bad_count:
            self._note(1, None, "no line follows the names of the columns")

    def _records(self, opened: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Give each record that is not empty with the number of the line that it begins in."""
        records = csv.reader(opened, strict=True)
        while True:
            line = records.line_num + 1
            try:
                fields = next(records)
            except StopIteration:
                return
            except csv.Error as problem:
                self._note(line, None, f"it is not CSV: {problem}")
                continue
            if line > LINES_LIMIT:
                self._note(line, None, f"the file has more than {LINES_LIMIT} lines; cut it into several")
                return
            if fields:
                yield line, fields

    def _take(self, line: int, columns: list[str], fields: list[str]) -> None:
        if len(fields) != len(columns):
            raise InvalidRequest(f"it has {len(fields)} fields; {len(columns)}, as the first line has, would pass")
        found = {name: field for name, field in zip(columns, fields, strict=True) if field}
        for name in REQUIRED:
            if name not in found:
                raise InvalidRequest(f"{name} is empty", field=name)
        deposit = self._deposit(found)
        scale = self._coins.get(deposit.coin)
        if scale is None:
            raise InvalidRequest(f"coin {deposit.coin} is not listed; list it first", field="coin")
        parse_amount(deposit.amount, scale)
        if deposit.customer not in self._customers:
            if not self._register:
                raise InvalidRequest(
                    f"customer {deposit.customer} is not registered; register it first, or use --register",
                    field="customer",
                )
            self.new_customers[deposit.customer] = None
        self._once(line, deposit)
        self.balances.append(OpeningBalance(line, deposit))

    def _deposit(self, found: Mapping[str, str]) -> Deposit:
        account, reference = found.get("account", "spot"), found.get("reference")
        key = found.get("key")
        if key is None:
            content = json.dumps([found["customer"], account, found["coin"], reference])
            key = f"{self._key_prefix}:{blake2b(content.encode(), digest_size=DIGEST_BYTES).hexdigest()}"
        check_customer(found["customer"])  # a deposit may be of a house account, too
        return Deposit(key, found["customer"], found["coin"], found["amount"], account, reference)

    def _once(self, line: int, deposit: Deposit) -> None:
        first = self._line_of_key.setdefault(deposit.key, line)
        if first != line:
            raise InvalidRequest(
                f"it has the key of line {first}; another reference, or a key of its own, would pass", field="key"
            )

    def _note(self, line: int, field: str | None, reason: str) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_LINES_TOLD:
            self.bad.append({"line": line, "field": field, "reason": reason})


def _columns(fields: list[str]) -> list[str]:
    known = (*REQUIRED, *OPTIONAL)
    for name in fields:
        if name not in known or fields.count(name) > 1:
            what = "stands twice" if name in known else "is no column of an import"
            raise InvalidRequest(f"{name[:64]!r} {what}; a first line out of {', '.join(known)} would pass")
    for name in REQUIRED:
        if name not in fields:
            raise InvalidRequest(f"the column {name} is missing; the first line names the columns", field=name)
    return fields


def _refused(file: Path, reading: _Reading) -> InvalidRequest:
    count = reading.bad_count
    lines = [f"  line {bad['line']}: {bad['reason']}" for bad in reading.bad]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    head = f"{file} has {count} bad line{'s' if count > 1 else ''}; nothing was booked:"
    return InvalidRequest("\n".join([head, *lines]), field="file", lines=reading.bad)

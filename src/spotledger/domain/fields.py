"""
The fields of operations, described once: which values a field takes, and where it stands in a request.

A field's annotation names its :class:`Form`, such as ``amount: Amount``. From these the checks of an operation, its
canonical request, the bodies and the document of the operator API, and the operations of the client are derived.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from spotledger.domain.accounts import (
    ACCOUNT_PATTERN,
    COIN_PATTERN,
    CUSTOMER_PATTERN,
    HOUSE_KIND,
    HOUSE_NAME_PATTERN,
    OWNER_PATTERN,
    check_account_kind,
    check_coin,
    check_customer,
    check_house_name,
    check_owner,
    check_scale,
    is_house_name,
)
from spotledger.domain.amounts import (
    AMOUNT_PATTERN,
    SIGNED_AMOUNT_PATTERN,
    ZERO_PATTERN,
    check_amount,
    check_signed_amount,
    is_zero_text,
    shown,
)
from spotledger.domain.positions import EPOCH_LIMIT, POSITION_PATTERN, parse_position
from spotledger.errors import InvalidRequest
from spotledger.texts import FIT, is_line

KEY_MAX_CHARACTERS: Final = 128
REFERENCE_MAX_CHARACTERS: Final = 256
#: Legs of one post.
LEGS_MIN: Final = 2
LEGS_MAX: Final = 1_000
#: As a release: all that remains of the hold.
REST: Final = "rest"
#: The year 2001. Earlier times are mistakes: most of all, seconds where milliseconds are meant.
TIME_MIN_MS: Final = 978_307_200_000
#: The last millisecond of the year 9999; later times are mistakes.
TIME_MAX_MS: Final = 253_402_300_799_999
KEY_PATTERN: Final = rf"[\x21-\x7e]{{1,{KEY_MAX_CHARACTERS}}}"

_KEY = re.compile(rf"\A{KEY_PATTERN}\Z")
_HOLD = re.compile(rf"\A{POSITION_PATTERN}\Z")
_FEE = re.compile(rf"\A{COIN_PATTERN} (?:{SIGNED_AMOUNT_PATTERN}|{ZERO_PATTERN})\Z")
_COIN_AMOUNT = re.compile(rf"\A{COIN_PATTERN} (?:{AMOUNT_PATTERN}|{ZERO_PATTERN})\Z")


class HoldKey(NamedTuple):
    """A hold, named by the idempotency key that opened it."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Form:
    """
    What the values of a field look like.

    Args:
        name: For people.
        check: Refuses a value of another form; takes the value and the name of the field.
        example: A value that passes, as it stands in a request.
        pattern: Matches exactly the texts that pass, and no newline; empty where a pattern does not say it all.
    """

    name: str
    check: Callable[[Any, str], object]
    example: Any
    pattern: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """Where a field stands that is about one end of a transfer: in the object *name* of the request."""

    name: str


class Field(NamedTuple):
    """
    One field of an operation or of a part of one.

    ``place`` is where it stands in a request, with a dot within an end; ``parts`` is the class of a value that has
    fields of its own, or of each of the legs.
    """

    name: str
    form: Form
    place: str
    parts: type[Any] | None
    is_required: bool
    takes_none: bool
    default: Any


# --- the checks -------------------------------------------------------------------------------------


def check_key(text: object, field: str = "key") -> str:
    """Return *text* if it is a valid idempotency key of a caller: 1–128 characters of 0x21–0x7E."""
    if isinstance(text, str) and _KEY.match(text):
        return text
    allowed = f"an idempotency key of 1 to {KEY_MAX_CHARACTERS} printable ASCII characters without blanks"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_hold(name: object, field: str = "hold") -> HoldName:
    """Return *name* if it is a valid name of a hold: its id as text, or the key that opened it."""
    if isinstance(name, HoldKey):
        if not isinstance(name.key, str) or not _KEY.match(name.key):
            check_key(name.key, f"{field}.key")
        return name
    if isinstance(name, str) and _HOLD.match(name):
        return name
    raise InvalidRequest(f'{field} is {shown(name)}; a hold\'s id such as "12" would pass', field=field)


def check_reference(text: object, field: str = "reference") -> None:
    """Check that *text* is None or a line of 1–256 characters (``spotledger.texts``)."""
    if text is None:
        return
    if not isinstance(text, str) or not 1 <= len(text) <= REFERENCE_MAX_CHARACTERS or not is_line(text):
        allowed = f"1 to {REFERENCE_MAX_CHARACTERS} {FIT}"
        raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_reason(text: object, field: str = "reason") -> None:
    """Check that *text* is a line of 1–256 characters that says why."""
    if text is None:
        raise InvalidRequest(f"{field} is missing; a line of text that says why would pass", field=field)
    check_reference(text, field)


def check_time(value: object, field: str) -> None:
    """Check that *value* is None or a time in milliseconds since 1970, in the years 2001 to 9999."""
    if value is None:
        return
    allowed = "milliseconds since 1970 such as 1700000000000"
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= TIME_MAX_MS:
        raise InvalidRequest(f"{field} is {shown(value)}; {allowed} would pass", field=field)
    if value < TIME_MIN_MS:
        said = f"{field} is {value}, which is before the year 2001"
        raise InvalidRequest(f"{said}; {allowed}, not seconds, would pass", field=field)


def check_epoch(value: object, field: str = "epoch") -> None:
    """Check that *value* is the number of an epoch: a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < EPOCH_LIMIT:
        raise InvalidRequest(f"{field} is {shown(value)}; a whole number from 1 would pass", field=field)


def check_flag(value: object, field: str) -> None:
    """Check that *value* is true or false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{field} is {shown(value)}; true or false would pass", field=field)


def account_kind_of(owner: str, kind: str | None, field: str = "account") -> str:
    """
    Return which account of *owner* is meant by *kind*: a customer's spot account by default.

    Raises:
        InvalidRequest: *kind* names no account, or is given for a house account, which is one by itself.
    """
    if not is_house_name(owner):
        return "spot" if kind is None else check_account_kind(kind, field)
    if kind not in (None, HOUSE_KIND):
        raise InvalidRequest(f"{field} is given for {owner}, which has none; leave it out", field=field)
    return HOUSE_KIND


def _check_seq(value: object, field: str) -> None:
    parse_position(value, field, least=1)


def _check_release(text: object, field: str) -> None:
    if text != REST:
        check_amount(text, field)


def _check_coin_amount(value: Any, field: str) -> None:
    """Check an amount of a named coin, which may be zero."""
    coin, amount = value.coin, value.amount
    if isinstance(coin, str) and isinstance(amount, str) and _COIN_AMOUNT.match(f"{coin} {amount}"):
        return
    check_coin(coin, f"{field}.coin")
    if not is_zero_text(amount):
        check_amount(amount, f"{field}.amount")


def _check_fee(value: Any, field: str) -> None:
    """Check an amount of a named coin, which may be zero, or below it if it is a rebate."""
    coin, amount = value.coin, value.amount
    if isinstance(coin, str) and isinstance(amount, str) and _FEE.match(f"{coin} {amount}"):
        return
    check_coin(coin, f"{field}.coin")
    if not is_zero_text(amount):
        check_signed_amount(amount, f"{field}.amount")


def _check_house_id(text: object, field: str) -> None:
    if not isinstance(text, str) or not is_house_name(text):
        raise InvalidRequest(f"{field} is {shown(text)}; a house account such as '@fees' would pass", field=field)
    check_owner(text, field)


def _check_legs(legs: Any, field: str) -> None:
    """Check that there are as many legs as a post may have, and each of them."""
    if not isinstance(legs, (list, tuple)) or not LEGS_MIN <= len(legs) <= LEGS_MAX:
        count = f"{len(legs)} legs" if isinstance(legs, (list, tuple)) else f"a {type(legs).__name__}"
        raise InvalidRequest(f"{field} is {count}; a list of {LEGS_MIN} to {LEGS_MAX} legs would pass", field=field)
    for place, leg in enumerate(legs):
        leg.check(f"{field}[{place}]")


def _check_parts(value: Any, field: str) -> None:
    value.check(field)


# --- the forms --------------------------------------------------------------------------------------

KEY: Final = Form("idempotency key", check_key, "order-1-fill-1", KEY_PATTERN)
CUSTOMER: Final = Form("customer", check_customer, "alice", CUSTOMER_PATTERN)
OWNER: Final = Form("customer or house account", check_owner, "alice", OWNER_PATTERN)
HOUSE_NAME: Final = Form("name of a house account", check_house_name, "treasury", HOUSE_NAME_PATTERN)
FLAG: Final = Form("flag", check_flag, False)
COIN: Final = Form("coin", check_coin, "usdt", COIN_PATTERN)
SCALE: Final = Form("scale", check_scale, 8)
ACCOUNT: Final = Form("account", check_account_kind, "spot", ACCOUNT_PATTERN)
AMOUNT: Final = Form("amount", check_amount, "100.50", AMOUNT_PATTERN)
REFERENCE: Final = Form("reference", check_reference, "order-7")
REASON: Final = Form("reason", check_reason, "booked twice by the deposit watcher")
TIME_MS: Final = Form("time", check_time, 1_700_000_000_000)
#: Until when a request may be booked; not part of what is asked for, and so not kept.
NOT_AFTER_MS: Final = Form("latest time", check_time, 1_700_000_000_000)
HOLD: Final = Form("hold", check_hold, {"key": "order-7"})
SEQ: Final = Form("position", _check_seq, 12)
EPOCH: Final = Form("epoch", check_epoch, 1)
RELEASE: Final = Form("release", _check_release, REST)
COIN_AMOUNT: Final = Form("amount of a coin", _check_coin_amount, {"coin": "btc", "amount": "0.0005"})
FEE: Final = Form("fee", _check_fee, {"coin": "btc", "amount": "0.0005"})
HOUSE_ACCOUNT: Final = Form("house account", _check_house_id, "@fees", f"@{HOUSE_NAME_PATTERN}")
SIGNED_AMOUNT: Final = Form("signed amount", check_signed_amount, "-1.5", SIGNED_AMOUNT_PATTERN)
LEGS: Final = Form("legs", _check_legs, {"customer": "alice", "coin": "usdt", "amount": "-1.5"})
SIDE: Final = Form("side of a fill", _check_parts, {"hold": {"key": "order-7"}})

Key: TypeAlias = Annotated[str, KEY]
CustomerId: TypeAlias = Annotated[str, CUSTOMER]
OwnerId: TypeAlias = Annotated[str, OWNER]
HouseId: TypeAlias = Annotated[str, HOUSE_ACCOUNT]
HouseName: TypeAlias = Annotated[str, HOUSE_NAME]
Flag: TypeAlias = Annotated[bool, FLAG]
CoinName: TypeAlias = Annotated[str, COIN]
Scale: TypeAlias = Annotated[int, SCALE]
AccountKind: TypeAlias = Annotated[str, ACCOUNT]
Amount: TypeAlias = Annotated[str, AMOUNT]
SignedAmount: TypeAlias = Annotated[str, SIGNED_AMOUNT]
Reference: TypeAlias = Annotated[str, REFERENCE]
Reason: TypeAlias = Annotated[str, REASON]
TimeMs: TypeAlias = Annotated[int, TIME_MS]
NotAfterMs: TypeAlias = Annotated[int, NOT_AFTER_MS]
HoldName: TypeAlias = Annotated[str | HoldKey, HOLD]
Seq: TypeAlias = Annotated[int | str, SEQ]
Epoch: TypeAlias = Annotated[int, EPOCH]
Release: TypeAlias = Annotated[str, RELEASE]


# --- what is derived --------------------------------------------------------------------------------

_FIELDS: Final[dict[type[Any], tuple[Field, ...]]] = {}


def fields_of(kind: type[Any]) -> tuple[Field, ...]:
    """Return the fields of an operation, or of a part of one, in the order of the class."""
    if kind not in _FIELDS:
        hints = get_type_hints(kind, include_extras=True)
        if dataclasses.is_dataclass(kind):
            defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        else:  # a named tuple
            defaults = {name: kind._field_defaults.get(name, dataclasses.MISSING) for name in kind._fields}
        _FIELDS[kind] = tuple([_field(name, hints[name], default) for name, default in defaults.items()])
    return _FIELDS[kind]


def _field(name: str, hint: Any, default: Any) -> Field:
    takes_none = type(None) in get_args(hint)
    if takes_none:  # Annotated[…] | None
        hint = next(member for member in get_args(hint) if get_origin(member) is Annotated)
    value, form, *ends = get_args(hint)
    place = f"{ends[0].name}.{name.partition('_')[2]}" if ends else name
    parts = get_args(value)[0] if form is LEGS else value if form in (COIN_AMOUNT, FEE, SIDE) else None
    required = default is dataclasses.MISSING
    return Field(name, form, place, parts, required, takes_none, None if required else default)


def owners_of_accounts(fields: Iterable[Field]) -> dict[str, str]:
    """Return, for each field that names an account and may be left out, the required field beside it with its owner."""
    owners = {_end_of(field): field.name for field in fields if field.form is OWNER and field.is_required}
    accounts = [field for field in fields if field.form is ACCOUNT and field.takes_none and _end_of(field) in owners]
    return {field.name: owners[_end_of(field)] for field in accounts}


def _end_of(field: Field) -> str:
    return field.place.rpartition(".")[0]


def check_each(value: Any, fields: Iterable[Field], prefix: str = "") -> None:
    """
    Check *fields* of *value* one by one; messages begin their names with *prefix*.

    Raises:
        InvalidRequest: A value has another form; ``field`` names the first such field.
    """
    for field in fields:
        content = getattr(value, field.name)
        if content is not None or not field.takes_none:
            field.form.check(content, prefix + field.place)


def check_of(kind: type[Any]) -> Callable[..., None]:
    """
    Return a function that does what :func:`check_each` does with all fields of *kind*, in less than half the time.

    It looks at all required texts in one match, and at what is None not at all. An account that is left out beside its
    owner is filled in (:func:`account_kind_of`). Like the ``__init__`` of a data class, it is compiled from text, which
    names only fields of the class.
    """
    fields = fields_of(kind)
    owners = owners_of_accounts(fields)
    texts = [field for field in fields if field.form.pattern and not field.takes_none]
    lines = ["def check(value, prefix=''):"]
    if texts:
        together = ", ".join(f"value.{field.name}" for field in texts)
        lines += [
            "    try:",
            f"        fit = fits({together if len(texts) == 1 else f'join(({together}))'})",
            "    except TypeError:  # one of them is no text",
            "        fit = None",
            "    if fit is None:",
            "        check_each(value, fields, prefix)",
        ]
    names: dict[str, Any] = {"check_each": check_each, "fields": fields, "join": "\n".join}
    names["fits"] = re.compile("\n".join(f"(?:{field.form.pattern})" for field in texts)).fullmatch
    names["account_kind_of"] = account_kind_of
    for name, form, place, _, _, takes_none, _ in (field for field in fields if field not in texts):
        if name in owners:
            owner, kind_of = f"value.{owners[name]}", f"account_kind_of(owner, value.{name}, prefix + {place!r})"
            lines.append(f"    owner = {owner}")
            lines.append(
                f"    value.{name} = 'spot' if value.{name} is None and not owner.startswith('@') else {kind_of}"
            )
            continue
        names[f"check_{name}"] = form.check
        check = f"check_{name}(value.{name}, prefix + {place!r})"
        lines.append(f"    if value.{name} is not None: {check}" if takes_none else f"    {check}")
    exec("\n".join(lines), names)  # noqa: S102 - made of the names of our own fields
    made: Callable[..., None] = names["check"]
    return made

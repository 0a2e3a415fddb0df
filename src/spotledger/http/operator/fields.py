"""
The fields of the operator API's bodies and queries, with their JSON schemas.

A body may have any value in a field; the operation that is made of it checks the value, and its refusals name the
field. So the schemas describe and the domain decides; a fuzzing test compares the two.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

from spotledger.domain import fields
from spotledger.domain.accounts import ACCOUNT_IDS, COIN_PATTERN
from spotledger.domain.amounts import MAX_SCALE
from spotledger.domain.fields import KEY_MAX_CHARACTERS, REFERENCE_MAX_CHARACTERS, TIME_MAX_MS, TIME_MIN_MS, Form
from spotledger.domain.journal import ACTOR, BEGIN_EPOCH
from spotledger.domain.operations import OPERATIONS, Expire
from spotledger.domain.positions import EPOCH_LIMIT, POSITION_PATTERN

Schema = dict[str, Any]

CUSTOMER: Final[Schema] = {"type": "string", "pattern": r"^[A-Za-z0-9._-]{1,64}$", "examples": ["alice"]}
COIN: Final[Schema] = {"type": "string", "pattern": f"^{COIN_PATTERN}$", "examples": ["usdt"]}
OWNER: Final[Schema] = {
    "type": "string",
    "pattern": r"^([A-Za-z0-9._-]{1,64}|@[a-z][a-z0-9._-]{0,31})$",
    "description": "A customer, or a house account such as @treasury.",
    "examples": ["alice", "@treasury"],
}
HOUSE_NAME: Final[Schema] = {
    "type": "string",
    "pattern": r"^[a-z][a-z0-9._-]{0,31}$",
    "description": "The name of the house account, without @.",
    "examples": ["treasury"],
}
ACCOUNT: Final[Schema] = {
    "enum": list(ACCOUNT_IDS),
    "default": "spot",
    "description": "The customer's account. A house account has none.",
}
AMOUNT: Final[Schema] = {
    "type": "string",
    "pattern": rf"^(0|[1-9][0-9]{{0,37}})(\.[0-9]{{1,{MAX_SCALE}}})?$",
    "description": "A plain decimal above zero, with no more decimals than the coin has.",
    "examples": ["100.50"],
}
SIGNED_AMOUNT: Final[Schema] = {
    "type": "string",
    "pattern": r"^-?(0|[1-9][0-9]{0,37})(\.[0-9]{1,18})?$",
    "description": "A plain decimal, not zero, with a minus sign if it is taken; no more decimals than the coin has.",
    "examples": ["-1.5", "1.5"],
}
KEY: Final[Schema] = {
    "type": "string",
    "pattern": f"^[!-~]{{1,{KEY_MAX_CHARACTERS}}}$",
    "description": "The idempotency key of this write, unique for ever.",
    "examples": ["order-1-fill-1"],
}
REFERENCE: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": REFERENCE_MAX_CHARACTERS,
    "description": "A reference of the caller, such as an order number; no control characters, "
    "and none that end a line or turn the direction of writing.",
    "examples": ["order-7"],
}
TIME: Final[Schema] = {
    "type": "integer",
    "minimum": TIME_MIN_MS,
    "maximum": TIME_MAX_MS,
    "description": "Milliseconds since 1970, not before the year 2001.",
}
NOT_AFTER: Final[Schema] = {
    **TIME,
    "description": "Refuse it with `too_late` after this time, in milliseconds since 1970; the key stays unused then.",
}
HOLD_ID: Final[Schema] = {"type": "string", "pattern": f"^{POSITION_PATTERN}$", "examples": ["12", "2-12"]}
HOLD: Final[Schema] = {
    "description": "A hold: its id, or the key that opened it.",
    "oneOf": [
        HOLD_ID,
        {"type": "object", "properties": {"key": KEY}, "required": ["key"], "additionalProperties": False},
    ],
}
SEQ: Final[Schema] = {
    "description": "A position: a number in epoch 1, text such as 2-12 in later ones.",
    "oneOf": [{"type": "integer", "minimum": 1, "maximum": 10**18 - 1}, HOLD_ID],
    "examples": [12],
}
EPOCH: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": EPOCH_LIMIT - 1, "description": "Its epoch."}


RELEASE: Final[Schema] = {
    "description": 'What else of the hold goes back to available; "rest" for all that remains.',
    "anyOf": [AMOUNT, {"const": "rest"}],
}
#: The schema of each form; a field that may also be null has :func:`or_null` of it.
SCHEMAS: Final[dict[Form, Schema]] = {
    fields.KEY: KEY,
    fields.CUSTOMER: CUSTOMER,
    fields.OWNER: OWNER,
    fields.HOUSE_NAME: HOUSE_NAME,
    fields.HOUSE_ACCOUNT: {
        "type": "string",
        "pattern": r"^@[a-z][a-z0-9._-]{0,31}$",
        "default": "@fees",
        "description": "The house account that takes the fees and pays the rebates.",
    },
    fields.FLAG: {"type": "boolean", "default": False},
    fields.COIN: COIN,
    fields.SCALE: {"type": "integer", "minimum": 0, "maximum": MAX_SCALE},
    fields.ACCOUNT: ACCOUNT,
    fields.AMOUNT: AMOUNT,
    fields.SIGNED_AMOUNT: SIGNED_AMOUNT,
    fields.REFERENCE: REFERENCE,
    fields.REASON: REFERENCE,
    fields.TIME_MS: TIME,
    fields.NOT_AFTER_MS: NOT_AFTER,
    fields.HOLD: HOLD,
    fields.SEQ: SEQ,
    fields.EPOCH: EPOCH,
    fields.RELEASE: RELEASE,
}


def or_null(schema: Schema) -> Schema:
    """Return the schema of a value that may also be null."""
    if schema in (REFERENCE, TIME, NOT_AFTER):
        return {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


CustomerField = Annotated[Any, Meta(extra_json_schema=CUSTOMER)]
OwnerField = Annotated[Any, Meta(extra_json_schema=OWNER)]
AccountField = Annotated[Any, Meta(extra_json_schema=or_null(ACCOUNT))]
KeyField = Annotated[Any, Meta(extra_json_schema=KEY)]
ChainField = Annotated[
    Any,
    Meta(
        description="Neighbours with the same text succeed or fail together.",
        extra_json_schema={"type": ["string", "null"], "minLength": 1, "maxLength": 64},
    ),
]

_NUMBER: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_POSITION: Final[Schema] = {"type": "string", "pattern": f"^(0|{POSITION_PATTERN})$", "examples": ["12", "2-12"]}

#: The kinds of entries.
KINDS: Final = (*(operation.kind for operation in OPERATIONS), Expire.kind, BEGIN_EPOCH)

#: The parameters of queries; a prefix with a colon distinguishes parameters of the same name.
PARAMETERS: Final[dict[str, Schema]] = {
    "access:actor": {"type": "string", "examples": ["token:3f0e9c1a-2b4d-4c6e-8f10-123456789abc", "key:11111111"]}
    | {"description": "Only lines of this actor; empty for lines without a known credential."},
    "access:address": {"type": "string", "examples": ["192.0.2.7", "2001:db8::/64"]}
    | {"description": "Only lines from this address; an IPv6 address stands for its /64."},
    "access:after": {**_NUMBER, "description": "Where the page starts: the `next` of the page before."},
    "access:from_ms": {**_NUMBER, "description": "Only lines from this minute on, in milliseconds since 1970."},
    "access:to_ms": {**_NUMBER, "description": "Only lines of minutes that began before, in milliseconds since 1970."},
    "find:key": {**KEY, "pattern": f"^ ?[!-~][ -~]{{0,{KEY_MAX_CHARACTERS - 1}}}$"}
    | {"description": "Only the entry with this idempotency key."},
    "find:reference": {**REFERENCE, "description": "Only the entries with this reference."},
    "find:customer": {"type": "string", "pattern": r"^(@[A-Za-z0-9._:-]+|[A-Za-z0-9._-]{1,64})$"}
    | {"description": "Only the entries that change a balance of this customer or house account."},
    "find:coin": {**COIN, "description": "Only the entries that change a balance of this coin."},
    "find:kind": {"enum": list(KINDS), "description": "Only the entries of this kind."},
    "find:actor": {
        "type": "string",
        "pattern": f"^({ACTOR.pattern})$",
        "description": "Only the entries of this actor: token:ID, key:BEGINNING, library or ledger.",
    },
    "statement:account": {**ACCOUNT, "default": None, "description": "Only this account; by default all of them."},
    "bom": {"enum": ["true", "false"], "default": "false"}
    | {"description": "Whether CSV begins with a byte order mark, by which Excel recognises UTF-8."},
    "statement:after_seq": {**_POSITION, "description": "Where the page starts: the `next` of the page before."},
    "find:from_ms": {**_NUMBER, "description": "Only entries booked then or later, in milliseconds since 1970."},
    "find:to_ms": {**_NUMBER, "description": "Only entries booked before, in milliseconds since 1970."},
    "account": ACCOUNT,
    "after": {"type": "string", "description": "Where the page starts: the `next_after` of the page before."},
    "dry_run": {"type": "boolean", "default": False}
    | {"description": "Answer what the write would answer on what is booked now; nothing is kept, and no key is used."},
    "hold:after": {**_POSITION, "description": "Where the page starts: the `next_after` of the page before."},
    "after_seq": {**_POSITION, "default": "0", "description": "Only entries after this one."},
    "at_ms": {**_NUMBER, "description": "As of this time, in milliseconds since 1970; not in the future."},
    "at_seq": {**_POSITION, "description": "As of this entry."},
    "coin": {**COIN, "description": "Only entries that touch this coin."},
    "customer": {**CUSTOMER, "description": "Only this customer's."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 10**18 - 1, "default": 1000}
    | {"description": "The maximum length of the page; above 1000 it counts as 1000."},
    "min_seq": {**_POSITION, "description": "Wait up to 5 seconds until the journal has this entry."},
    "older_than_ms": {**_NUMBER, "description": "Only holds that were opened at least this many milliseconds ago."},
    "state": {"enum": ["open", "closed"], "description": "Only holds in this state."},
}
#: The parameters of paths.
PATH_PARAMETERS: Final[dict[str, Schema]] = {
    "accesskey": {"type": "string", "minLength": 1},
    "audit": {"type": "string", "minLength": 1},
    "customer": {"type": "string", "minLength": 1, "examples": ["alice"]},
    "file": {"type": "string", "minLength": 1},
    "hold": HOLD_ID,
    "name": {"type": "string", "minLength": 1, "examples": ["customer-alice"]},
    "seq": HOLD_ID,
    "token_id": {"type": "string", "minLength": 1},
}

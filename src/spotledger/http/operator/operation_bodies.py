"""
The bodies that ask for an operation, derived from the fields of its class.

A struct has the fields that a body may and must have; it also describes the body in the OpenAPI document. The values
are checked by the operation that is made of them, whose refusals name the field. So the same rules hold however a value
arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from spotledger.domain.fields import HOLD, KEY, LEGS, LEGS_MAX, LEGS_MIN, Field, HoldKey, HoldName, fields_of
from spotledger.domain.operations import OPERATIONS, Described, Operation, SettleSide, Unfreeze
from spotledger.errors import InvalidRequest
from spotledger.http.operator.bodies import Body
from spotledger.http.operator.fields import SCHEMAS, AccountField, OwnerField, or_null
from spotledger.paths import HOLD_RELEASE, of_collection

#: Bodies that are not called after the collection that they are sent to.
_NAMES: Final[Mapping[type[Any], str]] = {SettleSide: "SideBody", Unfreeze: "UnfreezeBody"}


# --- what is made of a body -------------------------------------------------------------------------


def hold_name(value: object, field: str = "hold") -> HoldName:
    """Return the hold that *value* names: its id as text, or ``{"key": K}``."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1 and "key" in value:
        return HoldKey(value["key"])
    raise InvalidRequest(f'{field} is malformed; its id as a string, or {{"key": "…"}}, would pass', field=field)


def _maker_of(kind: type[Described], of_path: str) -> Callable[..., Operation]:
    """
    Return the function that makes an operation of its key, the struct of a body, and the value of the field *of_path*.

    Like the ``__init__`` of a data class, it is compiled from text, which names only fields of the class.
    """
    names: dict[str, Any] = {"hold_name": hold_name, kind.__name__: kind}
    values = [
        field.name if field.form is KEY or field.name == of_path else _value(field, "body", "", names)
        for field in fields_of(kind)
    ]
    text = f"lambda key, body, {of_path or '_'}=None: {kind.__name__}({', '.join(values)})"
    made: Callable[..., Operation] = eval(text, names)  # noqa: S307 - made of the names of our own fields
    return made


def _value(field: Field, source: str, prefix: str, names: dict[str, Any]) -> str:
    """Return the text that reads *field* from the struct *source*, which messages call *prefix*; add to its *names*."""
    end, dot, inner = field.place.partition(".")
    value = f"{source}.{end}_.{inner}" if dot else f"{source}.{field.name}"
    place = prefix + field.place
    if field.form is HOLD:
        made = f"{value} if type({value}) is str else hold_name({value}, {place!r})"
    elif field.form is LEGS and field.parts is not None:
        names[field.parts.__name__] = field.parts
        parts = [_value(part, "leg", "", names) for part in fields_of(field.parts)]
        made = f"[{field.parts.__name__}({', '.join(parts)}) for leg in {value}]"
    elif field.parts is not None:
        names[field.parts.__name__] = field.parts
        parts = [_value(part, value, f"{place}.", names) for part in fields_of(field.parts)]
        made = f"{field.parts.__name__}({', '.join(parts)})"
    else:
        return value
    return f"(None if {value} is None else {made})" if field.takes_none else f"({made})"


class OperationBody(NamedTuple):
    """
    The body that asks for one operation.

    The body is decoded into ``struct``. ``make`` returns the operation. It takes the idempotency key, which was checked
    before, the decoded struct and, if the path of the call names a field, the value of that field. It raises
    InvalidRequest if a value is wrong.
    """

    kind: type[Described]
    struct: type[Body]
    make: Callable[..., Operation]


# --- how it is described ----------------------------------------------------------------------------


class AccountBody(Body):
    """One end of a transfer."""

    customer: OwnerField
    account: AccountField = None


_STRUCTS: Final[dict[type[Any], type[Body]]] = {}


def _struct(name: str, fields: Iterable[Field], about: str) -> type[Body]:
    """Return the struct of a body with these *fields*."""
    members: dict[str, Any] = {}
    names = {}
    for field in fields:
        end, dot, _ = field.place.partition(".")
        if dot:
            members[end] = (f"{end}_", AccountBody)
            names[f"{end}_"] = end
        elif field.is_required:
            members[field.name] = (field.name, _type_of(field))
        else:
            members[field.name] = (field.name, _type_of(field), field.default)
    about_it = {"__doc__": about}
    made: Any = msgspec.defstruct(
        name, [*members.values()], bases=(Body,), namespace=about_it, rename=names, kw_only=True
    )
    return made  # type: ignore[no-any-return]


def _type_of(field: Field) -> Any:
    """Return the type of *field* in a struct: any value, described by its schema, or the struct of its parts."""
    if field.parts is None:
        schema = SCHEMAS[field.form]
        return Annotated[Any, Meta(extra_json_schema=or_null(schema) if field.takes_none else schema)]
    if field.parts not in _STRUCTS:
        name = _NAMES.get(field.parts, f"{field.parts.__name__}Body")
        _STRUCTS[field.parts] = _struct(name, fields_of(field.parts), about(field.parts))
    struct: Any = _STRUCTS[field.parts]
    if field.form is LEGS:
        return Annotated[list[struct], Meta(extra_json_schema={"minItems": LEGS_MIN, "maxItems": LEGS_MAX})]
    return struct | None if field.takes_none else struct


def about(kind: type[Any]) -> str:
    """Return what *kind* is, or what operations of it do: the first paragraph of its docstring."""
    return " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())


def path_of(kind: type[Described]) -> str:
    """Return the path under which the operator API takes operations of *kind*."""
    return of_collection(kind.collection)


def in_short(kind: type[Described]) -> str:
    """Return what operations of *kind* do, as the rest of a sentence."""
    text = about(kind).partition(". ")[0].rstrip(".")
    return f"{text[0].lower()}{text[1:]}."


def _body_of(kind: type[Described], name: str, about: str, of_path: str = "") -> OperationBody:
    """Return the body of *kind*; the path of the call names its field *of_path*, if any."""
    fields = [field for field in fields_of(kind) if field.form is not KEY and field.name != of_path]
    return OperationBody(kind, _struct(name, fields, about), _maker_of(kind, of_path))


#: The body of each operation that a caller can ask for, by its class.
BODIES: Final = {
    kind: _body_of(
        kind,
        _NAMES.get(kind, f"{kind.collection.removesuffix('s').title().replace('-', '')}Body"),
        f"``POST {path_of(kind)}``: {in_short(kind)}",
    )
    for kind in OPERATIONS
}
#: The body of a release whose path names the hold.
RELEASE_BODY: Final = _body_of(
    Unfreeze,
    "ReleaseBody",
    f"``POST {HOLD_RELEASE}``: releases *amount*, or by default all that remains.",
    of_path="hold",
)


def example_of(kind: type[Described]) -> dict[str, Any]:
    """Return a body that asks for an operation of *kind*: its own example, or one of the required fields."""
    if kind.example is not None:
        return dict(kind.example)
    example: dict[str, Any] = {}
    for field in fields_of(kind):
        end, _, place = field.place.partition(".")
        if field.is_required and field.form is not KEY:
            (example.setdefault(end, {}) if place else example)[place or end] = field.form.example
    return example

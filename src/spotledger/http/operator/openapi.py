"""
The OpenAPI 3.1 document of the operator API, made from its routes and the structs of its bodies and answers.

Nothing is described twice: a route names its scope, query, body and answer. A fuzzing test sends requests that the
document allows, and requests that it does not, to the API.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from spotledger import __version__, errors
from spotledger.domain.operations import OPERATIONS, Settle
from spotledger.http import wire
from spotledger.http.operator.answers import Answer, Epoch, Seq
from spotledger.http.operator.batches import BatchBody, RefusedResult
from spotledger.http.operator.bodies import KeyBody, TokenBody
from spotledger.http.operator.calls import JSON_MEDIA_TYPE, KEY_HEADER, REPLAYED_HEADER, Call, Endpoint
from spotledger.http.operator.credentials.master_key import RotateMasterKeyBody
from spotledger.http.operator.feed import EVENT_STREAM_MEDIA_TYPE
from spotledger.http.operator.fields import KEY, PARAMETERS, PATH_PARAMETERS, Schema
from spotledger.http.operator.operation_bodies import BODIES, RELEASE_BODY, example_of
from spotledger.paths import OPERATOR_PREFIX

_REFERENCES: Final = "#/components/schemas/{name}"
#: The sections that come first; the others follow in the order of the mapping.
_FIRST_SECTIONS: Final = ("Coins and customers", "Holds")
#: The section of each collection; any other is about running the service.
_SECTIONS: Final = {
    **{kind.collection: kind.section for kind in OPERATIONS},
    "batches": "Batches",
    "entries": "The journal",
    "trial-balance": "The journal",
    "audits": "The journal",
    "keys": "Access keys and tokens",
    "tokens": "Access keys and tokens",
    "locks": "Access keys and tokens",
    "access-log": "Access keys and tokens",
    "backups": "Running it",
    "clock": "Running it",
}
DESCRIPTION: Final = """\
The exchange's own systems move money through this API, and read everything about it. Amounts are decimal text, never
JSON numbers.

Every write has an `Idempotency-Key`, which is unique for ever. The same request with the same key gets the first answer
again, with `Idempotency-Replayed: true`; the same key with other content is a conflict. So if an answer is lost, send
the same request again. A batch needs no such header: its operations have keys of their own.

Every write answers with its `seq`, its position in the journal, and every read with the `seq` that it stands for. A
read with `min_seq` waits until the journal has that entry. Each restore from a backup begins a new epoch, because it
gives numbers again: a position is `EPOCH-SEQ`, and a plain number means epoch 1. Holds, `next`, the ids of events and
the header `X-Ledger-Position` are positions. One that is not in this journal is refused with `epoch_missing` or
`unknown_position`, whose `last_common` says from where a follower has to undo. Releases, withdrawals from a hold, sides
of a fill and reversals take `customer`, `coin` and `epoch` as preconditions of what they name.
"""


#: One example of each body.
EXAMPLES: Final[dict[type[msgspec.Struct], dict[str, Any]]] = {
    **{body.struct: example_of(kind) for kind, body in BODIES.items()},
    RELEASE_BODY.struct: {"amount": "1000"},
    RotateMasterKeyBody: {"fingerprint": "7c89d25bf484f39bf7d0ea97df0bc0e4"},
    BatchBody: {
        "operations": [
            {
                "op": "freeze",
                "key": "order-7",
                "customer": "alice",
                "coin": "usdt",
                "amount": "33000",
                "chain": "trade-1",
            },
            {"op": "freeze", "key": "order-8", "customer": "bob", "coin": "btc", "amount": "0.5", "chain": "trade-1"},
            {"op": "settle", "key": "trade-1", "chain": "trade-1", **example_of(Settle)},
            {"op": "unfreeze", "key": "cancel-9", "hold": "4711"},
        ],
        "atomic": False,
    },
    KeyBody: {"customer": "alice", "permissions": ["read"], "label": "bot", "addresses": ["192.0.2.0/24"]},
    TokenBody: {"scopes": ["ledger:read", "ledger:write"], "label": "matching engine", "addresses": ["10.0.0.0/8"]},
}


class Problem(Answer):
    """Why a call failed (RFC 9457); ``code`` is stable. A refusal that the journal keeps has its seq and epoch."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Meta(description="See the page of errors for what to do about it.")]
    request_id: str
    field: Annotated[str, Meta(description="The field, parameter or header that is wrong.")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    seq: Seq | msgspec.UnsetType = msgspec.UNSET
    epoch: Epoch | msgspec.UnsetType = msgspec.UNSET


def document(routes: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI document of *routes*."""
    found = [(route.path, method, call) for route, method, call in _calls(routes)]
    structs = {kind for _, _, call in found for kind in (call.takes, call.gives) if kind is not None}
    structs |= {Problem, RefusedResult}
    ordered = sorted(structs, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCES)
    paths: dict[str, dict[str, Any]] = {}
    for path, method, call in found:
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, call)
    return {
        "openapi": "3.1.0",
        "info": {"title": "spotledger operator API", "version": __version__, "description": DESCRIPTION},
        "security": [{"token": []}],
        "tags": [{"name": name} for name in dict.fromkeys((*_FIRST_SECTIONS, *_SECTIONS.values()))],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: _plain(schema) for name, schema in sorted(components.items())},
            "securitySchemes": {"token": _SECURITY},
        },
    }


_SECURITY: Final[Schema] = {
    "type": "http",
    "scheme": "bearer",
    "description": "An operator token of 64 hex digits. The first one is in operator.token in the data folder.",
}


def _calls(routes: Iterable[Endpoint]) -> Iterator[tuple[Endpoint, str, Call]]:
    for route in routes:
        for method, call in route.calls.items():
            if method != "HEAD" and not call.page:
                yield route, method, call


def _operation(path: str, method: str, call: Call) -> dict[str, Any]:
    section = _SECTIONS.get(path.split("/")[2] if path.startswith(f"{OPERATOR_PREFIX}/") else "", "Running it")
    about = _about(call)
    summary, _, rest = about.partition(". ")
    operation: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{method} {path.removeprefix(OPERATOR_PREFIX)}".lower()).strip("_"),
        "tags": [section],
        "summary": summary.rstrip("."),
        "parameters": [*_path_parameters(path), *_query_parameters(call), *_headers(call)],
        "responses": _responses(path, call),
    }
    needs = f"Scope: `{call.scope}`." if call.scope else "Any token will do." if call.guarded else "Needs no token."
    operation["description"] = f"{rest} {needs}".strip()
    if not call.guarded:
        operation["security"] = []
    if call.takes is not None:
        operation["requestBody"] = _request_body(call.takes)
    return operation


def _about(call: Call) -> str:
    made = call.about or inspect.getdoc(call.write or call.read) or ""
    return " ".join(made.split())


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name]}


def _query_parameters(call: Call) -> Iterator[dict[str, Any]]:
    for name in call.query:
        schema = dict(PARAMETERS[name])
        description = schema.pop("description")
        yield {"name": name.rpartition(":")[2], "in": "query", "description": description, "schema": schema}


def _headers(call: Call) -> Iterator[dict[str, Any]]:
    if call.write is not None and call.needs_key:
        yield {"name": KEY_HEADER, "in": "header", "required": True, "description": KEY["description"], "schema": KEY}
    if call.streams:
        description = "For server-sent events only: the last entry received; it takes precedence over `after_seq`."
        yield {"name": "Last-Event-ID", "in": "header", "description": description, "schema": {"type": "string"}}


def _request_body(takes: type[msgspec.Struct]) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": _reference(takes)}
    if takes in EXAMPLES:
        media["example"] = EXAMPLES[takes]
    needed = any(field.required for field in msgspec.structs.fields(takes))
    return {"required": needed, "content": {JSON_MEDIA_TYPE: media}}


def _responses(path: str, call: Call) -> dict[str, Any]:
    keyed = call.write is not None and call.needs_key
    good: dict[str, Any] = {"description": "Done." if call.takes else "Found.", "headers": dict(_REQUEST_ID)}
    if keyed:
        good["headers"][REPLAYED_HEADER] = {
            "description": "`true` if this repeats the first answer.",
            "schema": {"enum": ["true"]},
        }
    content = {call.media_type: {"schema": _reference(call.gives) if call.gives else {}}}
    if call.also is not None:
        content[call.also] = {"schema": {"type": "string"}}
    if call.streams:
        content[EVENT_STREAM_MEDIA_TYPE] = {"schema": {"type": "string"}}
    good["content"] = content
    responses: dict[str, Any] = {str(status): good for status in call.statuses}
    for status in _problem_statuses(path, call, keyed):
        codes = ", ".join(f"`{code}`" for code in codes_of_status(status))
        responses[str(status)] = _problem(f"{_MEANING[status]} Codes: {codes}.")
    return responses


def _problem_statuses(path: str, call: Call, keyed: bool) -> Iterator[int]:
    if call.takes is not None:
        yield 400
    if call.guarded:
        yield 401
    if call.scope is not None:
        yield 403
    if "{" in path:
        yield 404
    if keyed:
        yield 409
    if call.guarded:
        yield 422
    yield 500
    yield 503


_MEANING: Final = {
    400: "The request cannot be read.",
    401: "The token is missing, unknown, revoked, expired, or not for this address.",
    403: "The token lacks the scope.",
    404: "There is nothing with this path or id.",
    405: "The path takes another method.",
    409: "The key was used before with other content; `field` names the difference.",
    422: "A field is unknown, missing or wrong, or the ledger refuses the operation.",
    500: "An unexpected error; the log has it under the request id.",
    503: "Busy or unavailable: try again, with the same key.",
}
_REQUEST_ID: Final = {
    "X-Request-Id": {"description": "The id of the request in the log.", "schema": {"type": "string"}}
}


def _problem(description: str) -> dict[str, Any]:
    content = {wire.PROBLEM_MEDIA_TYPE: {"schema": _reference(Problem)}}
    return {"description": description, "headers": dict(_REQUEST_ID), "content": content}


def codes_of_status(status: int) -> list[str]:
    """Return the codes that problems with this HTTP status may have in the operator API."""
    answered = (errors.Refused, errors.TokenRefused, errors.ScopeMissing, errors.Unavailable)
    found = [
        kind.code
        for kind, row in wire.TABLE.items()
        if row.status == status and (issubclass(kind, answered) or kind is errors.SpotledgerError)
    ]
    return sorted(set(found) - {errors.LimitExceeded.code})


def _reference(kind: type[msgspec.Struct]) -> Schema:
    return {"$ref": _REFERENCES.format(name=kind.__name__)}


def _plain(schema: Mapping[str, Any]) -> Schema:
    """Return *schema* with its description in Markdown."""
    description = str(schema.get("description", "")).replace("``", "`")
    return {**schema, "description": " ".join(description.split())} if description else dict(schema)

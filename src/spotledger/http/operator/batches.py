"""
``POST /v1/batches``: many operations in one request, each with its own key and its own result.

The body is decoded and the answer encoded piece by piece, so that a large batch does not block the event loop. If one
operation is malformed, nothing of the batch is done, and the refusal names the operation and its field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, Union

import msgspec
from msgspec import UNSET, Meta, UnsetType

from spotledger import paths
from spotledger.domain.operations import Operation
from spotledger.errors import InvalidRequest, MalformedRequest, Refused
from spotledger.http.h1.request import Reply
from spotledger.http.operator.answers import Answer, CoinTexts, DryRun, Epoch, Seq, WriteAnswer, write_answer
from spotledger.http.operator.batch_body import BATCH_LIMIT, PIECE_OPERATIONS, BatchReader
from spotledger.http.operator.bodies import Body, check_names_once, has_names_once, refusal_of
from spotledger.http.operator.calls import (
    DRY_RUN,
    LEDGER_WRITE,
    Call,
    Caller,
    Endpoint,
    TokenCheck,
    Write,
    is_dry_run,
    json_answer,
    route,
)
from spotledger.http.operator.credentials.scopes import check_scopes
from spotledger.http.operator.fields import ChainField, KeyField
from spotledger.http.operator.operation_bodies import BODIES, OperationBody, in_short
from spotledger.ledger.group import CHAIN_LIMIT
from spotledger.ledger.ledger import Outcome
from spotledger.ledger.writer import Writer

BATCH_BODY_LIMIT_BYTES: Final = 8 * 1024 * 1024
CHAIN_MAX_CHARACTERS: Final = 64
#: Postings that are encoded before other tasks may run, or those of one operation.
PIECE_POSTINGS: Final = 1_000

_encode = msgspec.json.Encoder().encode


def _in_batch(body: OperationBody) -> type[msgspec.Struct]:
    """Return the struct of a *body* in a batch: with the name of its operation, a key and a chain."""
    op = body.kind.kind
    return msgspec.defstruct(
        f"{op.title().replace('_', '')}Operation",
        [("key", KeyField), ("chain", ChainField, None)],
        bases=(body.struct,),
        namespace={"__doc__": f"``{op}`` in a batch: {in_short(body.kind)}"},
        tag_field="op",
        tag=op,
        kw_only=True,
    )


_BODIES: Final = [body for body in BODIES.values() if body.kind.in_batch]
_STRUCTS: Final[dict[str, Any]] = {body.kind.kind: _in_batch(body) for body in _BODIES}
#: By struct: make the operation that one in a batch asks for.
_MAKE: Final = dict(zip(_STRUCTS.values(), [body.make for body in _BODIES], strict=True))
if TYPE_CHECKING:
    BatchOperation: TypeAlias = Any
else:
    BatchOperation = Union[tuple(_STRUCTS.values())]  # noqa: UP007 - made of a tuple
_decode_operation = msgspec.json.Decoder(BatchOperation).decode
_decode_operations = msgspec.json.Decoder(list[BatchOperation]).decode


class BatchBody(Body):
    """``POST /v1/batches``: operations in order; later ones see the effects of earlier ones."""

    operations: Annotated[list[BatchOperation], Meta(max_length=BATCH_LIMIT)]
    atomic: Annotated[
        bool, Meta(description=f"Whether all operations succeed or fail together; then {CHAIN_LIMIT} at most.")
    ] = False


class RefusedResult(Answer):
    """The refusal of one operation of a batch, with facts about it; kept refusals have a seq and an epoch."""

    code: str
    detail: str
    field: str | UnsetType = UNSET
    seq: Seq | UnsetType = UNSET
    epoch: Epoch | UnsetType = UNSET
    replayed: bool | UnsetType = UNSET
    dry_run: DryRun | UnsetType = UNSET


_RESULT: Final = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("WriteAnswer", "RefusedResult")]}


class BatchAnswer(Answer):
    """One result per operation, in order."""

    results: list[Annotated[Any, Meta(extra_json_schema=_RESULT)]]
    dry_run: DryRun | UnsetType = UNSET


class BatchCalls:
    """The call for many operations at once."""

    def __init__(self, writer: Writer, texts: CoinTexts) -> None:
        self._texts = texts
        self._writer = writer

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        batch = Call(
            LEDGER_WRITE,
            write=self.batch,
            needs_key=False,
            body_limit=BATCH_BODY_LIMIT_BYTES,
            takes=BatchBody,
            gives=BatchAnswer,
            query=(DRY_RUN,),
        )
        return [route(token_check, paths.BATCHES, POST=batch)]

    async def batch(self, call: Write) -> Reply:
        """Execute operations in order, each by itself, in chains, or all or nothing, and return one result each."""
        dry_run = is_dry_run(call.request)
        operations, chains, atomic = await _read(call.body, call.caller)
        outcomes: list[Outcome] = []
        if operations:
            execute = self._writer.dry_runs.execute if dry_run else self._writer.submit
            outcomes = await execute(operations, chains, atomic=atomic, actor=call.caller.actor)
        return json_answer(await self._written(outcomes, dry_run))

    async def _written(self, outcomes: Sequence[Outcome], dry_run: bool) -> bytes:
        """Return the encoded results; other tasks may run between two pieces."""
        await self._texts.labels.learn(outcome.entry for outcome in outcomes if not isinstance(outcome, Refused))
        pieces: list[bytes] = []
        for piece in _in_pieces(outcomes):
            if pieces:
                await asyncio.sleep(0)
            pieces.append(_encode([_result(outcome, self._texts, dry_run) for outcome in piece])[1:-1])
        return b'{"results":[' + b",".join(pieces) + (b'],"dry_run":true}' if dry_run else b"]}")


def _in_pieces(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """Yield *outcomes* in pieces that are encoded in a few milliseconds each."""
    piece: list[Outcome] = []
    postings = 0
    for outcome in outcomes:
        piece.append(outcome)
        postings += 0 if isinstance(outcome, Refused) else len(outcome.entry.moves)
        if len(piece) == PIECE_OPERATIONS or postings >= PIECE_POSTINGS:
            yield piece
            piece, postings = [], 0
    if piece:
        yield piece


async def _read(body: bytes, caller: Caller) -> tuple[list[Operation], list[str | None] | None, bool]:
    """Return the operations of a batch that *caller* may ask for, their chains if any, and whether it is atomic."""
    operations: list[Operation] = []
    chains: list[str | None] = []
    reader = BatchReader(body)
    for piece in reader.pieces():
        start = len(operations)
        found = _sound(b"[" + b",".join(piece) + b"]")
        for index, operation in enumerate(_one_by_one(piece, start) if found is None else found, start):
            try:
                operations.append(_MAKE[type(operation)](operation.key, operation))
                chains.append(None if operation.chain is None else _chain(operation.chain))
            except InvalidRequest as refusal:
                raise _placed(refusal, index) from None
        check_scopes(operations[start:], caller.scopes)
        await asyncio.sleep(0)
    return operations, chains if any(chains) else None, reader.atomic


def _sound(text: bytes) -> list[BatchOperation] | None:
    """Return the operations of a piece, decoded together, or None if one of them may be malformed."""
    try:
        found = _decode_operations(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if has_names_once(text, found) else None


def _one_by_one(piece: Sequence[bytes], start: int) -> Iterator[BatchOperation]:
    """Yield the operations of a piece, each decoded by itself, so that a refusal names its place."""
    for index, text in enumerate(piece, start):
        try:
            found = _decoded(text)
            if not has_names_once(text, found):
                check_names_once(text)
        except InvalidRequest as refusal:
            raise _placed(refusal, index) from None
        yield found


def _decoded(text: bytes) -> BatchOperation:
    try:
        try:
            found: BatchOperation = _decode_operation(text)
        except msgspec.ValidationError as problem:
            raise _refusal(str(problem), msgspec.json.decode(text)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a number that is too large, too
        raise MalformedRequest("not JSON in UTF-8; an operation would pass") from None
    return found


def _refusal(problem: str, document: dict[str, Any]) -> InvalidRequest:
    """Return the refusal of an operation, the *document*, for a message of msgspec."""
    op = document.get("op")
    if not isinstance(op, str) or op not in _STRUCTS:
        known = ", ".join(_STRUCTS)
        shown = repr(op)[:70] if "op" in document else "missing"
        return InvalidRequest(f"op is {shown}; one of {known} would pass", field="op")
    return refusal_of(problem, _STRUCTS[op])


def _chain(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= CHAIN_MAX_CHARACTERS):
        return value
    raise InvalidRequest(
        f"chain is malformed; a string of 1 to {CHAIN_MAX_CHARACTERS} characters would pass", field="chain"
    )


def _placed(refusal: InvalidRequest, index: int) -> InvalidRequest:
    """Return *refusal*, of the same class, with the place of the operation that it is about."""
    field = refusal.details.get("field")
    place = f"operations[{index}].{field}" if field else f"operations[{index}]"
    details = {**refusal.details, "field": place, "index": index}
    return type(refusal)(f"operations[{index}]: {refusal.message}", **details)


def _result(outcome: Outcome, texts: CoinTexts, dry_run: bool) -> WriteAnswer | dict[str, Any]:
    if isinstance(outcome, Refused):
        result = {**outcome.details, "code": outcome.code, "detail": outcome.message}
        if outcome.seq is not None:
            result |= {"seq": outcome.seq, "epoch": outcome.epoch}
        if outcome.replayed:
            result["replayed"] = True
        return result | {DRY_RUN: True} if dry_run else result
    answer = write_answer(outcome.entry, outcome.hold, texts)
    if outcome.replayed:
        answer.replayed = True
    if dry_run:
        answer.dry_run = True
    return answer

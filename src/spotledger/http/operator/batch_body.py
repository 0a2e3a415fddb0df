"""
The body of a batch, cut into its operations without decoding it, so that no body keeps the event loop busy.

A decoder makes an object for every number of eight megabytes before anyone can look at a limit. Here the limits are
looked at first: a pattern finds where an operation ends, and what it leaves is decoded a few operations at a time. The
pattern finds the same ends as any JSON reader, because it counts brackets outside strings; what is between them is
checked when it is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator.bodies import BEFORE_MEMBER, VALUES_LIMIT, has_too_many_values

BATCH_LIMIT: Final = 10_000
#: Operations that are decoded, or results that are encoded, before other tasks may run.
PIECE_OPERATIONS: Final = 100
#: What one operation, and the operations that are decoded together, may be long.
OPERATION_LIMIT_BYTES: Final = 256 * 1024
PIECE_BYTES: Final = 128 * 1024

#: How deep brackets may be nested in an operation; none has more than three levels.
_DEPTH: Final = 8
_STRING: Final = rb'"(?>[^"\\]++|\\.)*+"'


def _nested(depth: int) -> bytes:
    """Return the pattern of a list or an object with up to *depth* levels."""
    inner = b"|" + _nested(depth - 1) if depth > 1 else b""
    return rb'[\[{](?>[^][{}"]++|' + _STRING + inner + rb")*+[]}]"


_OPERATION: Final = re.compile(_nested(_DEPTH), re.DOTALL)
_NAME: Final = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_SCALAR: Final = re.compile(rb'[^][{},"\s]{1,64}+')
_BLANK: Final = re.compile(rb"[ \t\r\n]*+")
#: What begins a JSON value that is no object.
_OTHER_VALUES: Final = [b"[", b'"', b"-", b"t", b"f", b"n", *(b"%d" % digit for digit in range(10))]
_NOT_JSON: Final = "The body is not JSON; one JSON object in UTF-8 would pass."


#: A body up to these bounds is cut at once: its length, its values, and its blanks.
SHORT_BYTES: Final = 256 * 1024
SHORT_VALUES: Final = 20_000
SHORT_BLANKS: Final = 32 * 1024
_BLANKS: Final = (b" ", b"\t", b"\r", b"\n")


class _ShortBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A batch whose operations are not decoded."""

    operations: list[msgspec.Raw]
    atomic: bool = False


_decode_short: Final = msgspec.json.Decoder(_ShortBody).decode


def _is_usual(value: bytes) -> bool:
    """Return whether *value*, an element of the list of operations, is an object, and within the bounds of one."""
    return (
        value.startswith(b"{")
        and (value.count(b"{") + value.count(b"[") <= _DEPTH or _OPERATION.fullmatch(value) is not None)
        and not has_too_many_values(value)
    )


class BatchReader:
    """
    Reads the *body* of a batch.

    :meth:`pieces` yields its operations; after the last one :attr:`atomic` is known.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self.atomic = False

    def pieces(self) -> Iterator[list[bytes]]:
        """
        Yield the operations, each as it was sent, a bounded number at a time.

        Raises:
            MalformedRequest: The body is not JSON.
            InvalidRequest: A member is unknown, missing, wrong or given twice, or there are too many operations.
        """
        operations = self._cut_at_once()
        if operations is not None:
            for start in range(0, len(operations), PIECE_OPERATIONS):
                yield operations[start : start + PIECE_OPERATIONS]
            return
        self._begin()
        seen: set[str] = set()
        while not self._passes(b"}"):
            if seen:
                self._expect(b",")
            name = self._name()
            if name in seen:
                raise InvalidRequest(f"{name} is used twice in one object; once would pass", field=name)
            seen.add(name)
            if name == "operations":
                yield from self._operations()
            elif name == "atomic":
                self.atomic = self._flag()
            else:
                raise InvalidRequest(
                    f"{name[:64]} is not a field of this body; its fields are: operations, atomic", field=name[:64]
                )
        self._skip_blanks()
        if self._at < len(self._body):
            raise MalformedRequest(_NOT_JSON)
        if "operations" not in seen:
            raise InvalidRequest("operations is missing", field="operations")

    def _cut_at_once(self) -> list[bytes] | None:
        """
        Return the operations of a short body of the usual form, or None.

        Without a backslash each name is written in one way, so none is there twice if it is found once. Few values are
        cut in a millisecond, and without many blanks none of the operations is too long.
        """
        body = self._body
        if (
            len(body) > SHORT_BYTES
            or sum(map(body.count, BEFORE_MEMBER)) > SHORT_VALUES
            or sum(map(body.count, _BLANKS)) > SHORT_BLANKS
            or b"\\" in body
            or body.count(b'"operations"') > 1
            or body.count(b'"atomic"') > 1
        ):
            return None
        try:
            found = _decode_short(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        operations = [bytes(operation) for operation in found.operations]
        if len(operations) > BATCH_LIMIT or not all(map(_is_usual, operations)):
            return None
        self.atomic = found.atomic
        return operations

    def _begin(self) -> None:
        """Pass the bracket that opens the body."""
        if not self._passes(b"{"):
            if self._body[self._at : self._at + 1] in _OTHER_VALUES:
                raise InvalidRequest("The body is not an object; one JSON object would pass.", field="body")
            raise MalformedRequest(_NOT_JSON)

    def _operations(self) -> Iterator[list[bytes]]:
        """Yield the operations of the list that begins here."""
        if not self._passes(b"["):
            raise InvalidRequest("operations is malformed; a list of operations would pass", field="operations")
        count = 0
        piece: list[bytes] = []
        size = 0
        while not self._passes(b"]"):
            if count:
                self._expect(b",")
            if count == BATCH_LIMIT:
                raise InvalidRequest(
                    f"operations has more than {BATCH_LIMIT} of them; that many would pass", field="operations"
                )
            operation = self._operation(count)
            count += 1
            piece.append(operation)
            size += len(operation)
            if len(piece) == PIECE_OPERATIONS or size > PIECE_BYTES:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece

    def _operation(self, index: int) -> bytes:
        self._skip_blanks()
        start = self._at
        place = f"operations[{index}]"
        if self._body[start : start + 1] != b"{":
            if self._body[start : start + 1] in (b"", b",", b"]", b"}"):
                raise MalformedRequest(_NOT_JSON)
            raise InvalidRequest(f"{place}: not a JSON object; an operation would pass", field=place, index=index)
        found = _OPERATION.match(self._body, start, start + OPERATION_LIMIT_BYTES)
        if found is None:
            raise MalformedRequest(
                f"{place} does not end within {OPERATION_LIMIT_BYTES} bytes, or is nested too deeply;"
                " one operation in JSON would pass.",
                field=place,
                index=index,
            )
        if has_too_many_values(found[0]):
            raise MalformedRequest(
                f"{place} has more than {VALUES_LIMIT} values; an operation has far fewer.", field=place, index=index
            )
        self._at = found.end()
        return found[0]

    def _flag(self) -> bool:
        found = _SCALAR.match(self._body, self._at)
        if found is None or found[0] not in (b"true", b"false"):
            raise InvalidRequest("atomic is malformed; true or false would pass", field="atomic")
        self._at = found.end()
        return found[0] == b"true"

    def _name(self) -> str:
        """Return the name of the member that begins here, unescaped."""
        found = _NAME.match(self._body, self._at, self._at + OPERATION_LIMIT_BYTES)
        if found is None:
            raise MalformedRequest(_NOT_JSON)
        self._at = found.end()
        try:
            return msgspec.json.decode(found[1], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise MalformedRequest(_NOT_JSON) from None

    def _skip_blanks(self) -> None:
        found = _BLANK.match(self._body, self._at)
        assert found is not None  # noqa: S101
        self._at = found.end()

    def _passes(self, mark: bytes) -> bool:
        """Pass *mark* if it is next, and say whether it was."""
        self._skip_blanks()
        if not self._body.startswith(mark, self._at):
            return False
        self._at += 1
        return True

    def _expect(self, mark: bytes) -> None:
        """Pass *mark*, or refuse the body."""
        if not self._passes(mark):
            raise MalformedRequest(_NOT_JSON)

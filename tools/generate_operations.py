"""
Generate the operations of the client, and the methods for them, from the operations of the domain.

The client loads no code of the server, so it has classes of its own. `make generate` writes the files; with ``--check``
they are only compared, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from spotledger.domain import fields as forms
from spotledger.domain.fields import Field, Form, fields_of
from spotledger.domain.operations import OPERATIONS, Described, Leg, SettleSide

SOURCE: Final = Path(__file__).resolve().parents[1] / "src/spotledger"
HEADER: Final = "# Generated from domain/operations.py by tools/{script} (`make generate`). Do not edit.\n\n"

#: The types of forms in the client; any other is a text.
CLIENT_TYPES: Final[dict[Form, str]] = {
    **dict.fromkeys((forms.SCALE, forms.TIME_MS, forms.NOT_AFTER_MS, forms.EPOCH), "int"),
    **dict.fromkeys((forms.AMOUNT, forms.RELEASE), "Amount"),
    forms.FLAG: "bool",
    forms.HOLD: "HoldName",
    forms.SEQ: "Position",
    forms.COIN_AMOUNT: "CoinAmount",
    forms.FEE: "CoinAmount",
    forms.SIDE: "SettleSide",
    forms.LEGS: "Sequence[Leg]",
    forms.SIGNED_AMOUNT: "Amount",
}
#: Those of the library, where an amount is decimal text, and a hold may be given as the number that a receipt has.
LIBRARY_TYPES: Final[dict[Form, str]] = {
    **dict.fromkeys((forms.SCALE, forms.TIME_MS, forms.NOT_AFTER_MS, forms.EPOCH), "int"),
    forms.FLAG: "bool",
    forms.HOLD: "HoldName | int",
    forms.SEQ: "int | str",
    forms.SIDE: "SettleSide",
    forms.LEGS: "Sequence[Leg]",
}

CLIENT: Final = '''\
"""
The operations of the operator API, one class each, with the names of the library.

Amounts are decimal text or ``Decimal``. How an operation becomes a request is in ``operation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from spotledger.client.operator.operation import (
    Amount as Amount, CoinAmount as CoinAmount, HoldKey as HoldKey, HoldName as HoldName, Operation as Operation, Part,
    Position as Position,
)
from spotledger.paths import of_collection
'''
CLIENT_CALLS: Final = '''\
"""One method for each operation, for asyncio; `AsyncOperatorLedger` has them beside its other calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from spotledger.client.operator.ledger_answers import Written
from spotledger.client.operator.operations import Amount, HoldName, Operation, Position, {classes}


class AsyncOperationCalls(ABC):
    """
    The calls that do one operation each; *key* is its idempotency key.

    With *not_after_ms* it is refused after that time (``TooLate``). In a *dry_run* nothing is booked, no key is used.
    They raise what :meth:`do` raises; the refusals that are named are those of the operation itself.
    """

    @abstractmethod
    async def do(self, operation: Operation, *, dry_run: bool = False) -> Written:
        """Do one operation, or in a *dry_run* only try it."""
'''
LIBRARY_CALLS: Final = '''\
"""One method for each operation; `Ledger` has them beside its other methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from spotledger.domain.fields import HoldName
from spotledger.domain.operations import Operation, {classes}
from spotledger.ledger.group import Receipt


class OperationCalls(ABC):
    """
    The methods that do one operation each; *key* is its idempotency key, and amounts are decimal text (``"100.50"``).

    They also raise IdempotencyConflict if *key* was used before with other content, and StoreUnavailable if the write
    failed and may be tried again with the same key. A refusal that is kept with the key is the answer to a repeat, too.
    With *not_after_ms* they raise TooLate after that time. In a *dry_run* they book nothing, and no key is used.
    """

    @abstractmethod
    def _do(self, operation: Operation, dry_run: bool = False) -> Receipt:
        """Do one operation, or in a *dry_run* only try it."""
'''


def client_operations() -> str:
    """Return the module with the operations of the client."""
    parts = [CLIENT, class_of(SettleSide, "Part", {}), class_of(Leg, "Part", {})]
    for kind in OPERATIONS:
        path = f"of_collection({kind.collection!r})"
        parts.append(class_of(kind, "Operation", {"op": repr(kind.kind), "path": path}))
    return "\n\n".join(parts)


def class_of(kind: type[Any], base: str, constants: dict[str, str]) -> str:
    """Return the class of the client for *kind*, which derives from *base*; *constants* are expressions by name."""
    fields = [field for field in fields_of(kind) if field.form is not forms.KEY]
    amounts = [field.name for field in fields if CLIENT_TYPES.get(field.form) == "Amount"]
    ends = {field.name: tuple(field.place.split(".")) for field in fields if "." in field.place}
    lines = [f"{name} = {value}" for name, value in constants.items()]
    if amounts:
        lines.append(f"amounts = frozenset({amounts!r})")
    if ends:
        lines.append(f"ends: ClassVar[Mapping[str, tuple[str, str]]] = {ends!r}")
    lines += [parameter(field, CLIENT_TYPES) for field in fields]
    head = f"@dataclass(frozen=True, slots=True)\nclass {kind.__name__}({base}):"
    return "\n".join([head, docstring(kind, 4), "", *(f"    {line}" for line in lines), ""])


def parameter(field: Field, types: dict[Form, str]) -> str:
    """Return the text of a field, or of a parameter, with its type and its default."""
    kind = types.get(field.form, "str")
    if field.takes_none:
        kind += " | None"
    return f"{field.name}: {kind}" if field.is_required else f"{field.name}: {kind} = {field.default!r}"


def docstring(kind: type[Any], indent: int) -> str:
    """Return the docstring of *kind* as text of the program."""
    blank = " " * indent
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    made = [
        textwrap.indent(text if text.startswith(("Args:", "Raises:")) else textwrap.fill(text, 120 - indent), blank)
        for text in paragraphs
    ]
    return f'{blank}"""\n' + "\n\n".join(made) + f'\n{blank}"""'


def method(kind: type[Described], types: dict[Form, str], head: str, answer: str, call: str) -> str:
    """
    Return the method that does operations of *kind*.

    Required fields and amounts may be given by position, in the order of the class; the others by name.
    """
    fields = [field for field in fields_of(kind) if field.form is not forms.KEY]
    first = [field for field in fields if field.is_required or field.form is forms.AMOUNT]
    named = [field for field in fields if field not in first]
    parameters = ["self", *(parameter(field, types) for field in first), "*", "key: str"]
    parameters += [*(parameter(field, types) for field in named), "dry_run: bool = False"]
    given = ", ".join(f"{field.name}={argument(field, types)}" for field in fields)
    lines = [f"    {head} {kind.kind}({', '.join(parameters)}) -> {answer}:", docstring(kind, 8)]
    return "\n".join([*lines, f"        return {call}({kind.__name__}(key, {given}), dry_run=dry_run)", ""])


def argument(field: Field, types: dict[Form, str]) -> str:
    """Return the text of what the operation is given for the parameter of *field*."""
    if field.form is forms.HOLD and "int" in types[forms.HOLD]:
        return f"str({field.name}) if isinstance({field.name}, int) else {field.name}"
    return field.name


def calls(start: str, make: Callable[[type[Described]], str]) -> str:
    """Return the module that begins with *start*, and has a method for each operation."""
    names = ", ".join([kind.__name__ for kind in OPERATIONS] + ["Leg", "SettleSide"])
    return "\n".join([start.format(classes=names), *map(make, OPERATIONS)])


def modules() -> dict[Path, str]:
    """Return the text of each module that is generated, before it is formatted."""
    return {
        SOURCE / "client/operator/operations.py": client_operations(),
        SOURCE / "client/operator/async_operation_calls.py": calls(
            CLIENT_CALLS, lambda kind: method(kind, CLIENT_TYPES, "async def", "Written", "await self.do")
        ),
        SOURCE / "ledger/operation_calls.py": calls(
            LIBRARY_CALLS, lambda kind: method(kind, LIBRARY_TYPES, "def", "Receipt", "self._do")
        ),
    }


def formatted(text: str, target: Path) -> str:
    """Return *text* with its header, formatted as the file *target*."""
    text = HEADER.format(script=Path(__file__).name) + text
    for subcommand in (("check", "--select", "I,F401", "--fix"), ("format",)):
        command = [sys.executable, "-m", "ruff", *subcommand, "--quiet", "--stdin-filename", str(target), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main(arguments: Iterable[str]) -> int:
    """Write the modules, or with ``--check`` compare them; return the exit code."""
    if [*arguments] not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    stale = 0
    for target, text in modules().items():
        generated = formatted(text, target)
        if not [*arguments]:
            target.write_text(generated, encoding="utf-8")
        elif target.read_text(encoding="utf-8") != generated:
            print(f"{target.name} does not match domain/operations.py; run: make generate", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

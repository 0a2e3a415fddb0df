"""The commands about trades, reversals and batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, Final

import click

from spotledger import paths
from spotledger.cli.connection import CommandLedger
from spotledger.cli.money import write
from spotledger.cli.options import (
    InputFile,
    PositionType,
    dry_run_option,
    hold_name,
    ledger_command,
    reference_option,
    write_options,
)
from spotledger.cli.output import Output
from spotledger.client.operator.messages import dry_run_params
from spotledger.client.operator.operations import CoinAmount, Operation, Reverse, Settle, SettleSide
from spotledger.domain.positions import position_text
from spotledger.errors import MalformedRequest

#: Operations in one request; a longer chain is sent whole.
BATCH_OPERATIONS: Final = 1000


@click.command()
@click.argument("file", type=InputFile(), required=False)
@write_options
@click.option("--base", metavar="COIN", help="The coin that is traded, such as btc.")
@click.option("--quote", metavar="COIN", help="The coin that it is paid in, such as usdt.")
@click.option("--base-amount", metavar="AMOUNT", help="The amount that is traded.")
@click.option("--quote-amount", metavar="AMOUNT", help="The amount that is paid for it in all.")
@click.option("--buyer-hold", metavar="HOLD", help="The hold that pays: its id, or key:K if the key K opened it.")
@click.option("--buyer-fee", nargs=2, metavar="COIN AMOUNT", help="In either coin of the trade; a rebate is negative.")
@click.option("--buyer-release", metavar="AMOUNT|rest", help="How much more of the buyer's hold to release.")
@click.option("--seller-hold", metavar="HOLD", help="The hold that delivers: its id, or key:K.")
@click.option("--seller-fee", nargs=2, metavar="COIN AMOUNT", help="In either coin of the trade; a rebate is negative.")
@click.option("--seller-release", metavar="AMOUNT|rest", help="How much more of the seller's hold to release.")
@click.option("--fee-account", metavar="@NAME", help="The house account for fees and rebates (else @fees).")
@reference_option
@ledger_command()
async def settle(
    ledger: CommandLedger,
    out: Output,
    file: IO[bytes] | None,
    key: str,
    not_after_ms: int | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Book one fill of a trade, from the options or from FILE: JSON as the operator API takes it, - for stdin."""
    named = sorted(name for name, value in given.items() if value is not None)
    if file is not None:
        if named:
            raise click.UsageError(f"settle takes FILE or options, not both; {_flag(named[0])} is given with FILE")
        document = _object(file.read(), "the file")
        if not_after_ms is not None:
            document["not_after_ms"] = not_after_ms
        await write(ledger, out, SettleAsGiven(key, document), dry_run)
        return
    wanted = ("base", "quote", "base_amount", "quote_amount", "buyer_hold", "seller_hold")
    missing = [_flag(name) for name in wanted if given[name] is None]
    if missing:
        raise click.UsageError(f"settle needs FILE, or also {', '.join(missing)}")
    trade = {name: given[name] for name in (*wanted[:4], "reference")}
    buyer, seller = (_side(given, side) for side in ("buyer", "seller"))
    if given["fee_account"] is not None:
        trade["fee_account"] = given["fee_account"]
    fill = Settle(key=key, **trade, buyer=buyer, seller=seller, not_after_ms=not_after_ms)
    await write(ledger, out, fill, dry_run)


def _side(given: dict[str, Any], side: str) -> SettleSide:
    hold, fee, release = (given[f"{side}_{name}"] for name in ("hold", "fee", "release"))
    return SettleSide(hold_name(hold), None if fee is None else CoinAmount(*fee), release)


@dataclass(frozen=True, slots=True)
class SettleAsGiven(Operation):
    """A settlement with a body of the caller's."""

    op = Settle.op
    path = Settle.path
    document: dict[str, Any]

    def body(self) -> dict[str, Any]:
        """Return the body."""
        return self.document


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@click.command()
@click.argument("seq", type=PositionType(with_zero=False))
@click.option("--reason", required=True, metavar="TEXT", help="Why; the journal keeps it.")
@write_options
@ledger_command()
async def reverse(ledger: CommandLedger, out: Output, dry_run: bool, **given: Any) -> None:
    """Reverse the deposit, withdrawal, transfer or settlement of the entry SEQ, once."""
    await write(ledger, out, Reverse(**given), dry_run)


@click.command()
@click.argument("file", type=InputFile())
@click.option("--atomic", is_flag=True, help="Do all of them or none; at most 1,000 operations.")
@dry_run_option
@ledger_command()
async def batch(ledger: CommandLedger, out: Output, file: IO[bytes], atomic: bool, dry_run: bool) -> None:
    """
    Do the operations in FILE in order: one JSON object per line, each with "op" and "key"; - for stdin.

    It is safe to run the same file again: operations that are done are not repeated. Exits with 1 if any is refused.
    A dry run takes at most 10,000 operations, because later ones have to see the effects of earlier ones.
    """
    operations = [_object(line, f"line {number}") for number, line in enumerate(file, 1) if line.strip()]
    results: list[dict[str, Any]] = []
    for piece in [operations] if atomic or dry_run else _pieces(operations):
        body = {"operations": piece, "atomic": atomic}
        reply = await ledger.call("POST", paths.BATCHES, body, params=dry_run_params(dry_run))
        results += reply.document["results"]
    out.document({"results": results, **({"dry_run": True} if dry_run else {})})
    refused = _show_results(out, operations, results)
    if dry_run:
        out.line("A dry run: nothing was booked, and no key was used")
    if refused:
        raise click.exceptions.Exit(1)


def _show_results(out: Output, operations: list[dict[str, Any]], results: list[dict[str, Any]]) -> int:
    """Print the outcomes of *operations*; return how many were refused."""
    refused = [
        (operation.get("key"), operation.get("op"), result.get("detail"), *_kept(result))
        for operation, result in zip(operations, results, strict=True)
        if "code" in result
    ]
    kinds = Counter(str(operation.get("op")) for operation in operations)
    again = sum(result.get("replayed", False) for result in results)
    out.line(f"{len(results)} operations: {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none'}")
    out.line(f"{len(results) - len(refused)} done, {len(refused)} refused; {again} of them were repeats")
    if refused:
        out.table(("key", "op", "refused because", "kept as", "repeat"), refused)
    if any(map(_is_kept, results)):
        out.line("What is kept is refused for ever under its key: use another key to try it again")
    return len(refused)


def _is_kept(result: dict[str, Any]) -> bool:
    """Say whether *result* is a refusal that an entry keeps; a dry run keeps none of its own."""
    return "code" in result and "seq" in result and ("dry_run" not in result or "replayed" in result)


def _kept(result: dict[str, Any]) -> tuple[str, str]:
    """Return the entry that keeps a refusal, and whether that is a repeat; blanks if it is not kept."""
    if not _is_kept(result):
        return "", ""
    return f"entry {position_text(result['epoch'], result['seq'])}", "yes" if result.get("replayed") else "no"


def _pieces(operations: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut *operations* into pieces, but no chain."""
    piece: list[dict[str, Any]] = []
    for chain, members in groupby(operations, key=lambda operation: operation.get("chain")):
        together = list(members)
        for unit in [[member] for member in together] if chain is None else [together]:
            if piece and len(piece) + len(unit) > BATCH_OPERATIONS:
                yield piece
                piece = []
            piece += unit
    if piece:
        yield piece


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MalformedRequest(f"{what} is not a JSON object; an operation would pass")
    return found

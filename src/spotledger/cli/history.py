"""The commands that read the journal: a customer's statement, the feed, the trial balance."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import click

from spotledger import paths
from spotledger.cli import show
from spotledger.cli.connection import Where
from spotledger.cli.options import ledger_command
from spotledger.client.operator.api import OperatorClient
from spotledger.client.operator.operations import path_of

FOLLOW_PAUSE_SECONDS: Final = 0.25
_HOUSE: Final = ("@external", "@fees", "@dust", "@receivable")


@click.command()
@click.argument("customer")
@click.option("--coin", metavar="COIN", help="Only what touches this coin.")
@click.option(
    "--after", "after_seq", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only what came later."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="So many entries at the most.")
@ledger_command()
async def history(
    client: OperatorClient, where: Where, customer: str, coin: str | None, after_seq: int, limit: int | None
) -> None:
    """Show the entries about CUSTOMER as a statement, with the balances before and after them."""
    answer = await _statement(client, customer, coin, after_seq, limit)
    if where.as_json:
        show.json_document(answer)
        return
    columns = ("entry", "booked", "what", "account", "coin", "± available", "± freeze", "available", "freeze", "for")
    rows: list[tuple[object, ...]] = [_balance_row("opening", after) for after in answer["opening"]]
    for entry in answer["entries"]:
        rows += _entry_rows(entry, (customer, f"@receivable:{customer}"), coin)
    rows += [_balance_row("closing", after) for after in answer["closing"]]
    show.table(columns, rows, title=f"{customer}, as of entry {answer['seq']}")


async def _statement(
    client: OperatorClient, customer: str, coin: str | None, after_seq: int, limit: int | None
) -> dict[str, Any]:
    """Return a statement, of as many pages as it needs, as if it were one."""
    path = path_of(paths.CUSTOMER_ENTRIES, customer=customer)
    whole: dict[str, Any] = {}
    while True:
        wanted = 1000 if limit is None else min(1000, limit - len(whole.get("entries", ())))
        params = {"coin": coin, "after_seq": after_seq, "limit": wanted}
        _, _, page = await client.call("GET", path, params=params)
        whole = _joined(whole, page) if whole else page
        after_seq = page["next_after_seq"]
        if len(page["entries"]) < wanted or len(whole["entries"]) == limit:
            return whole


def _joined(before: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    def by_line(lines: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
        return {(line["customer"], line["account"], line["coin"]): line for line in lines}

    return {
        **page,
        "opening": list({**by_line(page["opening"]), **by_line(before["opening"])}.values()),
        "entries": before["entries"] + page["entries"],
        "closing": list({**by_line(before["closing"]), **by_line(page["closing"])}.values()),
    }


def _balance_row(what: str, after: Mapping[str, str]) -> tuple[object, ...]:
    return ("", "", what, _account(after), after["coin"], "", "", after["available"], after["freeze"], "")


def _account(line: Mapping[str, str]) -> str:
    return "owed" if line["customer"].startswith("@") else line["account"]


def _entry_rows(entry: Mapping[str, Any], owners: tuple[str, str], coin: str | None) -> Iterator[tuple[object, ...]]:
    moved: dict[tuple[str, str], dict[str, Decimal]] = {}
    after: dict[tuple[str, str], dict[str, str]] = {}
    for line in entry["postings"]:
        if line["customer"] in owners and coin in (None, line["coin"]):
            place = (_account(line), line["coin"])
            sides = moved.setdefault(place, {})
            sides[line["side"]] = sides.get(line["side"], Decimal()) + Decimal(line["amount"])
            after.setdefault(place, {})[line["side"]] = line["after"]
    request = entry["request"]
    why = request.get("reference") or request.get("reason") or ""
    for (account, name), sides in moved.items():
        signed = [f"{sides[side]:+f}" if sides.get(side) else "" for side in ("available", "freeze")]
        now = [after[account, name].get(side, "") for side in ("available", "freeze")]
        yield (entry["seq"], time_text(entry["booked_ms"]), entry["kind"], account, name, *signed, *now, why)


def time_text(time_ms: int) -> str:
    """Return a time in milliseconds since 1970 as people read it, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@click.command()
@click.option(
    "--after", "after_seq", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only what came later."
)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@ledger_command()
async def feed(client: OperatorClient, where: Where, after_seq: int, follow: bool) -> None:
    """Show the journal, entry by entry; with --json one JSON object a line."""
    while True:
        _, _, page = await client.call("GET", paths.ENTRIES, params={"after_seq": after_seq})
        for entry in page["entries"]:
            show.line(json.dumps(entry, ensure_ascii=False) if where.as_json else _feed_line(entry))
        after_seq = page["next_after_seq"]
        if not page["entries"]:
            if not follow:
                return
            await asyncio.sleep(FOLLOW_PAUSE_SECONDS)


def _feed_line(entry: Mapping[str, Any]) -> str:
    refused = f" refused: {entry['refusal']['detail']}" if "refusal" in entry else ""
    lines = "; ".join(
        f"{line['customer']} {line['side']} {line['amount']} {line['coin']}" for line in entry["postings"]
    )
    said = refused or (f" {lines}" if lines else "")
    return f"{entry['seq']} {time_text(entry['booked_ms'])} {entry['kind']} [{entry['key'].strip()}]{said}"


@click.command("trial-balance")
@ledger_command()
async def trial_balance(client: OperatorClient, where: Where) -> None:
    """Show what all customers and each house account have of each coin; every total is zero."""
    _, _, answer = await client.call("GET", paths.TRIAL_BALANCE)
    if where.as_json:
        show.json_document(answer)
    else:
        columns = ("coin", "customers available", "customers freeze", *_HOUSE, "total")
        rows = [
            (
                coin,
                *(sums["customers"][side] for side in ("available", "freeze")),
                *(sums["house"].get(owner, "") for owner in _HOUSE),
                sums["total"],
            )
            for coin, sums in answer["coins"].items()
        ]
        state = "balanced" if answer["balanced"] else "NOT BALANCED"
        show.table(columns, rows, title=f"as of entry {answer['seq']}: {state}")
    if not answer["balanced"]:
        raise click.exceptions.Exit(1)

"""The commands about who is let in: the locks of the traders' gate, and who used which credential."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import duration_ms, ledger_command, time_ms
from spotledger.cli.output import Output
from spotledger.client.operator.service_answers import AccessLine

LONGEST_LINES: Final = 100_000


@click.command("access-log")
@click.option(
    "--actor", metavar="ACTOR", help='Only lines of token:ID, key:FIRST-EIGHT or library, or "" for unknown ones.'
)
@click.option("--address", metavar="ADDRESS", help="Only lines from this address, or the /64 of an IPv6 address.")
@click.option(
    "--since", default="24h", show_default=True, metavar="TIME", help="From then on: 45m, 12h, 7d, or a time."
)
@click.option("--until", metavar="TIME", help="Only minutes that began before this time.")
@click.option(
    "--limit", type=click.IntRange(1, LONGEST_LINES), default=10_000, show_default=True, help="At most so many lines."
)
@ledger_command()
async def access_log(
    ledger: CommandLedger,
    out: Output,
    actor: str | None,
    address: str | None,
    since: str,
    until: str | None,
    limit: int,
) -> None:
    """
    Show who used which credential from where, and what was refused and why.

    Lines are sums of a minute, oldest first. The log is that of the node: in a fleet each node has its own, in its data
    folder. An actor that was refused is the one whose credential was named.
    """
    given: dict[str, Any] = {"actor": actor, "address": address, "from_ms": _since_ms(since)}
    given["to_ms"] = time_ms(until, "--until")
    lines: list[AccessLine] = []
    documents: list[Any] = []
    after: str | None = None
    while True:
        page = await ledger.access_log(**given, after=after, limit=min(1000, limit - len(lines)))
        lines += page.lines
        documents += ledger.document["lines"]
        after = page.next
        if after is None or len(lines) >= limit:
            break
    out.document({**ledger.document, "lines": documents})
    columns = ("minute", "times", "outcome", "reason", "actor", "label", "from", "call")
    out.table(columns, map(_row, lines))
    if after is not None:
        out.line(f"There are more from {time_text(lines[-1].time)} on; narrow it with --since, or raise --limit.")
    if page.failure is not None:
        out.line(f"The last lines are missing, because the log could not be written: {page.failure}")


def _row(line: AccessLine) -> tuple[object, ...]:
    actor = line.actor or "unknown"
    return time_text(line.time), line.count, line.outcome, line.reason, actor, line.actor_label, line.address, line.call


def _since_ms(text: str) -> int:
    """Return the time *text* in ms since 1970; a duration means so long ago."""
    if text[-1:] in "smhdw" and text[:-1].isdecimal():
        return max(0, time.time_ns() // 1_000_000 - duration_ms(text, "--since"))
    try:
        return time_ms(text, "--since") or 0
    except click.BadParameter as problem:
        raise click.BadParameter(f"{problem.message}, or 12h for the last 12 hours", param_hint="--since") from None


@ledger_command()
async def _show_locks(ledger: CommandLedger, out: Output) -> None:
    found = await ledger.locks()
    out.document(ledger.document)
    rows = ((lock.name, lock.customer or lock.address, lock.limit, time_text(lock.until_ms)) for lock in found.locks)
    out.table(("name", "locked", "limit", "until"), rows)


# The group lists by itself, so it has the options of a command.
@click.group(invoke_without_command=True, params=list(reversed(_show_locks.__click_params__)))  # type: ignore[attr-defined]
@click.pass_context
def locks(context: click.Context, /, **options: Any) -> None:
    """Show the customers and addresses that are locked for sending too many requests; `lift` lifts one."""
    if context.invoked_subcommand is None:
        _show_locks(**options)
    elif any(options[name] is not None for name in options if name != "out"):
        raise click.UsageError(f"Options belong behind the command: locks {context.invoked_subcommand} … --data DIR")


@locks.command("lift")
@click.argument("name")
@ledger_command()
async def locks_lift(ledger: CommandLedger, out: Output, name: str) -> None:
    """Lift the lock NAME, as `spotledger locks` shows it, on every worker, and with Redis on every node."""
    lifted = await ledger.lift_lock(name)
    out.document(ledger.document)
    out.line(f"the lock on {lifted.customer or lifted.address} is lifted")

"""The command that audits a ledger file or a database."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import click

from spotledger.audit.embedded import audit_file
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE, KnownHead, Report
from spotledger.cli.options import (
    EXIT_IN_THE_WAY,
    config_option,
    data_option,
    database_option,
    exit_on_error,
    json_option,
)
from spotledger.cli.output import Output
from spotledger.errors import SpotledgerError
from spotledger.ops.settings import Settings, load_settings
from spotledger.storage.folder import LEDGER_FILE

#: Processes that read a file at once; fewer already keep the process busy that combines their results.
PROCESSES_LIMIT: Final = 8
EXIT_CODES: Final = {CLEAN: 0, DAMAGED: 1, INCOMPLETE: EXIT_IN_THE_WAY}
_KNOWN_HEAD: Final = re.compile(r"\A([0-9]{1,18}):([0-9a-fA-F]{64})\Z")


@click.command()
@data_option
@click.option("--file", metavar="FILE", help="A ledger file, such as a backup, instead of the one in a data folder.")
@database_option
@click.option(
    "--known-head",
    "known_heads",
    metavar="SEQ:HASH",
    multiple=True,
    help="Number and hash of an entry from an earlier audit; detects a journal that was cut or rewritten.",
)
@click.option("--limit-seconds", type=float, metavar="N", help="Stop after this time; the audit is then incomplete.")
@click.option(
    "--processes",
    type=click.IntRange(1, PROCESSES_LIMIT),
    metavar="N",
    help=f"Processes that read a file at once, 1 to {PROCESSES_LIMIT} (else one per available processor).",
)
@config_option
@json_option
@exit_on_error
def audit(
    data: str | None,
    file: str | None,
    database: str | None,
    known_heads: tuple[str, ...],
    limit_seconds: float | None,
    processes: int | None,
    config: str | None,
    out: Output,
) -> None:
    """
    Derive everything about money from the journal again, and compare.

    Only reads the file or the database, and may run beside servers. A database must have what the node in DIR has seen;
    another server is not audited. Exits with 0 (clean), 1 (damaged) or 3 (incomplete: something could not be checked).
    """
    heads = [_known_head(text) for text in known_heads]
    try:
        settings = load_settings({"data": data, "database": database}, os.environ, config).settings
        run = _audit_of(file, settings, processes or min(PROCESSES_LIMIT, _processors()))
    except SpotledgerError as error:
        out.error(error)
        raise click.exceptions.Exit(EXIT_IN_THE_WAY) from None
    gc.disable()  # an audit makes many objects and no reference cycles
    with out.progress() as tell:
        report = run(
            progress=lambda position: tell("audit", position.seq, position.last_seq),
            known_heads=heads,
            limit_seconds=limit_seconds,
        )
    gc.enable()
    out.document(report.as_json())
    _print(out, report)
    raise click.exceptions.Exit(EXIT_CODES[report.verdict])


def _audit_of(file: str | None, settings: Settings, processes: int) -> Callable[..., Report]:
    """Return the audit of *file*, else of the database that is set, else of the ledger in the data folder."""
    if file is not None or settings.database is None:
        return partial(audit_file, Path(file) if file else settings.data / LEDGER_FILE, processes=processes)
    from spotledger.audit.postgres import audit_database  # imports the database driver
    from spotledger.ops.fleet import right_server

    right = right_server(settings)
    return partial(audit_database, right.address, seen=right.seen.seen)


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _known_head(text: str) -> KnownHead:
    match = _KNOWN_HEAD.match(text)
    if match is None:
        raise click.BadParameter(
            f"{text!r} is not SEQ:HASH; a number and 64 hex digits would pass", param_hint="--known-head"
        )
    return KnownHead(int(match[1]), bytes.fromhex(match[2]))


def _print(out: Output, report: Report) -> None:
    count = sum(report.counts.values())
    what = {CLEAN: "clean", DAMAGED: f"DAMAGED, {count} findings", INCOMPLETE: "INCOMPLETE"}[report.verdict]
    out.line(f"{report.path}: {what}")
    out.line(
        f"  {report.entries} entries, {report.postings} postings, {report.refusals} kept refusals, {report.customers}"
        f" customers, {report.coins} coins, {report.balances} balances, {report.open_holds} open holds"
    )
    if report.hash is not None:
        out.line(f"  head {report.audited_to}:{report.hash}")
    for why in report.unexamined:
        out.line(f"  not checked: {why}")
    if report.findings:
        columns = ("code", "seq", "where", "found", "expected")
        out.table(columns, ([getattr(finding, name) for name in columns] for finding in report.findings))
        listed = len(report.findings)
        if count > listed:
            by_code = ", ".join(f"{number} {code}" for code, number in report.counts.items())
            out.line(f"  {listed} of {count} are listed: {by_code}")
    for what in report.advice:
        out.line(f"  what to do: {what}")

"""The commands that run the service, migrate its database and show its settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import click

from spotledger import __version__
from spotledger.cli.options import config_option, data_option, exit_on_error, json_option, setting_options
from spotledger.cli.output import Output
from spotledger.http.serve import Listening, serve as run_service
from spotledger.http.workers import serve_workers
from spotledger.ops.settings import Settings, load_settings, markdown, plain, shown
from spotledger.storage.folder import TOKEN_FILE
from spotledger.texts import escaped


class LogFormatter(logging.Formatter):
    """One line for each record, and its traceback: texts in them cannot begin a line or move a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of *record*."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Return the traceback; its lines stay lines, indented, so that none looks like a record."""
        return escaped(super().formatException(ei), keep="\n").replace("\n", "\n  ")


def log_to_stderr(settings: Settings) -> None:
    """Log to standard error from the level that is set."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


@click.command()
@setting_options
@config_option
@json_option
@exit_on_error
def serve(flags: Mapping[str, str | None], config: str | None, out: Output) -> None:
    """Run the service: the public listener for traders, and the operator listener for the exchange's own systems."""
    settings = load_settings(flags, os.environ, config).settings
    log_to_stderr(settings)

    def announce(public_url: str, operator_url: str) -> None:
        urls = {"public_url": public_url, "operator_url": operator_url}
        out.document({**urls, "data": str(settings.data), "pid": os.getpid(), "workers": settings.workers})
        ledger = settings.data if settings.database is None else settings.database
        out.line(f"spotledger {__version__} serves {ledger} (process {os.getpid()})")
        out.line(f"  traders    {public_url}")
        out.line(f"  operators  {operator_url}   token: {settings.data / TOKEN_FILE}")

    async def announce_one(listening: Listening) -> bool:
        announce(listening.public_url, listening.operator_url)
        return True

    if settings.workers > 1:
        serve_workers(settings, os.environ, announce)
    else:
        run_service(settings, os.environ, announce_one)


@click.command()
@data_option
@click.option("--database", metavar="URL", help="The PostgreSQL database (else SPOTLEDGER_DATABASE).")
@click.option("--after", is_flag=True, help="Also remove what only nodes of the previous version need.")
@config_option
@json_option
@exit_on_error
def migrate(data: str | None, database: str | None, after: bool, config: str | None, out: Output) -> None:
    """
    Bring the schema of the database to this version. Running it again changes nothing; there is no way back.

    Run spotledger migrate before the first node of a new version starts, and spotledger migrate --after once the last
    node of the old version has stopped. In between, nodes of both versions may run.
    """
    from spotledger.ops.fleet import migrate_database  # imports the database driver

    settings = load_settings({"data": data, "database": database}, os.environ, config).settings
    applied = migrate_database(settings, after=after)
    out.document({"applied": applied})
    for name in applied:
        out.line(f"applied {name}")
    out.line("the schema is up to date" if not applied else f"{len(applied)} applied")


@click.command()
@setting_options
@config_option
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the reference page of all settings.")
@exit_on_error
def settings(flags: Mapping[str, str | None], config: str | None, out: Output, as_markdown: bool) -> None:
    """Show the settings in force and the source of each. Takes the same flags as serve."""
    if as_markdown:
        out.text(markdown())
        return
    in_force, sources = load_settings(flags, os.environ, config)
    values = {name: getattr(in_force, name) for name in sources}
    out.document({name: {"value": plain(values[name]), "source": sources[name]} for name in sources})
    out.table(("setting", "value", "source"), ((name, shown(values[name]), sources[name]) for name in sources))

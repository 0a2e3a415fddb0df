"""The options that commands share, and the one place where their errors end."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from spotledger.cli.connection import CommandLedger, Where, connect
from spotledger.cli.output import Output
from spotledger.client.operator.operations import HoldKey, HoldName
from spotledger.domain.fields import TIME_MIN_MS
from spotledger.domain.positions import POSITION_PATTERN
from spotledger.errors import FileUnusable, InvalidRequest, LedgerCorrupt, SpotledgerError, StoreUnavailable
from spotledger.ops.settings import RULES, flag_of
from spotledger.os_errors import unusable_file

_POSITION = re.compile(f"0|{POSITION_PATTERN}")
F = TypeVar("F", bound=Callable[..., Any])

#: Refused, or failed.
EXIT_FAILED: Final = 1
#: Something could not be looked at or written: a file, a folder, or the disk.
EXIT_IN_THE_WAY: Final = 3
_IN_THE_WAY: Final = (OSError, FileUnusable, StoreUnavailable)

#: Keys that are made of names stay this short, so that a command makes the key that it always made.
NATURAL_KEY_CHARACTERS: Final = 64
ACCOUNTS: Final = ("wallet", "spot", "fiat")
_DURATION: Final = re.compile(r"\A([1-9][0-9]{0,5})([smhdw])\Z")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

json_option = click.option(
    "--json",
    "out",
    is_flag=True,
    callback=lambda _context, _option, as_json: Output(as_json),
    help="Print one JSON document instead of a table.",
)
data_option = click.option("--data", metavar="DIR", help="The data folder (else SPOTLEDGER_DATA, else ./data).")
database_option = click.option(
    "--database", metavar="URL", help="The PostgreSQL database (else SPOTLEDGER_DATABASE), or a standby of it."
)
proxy_option = click.option(
    "--proxy", metavar="URL", help="The proxy to that server; none that the environment names is used."
)
config_option = click.option("--config", metavar="FILE", help="A TOML file with settings.")
key_option = click.option(
    "--key", required=True, metavar="KEY", help="The idempotency key of this write, unique for ever."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what it would do now; nothing is booked, and no key is used."
)
not_after_option = click.option(
    "--not-after",
    "not_after_ms",
    metavar="TIME",
    callback=lambda _context, _option, text: _latest_ms(text),
    help="Refuse it after this time: 30s, 5m (from now), 2026-01-31T12:00:00Z, or milliseconds since 1970.",
)
own_key_option = click.option("--key", metavar="KEY", help="The idempotency key (else a new one).")
account_option = click.option("--account", type=click.Choice(ACCOUNTS), help="The customer's account (else spot).")
from_option = click.option(
    "--from", "from_time", metavar="TIME", help="From this time on: 2026-11-01, 2026-11-01T12:00:00Z, or ms since 1970."
)
to_option = click.option("--to", "to_time", metavar="TIME", help="Before this time, likewise.")
reference_option = click.option("--reference", metavar="TEXT", help="What it is for, such as an order number.")


def write_options(function: F) -> F:
    """Give a command that writes to the ledger the options that every write takes: its key, and how it is done."""
    return key_option(not_after_option(dry_run_option(function)))


def exit_on_error(function: F) -> F:
    """Print an error of the command *function*, one line, and exit as :func:`ended_with` says."""

    @functools.wraps(function)
    def ended(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BrokenPipeError:
            raise  # nobody reads the output any more, which click ends quietly
        except (SpotledgerError, LedgerCorrupt, OSError) as error:
            raise ended_with(error, kwargs.get("out") or Output()) from error

    return ended  # type: ignore[return-value]


def ended_with(error: SpotledgerError | LedgerCorrupt | OSError, out: Output) -> click.exceptions.Exit:
    """
    Print *error* to *out*, and return what ends the command.

    The exit code is 3 where a file, a folder or the disk is in the way, so that nothing is known of the ledger, and 1
    for everything else.
    """
    shown = unusable_file(error) if isinstance(error, OSError) else error
    out.error(shown)
    return click.exceptions.Exit(EXIT_IN_THE_WAY if _is_in_the_way(shown) else EXIT_FAILED)


def _is_in_the_way(error: BaseException | None) -> bool:
    """Say whether *error*, or what caused it, is about a file, a folder or the disk."""
    return error is not None and (isinstance(error, _IN_THE_WAY) or _is_in_the_way(error.__cause__))


class Commands(click.Group):
    """The group of all commands: what the system refuses before a command begins, or after it, ends like an error."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options of the group, such as --help."""
        with _ending(Output()):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and write out what it printed."""
        with _ending(Output("--json" in (*ctx._protected_args, *ctx.args))):
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found


@contextmanager
def _ending(out: Output) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (FileUnusable, OSError) as error:
        raise ended_with(error, out) from error


class InputFile(click.ParamType[Any]):
    """A file that is read, or ``-`` for standard input; one that cannot be opened ends like every other error."""

    name = "filename"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Open the file."""
        if value == "-":
            return sys.stdin.buffer
        try:
            opened = Path(value).open("rb")  # noqa: SIM115 - closed with the context
        except OSError as problem:
            raise unusable_file(problem, value) from None
        if ctx is not None:
            ctx.call_on_close(opened.close)
        return opened


def setting_options(function: F) -> F:
    """Give a command a flag for each setting; it gets them as text in one argument ``flags``."""

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in RULES}
        return function(*args, flags=flags, **kwargs)

    decorated: Any = gathered
    for name, rule in reversed(list(RULES.items())):
        decorated = click.option(flag_of(name), name, metavar=rule.metavar, help=rule.meaning.replace("`", ""))(
            decorated
        )
    return decorated  # type: ignore[no-any-return]


def ledger_command(*, may_make: bool = False) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """
    Give a command the options that name a ledger, and call it with a client of that ledger and an `Output`.

    Args:
        may_make: Whether the command makes a ledger if there is none.
    """

    def decorate(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @data_option
        @click.option("--database", metavar="URL", help="The PostgreSQL database, if no node runs in DIR.")
        @click.option("--operator-url", metavar="URL", help="Call this server instead; needs --token-file.")
        @click.option(
            "--token-file", metavar="FILE", help="The file with the operator token (else DIR/operator.token)."
        )
        @proxy_option
        @config_option
        @json_option
        @functools.wraps(function)
        @exit_on_error
        def command(out: Output, **kwargs: Any) -> None:
            where = Where(*(kwargs.pop(name) for name in Where._fields))

            async def run() -> None:
                async with connect(where, may_make=may_make) as ledger:
                    await function(ledger, out, **kwargs)

            asyncio.run(run())

        return command

    return decorate


def own_key(key: str | None, what: str) -> str:
    """Return *key*, or a new, unique idempotency key for *what*."""
    return key or f"{what}-{uuid.uuid4()}"


def expiry_ms(text: str | None) -> int | None:
    """Return the time after *text* (``90d``, ``12h``, ``30m``, ``45s``, ``2w``) from now, in ms since 1970."""
    return None if text is None else time.time_ns() // 1_000_000 + duration_ms(text, "--expires")


def _latest_ms(text: str | None) -> int | None:
    """Return the time *text* of ``--not-after`` in ms since 1970: a duration from now, or a time."""
    option = "--not-after"
    if text is None or _DURATION.match(text) is None:
        return time_ms(text, option)
    return time.time_ns() // 1_000_000 + duration_ms(text, option)


def duration_ms(text: str, option: str) -> int:
    """Return the duration *text* (``90d``, ``12h``, ``30m``, ``45s``, ``2w``) of *option* in milliseconds."""
    match = _DURATION.match(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration; 90d, 12h, 30m, 45s or 2w would pass", param_hint=option)
    return int(match[1]) * _SECONDS[match[2]] * 1000


def time_ms(text: str | None, option: str) -> int | None:
    """Return the time *text* of *option* in ms since 1970; it is that, or ISO 8601, in UTC without a zone."""
    if text is None:
        return None
    found_ms = int(text) if _is_number(text) else _ms_of_iso(text, option)
    if found_ms < TIME_MIN_MS:
        raise click.BadParameter(
            f"{text!r} is before the year 2001; 2026-01-31, or milliseconds, not seconds, since 1970 would pass",
            param_hint=option,
        )
    return found_ms


def period_ms(from_time: str | None, to_time: str | None) -> dict[str, int | None]:
    """Return ``from_ms`` and ``to_ms`` of the options ``--from`` and ``--to``; None where one is not given."""
    from_ms, to_ms = time_ms(from_time, "--from"), time_ms(to_time, "--to")
    if from_ms is not None and to_ms is not None and to_ms < from_ms:
        raise click.BadParameter(
            f"{to_time!r} is before {from_time!r}, which is --from; a time from then on would pass", param_hint="--to"
        )
    return {"from_ms": from_ms, "to_ms": to_ms}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 15


def _ms_of_iso(text: str, option: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a time; 2026-01-31, 2026-01-31T12:00:00Z or milliseconds since 1970 would pass",
            param_hint=option,
        ) from None
    aware = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


@contextmanager
def asked_at(text: str | None, option: str) -> Iterator[None]:
    """Say in the words of *option*, which was given as *text*, that its time is in the future."""
    try:
        yield
    except InvalidRequest as refusal:
        now_ms = refusal.details.get("now_ms")
        if text is None or not isinstance(now_ms, int):
            raise
        now = str(now_ms) if _is_number(text) else datetime.fromtimestamp(now_ms // 1000, UTC).isoformat()
        message = f"{option} is {text}, in the future; a time up to {now}, which is now, would pass"
        raise InvalidRequest(message, **{**refusal.details, "field": option}) from None


class PositionType(click.ParamType[str]):
    """A position in the journal: a number, or ``EPOCH-SEQ``; 0 only where the journal may be read from its start."""

    name = "position"

    def __init__(self, *, with_zero: bool = True) -> None:
        self._with_zero = with_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* as text, or say what would pass."""
        text = str(value)
        if not _POSITION.fullmatch(text) or (text == "0" and not self._with_zero):
            self.fail(f"{text!r} is no position; a number such as 42, or 2-42 in epoch 2, would pass", param, ctx)
        return text


def hold_name(text: str) -> HoldName:
    """Return the hold that *text* names: an id, or ``key:K`` for the hold that the idempotency key K opened."""
    return HoldKey(text.removeprefix("key:")) if text.startswith("key:") else text


async def all_pages(ledger: CommandLedger, member: str, read: Callable[..., Awaitable[Any]]) -> list[Any]:
    """
    Return the items of all pages; ``ledger.document`` is then one page with all of them.

    Args:
        ledger: The client.
        member: The name of the list of items in a page.
        read: The method of the client that reads the page after ``after``.
    """
    found: list[Any] = []
    documents: list[Any] = []
    after = None
    while True:
        page = await read(after=after)
        found += getattr(page, member)
        documents += ledger.document[member]
        after = page.next_after
        if after is None:
            break
    ledger.document = {**ledger.document, member: documents}
    del ledger.document["next_after"]
    return found


def natural_key(what: str, name: str) -> str:
    """Return an idempotency key that follows from *what* and *name*, such as ``customer-add-alice``."""
    key = f"{what}-{name}"
    return key if len(key) <= NATURAL_KEY_CHARACTERS else f"{what}-{hashlib.sha256(name.encode()).hexdigest()[:40]}"

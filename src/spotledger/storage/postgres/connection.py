"""
Connections to PostgreSQL: how they are opened, their time-outs, and the one translation of the driver's errors.

Errors are translated by SQLSTATE or its class, never by message.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from spotledger.errors import LedgerCorrupt, SettingInvalid, StoreUnavailable

Connection: TypeAlias = psycopg.Connection[TupleRow]

#: How long one server of the URL may take to accept a connection.
CONNECT_TIMEOUT_SECONDS: Final = 3
#: How long a node waits for the write lock of the journal before the store counts as unavailable.
LOCK_TIMEOUT_MS: Final = 5_000
#: A node that holds the write lock and is silent for this long, as one that froze, loses it.
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 2_000
#: How long sent data may stay unacknowledged by the other machine before the connection counts as lost.
TCP_USER_TIMEOUT_MS: Final = 4_000
KEEPALIVE_IDLE_SECONDS: Final = 2
KEEPALIVE_INTERVAL_SECONDS: Final = 1
KEEPALIVE_COUNT: Final = 3

#: Connects to any server, a standby too. Without it, the server that takes writes is looked for.
ANY_SERVER: Final = {"target_session_attrs": "any"}

#: Settings that every session makes itself, whatever the URL, the role, the database or the server say: a commit waits
#: for the disk, and for a standby if the server names one; each statement of a write sees what was committed before it.
FIXED_SETTINGS: Final = {"synchronous_commit": "on", "default_transaction_isolation": "read committed"}
#: How much of the driver's own words about a failed attempt to connect is repeated.
WORDS_LIMIT: Final = 600

#: The reasons for errors, by SQLSTATE or its first characters.
_REASONS: Final = {
    "08": "the connection to it was lost",
    "2201E": "no synchronous standby is connected to the server, and the setting standby is required",
    "25006": "the server is a standby and takes no writes",
    "25P03": "the server ended a connection that was idle while it held the write lock",
    "28": "the server refused the role",
    "3D000": "the server has no such database",
    "40001": "another write interfered",
    "40P01": "the server ended a deadlock",
    "42501": "the role lacks a privilege",
    "53": "the server lacks room, memory or connections",
    "55P03": "another node held the write lock for too long",
    "57014": "the server cancelled the statement",
    "57P": "the server is stopping or starting",
    "58": "the server's disk answered with an error",
}
#: data_corrupted and index_corrupted.
_DAMAGE: Final = frozenset({"XX001", "XX002"})
#: The class of violated constraints.
_CONSTRAINT_CLASS: Final = "23"
#: A statement of a group changed another number of rows than it had to (see `statements.CHANGE_HOLDS`).
_OTHER_ROWS: Final = "22012"
#: Codes and classes of errors after which the server has ended the connection.
_FATAL_CLASSES: Final = ("08", "57P", "25P03")


class TimedOut(psycopg.OperationalError):
    """The server did not answer in time, and the connection was closed."""


def connect(url: str, *, application: str = "spotledger", steady_plans: bool = True) -> Connection:
    """
    Open a connection in autocommit to the server at *url* that takes writes.

    Args:
        url: A PostgreSQL URL or connection string, with one or several hosts; its settings override those here, except
            for `FIXED_SETTINGS`.
        application: The name by which the server lists the connection. If the URL gives a name, that stands in place
            of "spotledger" in it, so that connections of a node are still told apart.
        steady_plans: Plan every statement once and with indexes, which suits tables that grow.

    Raises:
        SettingInvalid: *url* is not a PostgreSQL URL.
        StoreUnavailable: No server that takes writes could be reached; the message says what is in the way.
    """
    try:
        asked = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise SettingInvalid("the database is not a PostgreSQL URL; postgresql://host/name would pass") from error
    settings: dict[str, Any] = {
        "client_encoding": "UTF8",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives": 1,
        "keepalives_count": KEEPALIVE_COUNT,
        "keepalives_idle": KEEPALIVE_IDLE_SECONDS,
        "keepalives_interval": KEEPALIVE_INTERVAL_SECONDS,
        "target_session_attrs": "read-write",
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        **asked,
        "application_name": _named(asked.get("application_name"), application),
    }
    fixed = [_option(name, value) for name, value in FIXED_SETTINGS.items()]
    settings["options"] = " ".join([*_options(steady_plans), str(asked.get("options") or ""), *fixed])
    try:
        return psycopg.connect(**settings, autocommit=True, prepare_threshold=0)
    except psycopg.Error as error:
        # No code tells a refused connection from a wrong password. These words never have the password.
        words = " ".join(str(error).split())[:WORDS_LIMIT]
        raise StoreUnavailable(f"the ledger could not be reached: {words}") from error


def _named(given: object, application: str) -> str:
    return f"{given}{application.removeprefix('spotledger')}" if given else application


def _options(steady_plans: bool) -> list[str]:
    """Return the settings of a session as command line options of the server."""
    values: dict[str, Any] = {
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "tcp_keepalives_idle": KEEPALIVE_IDLE_SECONDS,
        "tcp_keepalives_interval": KEEPALIVE_INTERVAL_SECONDS,
        "tcp_keepalives_count": KEEPALIVE_COUNT,
        "timezone": "UTC",
        "jit": "off",
    }
    if steady_plans:
        # A plan made while a table was small would scan all of it for ever.
        values |= {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off"}
        values |= {"enable_hashjoin": "off", "enable_mergejoin": "off", "max_parallel_workers_per_gather": 0}
    return [_option(name, value) for name, value in values.items()]


def _option(name: str, value: object) -> str:
    """Return a setting of a session as a command line option of the server."""
    return f"-c {name}={str(value).replace(' ', chr(92) + ' ')}"


class translated:
    """
    Run a block of statements, and raise an error of the driver as one of ours.

    Raises:
        StoreUnavailable: The server or another node is in the way, or the code is unknown; a retry may succeed.
        LedgerCorrupt: The server found its files damaged, or *checked* data violated a constraint or changed other
            rows than it had to.
    """

    __slots__ = ("_checked", "_doing")

    def __init__(self, doing: str, *, checked: bool = False) -> None:
        """Take the arguments of :func:`translate`."""
        self._doing = doing
        self._checked = checked

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Translate *error* if it is the driver's."""
        if isinstance(error, psycopg.Error):
            raise translate(error, self._doing, checked=self._checked) from error


def translate(error: psycopg.Error, doing: str, *, checked: bool = False) -> StoreUnavailable | LedgerCorrupt:
    """
    Return our error for *error*, by its SQLSTATE.

    Args:
        error: The driver's error.
        doing: What failed, for the message: ``"written"`` for a write that a caller may send again, ``"read"`` …
        checked: The rules have accepted what is written, so a violated constraint is a broken invariant.
    """
    state = error.sqlstate or ""
    if checked and state == _OTHER_ROWS:
        return LedgerCorrupt(
            f"the ledger could not be {doing}: a statement changed another number of rows than it had to, so what is"
            f" derived from the journal does not match it ({state})"
        )
    if is_damage(error) or (checked and state.startswith(_CONSTRAINT_CLASS)):
        found = error.diag.message_primary or type(error).__name__
        return LedgerCorrupt(f"the ledger could not be {doing}: {found} ({state})")
    reason = reason_of(error) or f"its server answered with {state or type(error).__name__}"
    advice = "; try again with the same idempotency key" if doing == "written" else ""
    return StoreUnavailable(f"the ledger could not be {doing}: {reason}{advice}")


def is_damage(error: psycopg.Error) -> bool:
    """Return whether *error* means that files of the server are damaged."""
    return error.sqlstate in _DAMAGE


def reason_of(error: psycopg.Error) -> str | None:
    """Return the reason for *error* in words, or None if its code is unknown."""
    state = error.sqlstate
    if isinstance(error, TimedOut):
        return "its server did not answer in time"
    if state is None:
        return "its server could not be reached, or the connection to it was lost" if is_lost(error) else None
    return _REASONS.get(state) or _REASONS.get(state[:3]) or _REASONS.get(state[:2])


def is_lost(error: psycopg.Error) -> bool:
    """Return whether the connection ended with *error*, so that the last statements may or may not have been done."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return state.startswith(_FATAL_CLASSES)


def any_server(address: str, *, always: bool = False) -> str:
    """Return *address* changed to accept a standby too, unless it says itself which server it wants, or *always*."""
    says = "target_session_attrs" in conninfo_to_dict(address)
    return address if says and not always else make_conninfo(address, **ANY_SERVER)

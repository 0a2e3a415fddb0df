"""
What a start asks of the server before it uses it: its encoding, the session's settings, the role's privileges.

Each refusal names what was found and the cure. A running node does not come here: it meets errors by their codes.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import psycopg

from spotledger.errors import SetupError, StoreUnavailable
from spotledger.storage.postgres.connection import FIXED_SETTINGS, Connection, any_server, connect, translated

#: What the nodes do with each table.
NEEDED_PRIVILEGES: Final[Mapping[str, str]] = {
    "schema_version": "SELECT",
    "ledger": "SELECT, UPDATE",
    "sealed": "SELECT, UPDATE",
    "entry": "SELECT, INSERT",
    "history": "SELECT, INSERT",
    "balance": "SELECT, INSERT, UPDATE",
    "hold": "SELECT, INSERT, UPDATE",
    "open_hold": "SELECT, INSERT, DELETE",
    "coin": "SELECT, INSERT",
    "customer": "SELECT, INSERT",
    "reversal": "SELECT, INSERT",
    "key_version": "SELECT, UPDATE",
    "access_keys": "SELECT, INSERT, UPDATE",
    "operator_tokens": "SELECT, INSERT, UPDATE",
    "kept_key_requests": "SELECT, INSERT",
    "copy_going_on": "SELECT",
    "master_key_mark": "SELECT, INSERT, UPDATE",
    "retired_master_keys": "SELECT, INSERT",
    "master_key_holders": "SELECT, INSERT, UPDATE, DELETE",
    "clock_trust": "SELECT, INSERT, UPDATE",
}
#: How long a start waits for a standby that the server names.
STANDBY_SECONDS: Final = 5.0
_GIVE_UP: Final = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
_MARK: Final = "spotledger.session_mark"
_NO_POOLER: Final = (
    "Something between this node and the server, such as PgBouncer, {found}. A node needs sessions of its own: name the"
    " address of the server itself, or a pooler with pool_mode = session that passes the startup parameter options on."
)


@contextmanager
def connected_at_start(address: str) -> Iterator[Connection]:
    """
    Connect to the server at *address* that takes writes, check it, and close the connection at the end of the block.

    Raises:
        SetupError: It has another encoding than UTF8, is read-only by a setting, or cannot be used through what
            stands between; the message names the cure.
        StoreUnavailable: No server that takes writes could be reached; the message says what is in the way.
    """
    try:
        connection = connect(address)
    except StoreUnavailable as error:
        raise _reason_for(address, error) from error
    with connection, bounded_by_standby(connection, address):
        check_encoding(connection)
        _check_settings(connection)
        _check_sessions(connection, address)
        yield connection


@contextmanager
def bounded_by_standby(connection: Connection, address: str) -> Iterator[None]:
    """
    Have the server give up waiting for a standby that is away while *connection*, to *address*, commits in the block.

    Raises:
        StoreUnavailable: It gave up, so the standby may lack what the block has written.
    """
    warned, ended = threading.Event(), threading.Event()

    def note(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warned.set()

    def watch() -> None:
        while not ended.wait(STANDBY_SECONDS):
            with suppress(StoreUnavailable, psycopg.Error), connect(address) as other:
                other.execute(_GIVE_UP.encode(), (connection.info.backend_pid,))

    connection.add_notice_handler(note)
    thread = threading.Thread(target=watch, name="watch start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        connection.remove_notice_handler(note)
    if warned.is_set():
        raise StoreUnavailable("the standby did not confirm what the start has written; start again once it is there")


def check_encoding(connection: Connection) -> None:
    """Check that the database stores any text that a caller may send; raise SetupError."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SetupError(
            f"The database {connection.info.dbname} has the encoding {encoding}, which cannot store every reference;"
            " UTF8 would pass: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
        )


def check_privileges(connection: Connection) -> None:
    """
    Check that the role may do with each table of the ledger what nodes do.

    Raises:
        SetupError: It may not; the message has the GRANT that is missing.
        StoreUnavailable: The server is in the way.
    """
    with translated("opened"):
        found = connection.execute(
            "SELECT name, privilege FROM unnest(%s::text[], %s::text[]) AS needed (name, privilege)"
            " WHERE NOT has_table_privilege(name, privilege)",
            (
                [name for name, listed in NEEDED_PRIVILEGES.items() for _ in listed.split(", ")],
                [each for listed in NEEDED_PRIVILEGES.values() for each in listed.split(", ")],
            ),
        ).fetchall()
    if found:
        grants = "; ".join(f"GRANT {privilege} ON {name} TO {connection.info.user}" for name, privilege in found)
        raise SetupError(
            f"The role {connection.info.user} lacks privileges of the ledger's tables. Run as their owner: {grants}"
        )


def check_sees_standbys(connection: Connection) -> None:
    """Check that the role may see whether a synchronous standby is connected; raise SetupError."""
    with translated("opened"):
        [(sees,)] = connection.execute("SELECT pg_has_role('pg_read_all_stats', 'USAGE')").fetchall()
    if not sees:
        raise SetupError(
            f"The role {connection.info.user} may not see whether a standby is connected, which the setting standby ="
            f" required needs. Run as a superuser: GRANT pg_read_all_stats TO {connection.info.user}"
        )


def _check_settings(connection: Connection) -> None:
    """Check that the settings of the session, which it sent when it connected, are in force."""
    with translated("opened"):
        found = connection.execute(
            "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS asked (name)",
            (list(FIXED_SETTINGS),),
            prepare=False,  # a pooler may not keep what is prepared
        ).fetchall()
    wrong = [f"{name} is {value}" for name, value in found if value != FIXED_SETTINGS[name]]
    if wrong:
        raise SetupError(_NO_POOLER.format(found=f"drops the settings of the session ({', '.join(wrong)})"))


def _check_sessions(connection: Connection, address: str) -> None:
    """Check that one connection is one session of the server: a pooler may hand each transaction to another."""
    mark = secrets.token_hex(8)

    def ask(connection: Connection, text: str, *values: str) -> object:
        return connection.execute(text.encode(), values, prepare=False).fetchall()[0][0]

    with translated("opened"):
        pid = ask(connection, "SELECT pg_backend_pid(), set_config(%s, %s, false)", _MARK, mark)
        if pid == connection.info.backend_pid:
            return  # no pooler answered the connection
        with connect(address) as other, other.transaction():
            theirs = ask(other, "SELECT current_setting(%s, true)", _MARK)
            ours = ask(connection, "SELECT current_setting(%s, true)", _MARK)
    if theirs == mark or ours != mark:
        raise SetupError(_NO_POOLER.format(found="gives each transaction another session of the server"))


def _reason_for(address: str, error: StoreUnavailable) -> SetupError | StoreUnavailable:
    """Return the error for a start that could not connect: *error*, or a better one if a second look finds it."""
    with suppress(StoreUnavailable), connect(any_server(address, always=True)) as connection:
        info = connection.info
        if info.parameter_status("in_hot_standby") == "on":
            return StoreUnavailable(
                f"the ledger could not be reached: the server at {info.host}:{info.port} is a standby and takes no"
                " writes; the address of the primary, or of all servers, would pass"
            )
        if info.parameter_status("default_transaction_read_only") == "on":
            return SetupError(
                f"Transactions of {info.user} in the database {info.dbname} are read-only by"
                " default_transaction_read_only, a setting of the server, the database or the role. If nothing means to"
                f" stop writes: ALTER DATABASE {info.dbname} RESET default_transaction_read_only, or ALTER ROLE"
                f" {info.user} RESET default_transaction_read_only."
            )
    with suppress(psycopg.Error), psycopg.connect(address, connect_timeout=3):
        return SetupError(_NO_POOLER.format(found="refuses the settings of a session"))
    return error

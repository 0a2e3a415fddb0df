"""What a start finds out about a server that cannot be used as it is: it is refused, and the cure is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import spotledger
from servers import postgres
from servers.kept import free_port, give, make_folder, ordinary_identity, start, until_ready
from servers.missing import ServerMissing, skip_or_fail
from servers.programs import find_program
from spotledger.errors import SetupError, SpotledgerError, StoreUnavailable
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.server_check import NEEDED_PRIVILEGES
from support_core import seed, spot


def name_of(url: str) -> str:
    """Return the name of the database of *url*."""
    return urlsplit(url).path.lstrip("/")


def run(url: str, *texts: str) -> None:
    """Run statements in the database of *url*."""
    with psycopg.connect(url, autocommit=True) as connection:
        for text in texts:
            connection.execute(text.encode())


def write(url: str) -> None:
    """Open a ledger and book something in it."""
    with spotledger.open(url) as ledger:
        seed(ledger)
        assert ledger.balances(spot("ann"))["btc"].available == 1000 * 10**8


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII"])
def test_database_that_cannot_store_every_text_is_refused(
    postgres_server: postgres.PostgresServer, encoding: str
) -> None:
    """A reference in Chinese would stop each node that it reaches; nothing is made in such a database."""
    name = f"test_{encoding.lower()}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name), sql.Literal(encoding)
            )
        )
    try:
        with pytest.raises(SetupError, match=f"encoding {encoding}.*ENCODING 'UTF8'"):
            spotledger.open(postgres_server.url(name))
        with psycopg.connect(postgres_server.url(name)) as connection:
            assert connection.execute("SELECT to_regclass('entry')").fetchone() == (None,)
    finally:
        postgres_server.drop_database(name)


@pytest.mark.parametrize(
    "default",
    [
        "synchronous_commit = off",
        "synchronous_commit = local",
        "default_transaction_isolation = serializable",
        "client_encoding = LATIN1",
        "timezone = 'Asia/Tokyo'",
        "enable_indexscan = off",
    ],
)
@pytest.mark.parametrize("where", ["DATABASE", "ROLE", "URL"])
def test_defaults_of_database_role_and_url_do_not_change_what_a_session_promises(
    postgres_url: str, default: str, where: str
) -> None:
    """Whatever is set by default: a commit of ours is synced, and each statement sees what was committed before it."""
    url, name = postgres_url, name_of(postgres_url)
    setting = default.split(" ")[0]
    role = f"role_{name}"
    if where == "DATABASE":
        run(url, f"ALTER DATABASE {name} SET {default}")
    elif where == "ROLE":
        run(url, f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'p'", f"ALTER ROLE {role} SET {default}")
        url = f"postgresql://{role}:p@{urlsplit(url).hostname}:{urlsplit(url).port}/{name}"
    elif setting in ("synchronous_commit", "default_transaction_isolation"):
        url = f"{url}?options=-c%20{default.replace(' ', '').replace('=', '%3D')}"
    try:
        with spotledger.open(url) as ledger:
            seed(ledger)
            store = ledger._store
            session = store._writing  # type: ignore[attr-defined]
            assert session.execute("SELECT current_setting('synchronous_commit')") == [("on",)]
            assert session.execute("SELECT current_setting('transaction_isolation')") == [("read committed",)]
        write(url)
    finally:
        if where == "ROLE":
            run(postgres_url, f"REASSIGN OWNED BY {role} TO spotledger", f"DROP ROLE {role}")


@pytest.mark.parametrize("table", NEEDED_PRIVILEGES)
def test_role_without_a_privilege_is_refused_with_the_grant_that_it_lacks(postgres_url: str, table: str) -> None:
    """A role that owns nothing needs exactly what is listed; each one that is missing is named, and its cure works."""
    name = name_of(postgres_url)
    role = f"role_{name}"
    url = f"postgresql://{role}:p@{urlsplit(postgres_url).hostname}:{urlsplit(postgres_url).port}/{name}"
    spotledger.open(postgres_url).close()
    run(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    try:
        for each, privileges in NEEDED_PRIVILEGES.items():
            run(postgres_url, f"GRANT {privileges} ON {each} TO {role}")
        missing = NEEDED_PRIVILEGES[table].split(", ")[-1]
        run(postgres_url, f"REVOKE {missing} ON {table} FROM {role}")
        with pytest.raises(SpotledgerError) as refused:
            spotledger.open(url)
        assert isinstance(refused.value, SetupError) or table == "schema_version"
        run(postgres_url, f"GRANT {missing} ON {table} TO {role}")
        if isinstance(refused.value, SetupError):
            assert f"GRANT {missing} ON {table} TO {role}" in str(refused.value)
        write(url)
    finally:
        run(postgres_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_role_that_does_not_see_standbys_is_refused_where_one_is_required(postgres_url: str) -> None:
    """It would take every standby for absent and refuse every write, so the start names the GRANT; it then passes."""
    name = name_of(postgres_url)
    role = f"role_{name}"
    url = f"postgresql://{role}:p@{urlsplit(postgres_url).hostname}:{urlsplit(postgres_url).port}/{name}"
    run(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'p'", f"GRANT CREATE ON SCHEMA public TO {role}")
    try:
        with pytest.raises(SetupError, match=f"GRANT pg_read_all_stats TO {role}"):
            spotledger.open(url, requires_standby=True)
        run(postgres_url, f"GRANT pg_read_all_stats TO {role}")
        with spotledger.open(url, requires_standby=True) as ledger:
            assert ledger.head.seq == 0
    finally:
        run(postgres_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_read_only_database_is_named(postgres_url: str) -> None:
    """default_transaction_read_only stops writes on purpose, perhaps: it is named, not overridden."""
    run(postgres_url, f"ALTER DATABASE {name_of(postgres_url)} SET default_transaction_read_only = on")
    with pytest.raises(SetupError, match="RESET default_transaction_read_only"):
        spotledger.open(postgres_url)


# --- poolers ----------------------------------------------------------------------------------------------


@contextmanager
def pooler(url: str, **settings: str) -> Iterator[str]:
    """Run PgBouncer in front of the server of *url*; give the URL through it."""
    try:
        program = find_program("pgbouncer")
    except ServerMissing as problem:
        skip_or_fail(problem)
    parts, folder, port = conninfo_to_dict(url), make_folder(ordinary_identity()), free_port()
    lines = {
        "listen_addr": "127.0.0.1", "listen_port": str(port), "auth_type": "any", "unix_socket_dir": str(folder),
        **settings,
    }  # fmt: skip
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    target = f"host={parts['host']} port={parts['port']} user={parts['user']} password={parts['password']}"
    config = folder / "pgbouncer.ini"
    config.write_text(f"[databases]\n* = {target}\n[pgbouncer]\n{text}")
    give(config, ordinary_identity())
    kept = start([program, config], folder=folder, identity=ordinary_identity())
    through = f"postgresql://{parts['user']}@127.0.0.1:{port}/{name_of(url)}"
    try:
        until_ready(kept, lambda: answers(through))
        yield through
    finally:
        kept.let_go()


def answers(url: str) -> bool:
    """Say whether a plain connection to *url* works."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.Error:
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pool_mode": "transaction"}, "refuses the settings of a session"),
        ({"pool_mode": "transaction", "ignore_startup_parameters": "options"}, "drops the settings of the session"),
        ({"pool_mode": "session"}, "refuses the settings of a session"),
        ({"pool_mode": "session", "ignore_startup_parameters": "options"}, "drops the settings of the session"),
    ],
)
def test_pooler_that_takes_a_session_apart_is_refused(postgres_url: str, settings: dict[str, str], named: str) -> None:
    """PgBouncer in front of the server: a start says that it is there, what it does, and what to do."""
    run(postgres_url, f"ALTER DATABASE {name_of(postgres_url)} SET synchronous_commit = local")
    with pooler(postgres_url, **settings) as through, pytest.raises(SetupError, match=f"PgBouncer, {named}"):
        spotledger.open(through)


def test_pooler_that_gives_each_transaction_another_session_is_refused(postgres_url: str) -> None:
    """Where the server's own defaults pass, prepared statements and locks would still meet another session."""
    settings = {"pool_mode": "transaction", "ignore_startup_parameters": "options"}
    with pooler(postgres_url, **settings) as through, pytest.raises(SetupError, match="each transaction another"):
        spotledger.open(through)


# --- attempts to connect ----------------------------------------------------------------------------------


def test_failed_connection_says_what_was_wrong(postgres_server: postgres.PostgresServer, postgres_url: str) -> None:
    """Refused, not resolved, wrong password, no such database: each is told from the others, without the password."""
    secret = str(conninfo_to_dict(postgres_url)["password"])
    wrong = {
        "refused": postgres_url.replace(f":{postgres_server.port}/", f":{free_port()}/"),
        "no-such-host.invalid": postgres_url.replace("@127.0.0.1", "@no-such-host.invalid"),
        "password authentication failed": postgres_url.replace(secret, "not-it"),
        'database "nowhere" does not exist': postgres_server.url("nowhere"),
    }
    for words, url in wrong.items():
        with pytest.raises(StoreUnavailable, match=words) as failed:
            spotledger.open(url)
        assert secret not in str(failed.value)


def test_connections_are_told_apart_by_their_names(postgres_url: str) -> None:
    """Each connection of a node has a name of its own in pg_stat_activity, which says what it is for."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        with connect(postgres_url, application="spotledger test") as connection:
            names = connection.execute(
                "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
            ).fetchall()
    found = sorted(name for (name,) in names)
    assert found == ["spotledger follow", "spotledger read", "spotledger test", "spotledger write"]

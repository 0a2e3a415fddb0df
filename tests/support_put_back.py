"""A database that is put back to an earlier state, as by a point-in-time recovery, under the same address."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from servers.kept import until


def named(url: str, database: str) -> str:
    """Return *url* with another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def keep_state(url: str, name: str = "earlier") -> str:
    """Keep the database of *url* as it is now; return the URL of what was kept."""
    kept = f"{urlsplit(url).path.lstrip('/')}_{name}"
    _alone(url, lambda at, database: at.execute(_text("CREATE DATABASE {} TEMPLATE {}", kept, database)))
    return named(url, kept)


def swap(url: str, kept: str) -> None:
    """Have the address *url* lead to the database at *kept*, and the other way round."""
    other = urlsplit(kept).path.lstrip("/")

    def rename(at: psycopg.Connection, database: str) -> None:
        at.execute(_text("ALTER DATABASE {} RENAME TO {}", database, f"{database}_swapped"))
        at.execute(_text("ALTER DATABASE {} RENAME TO {}", other, database))
        at.execute(_text("ALTER DATABASE {} RENAME TO {}", f"{database}_swapped", other))

    _alone(url, rename)
    _let_in(url, other)


def _alone(url: str, act: Callable[[psycopg.Connection, str], object]) -> None:
    """Run *act* while nobody is connected to the database of *url*."""
    database = urlsplit(url).path.lstrip("/")
    with psycopg.connect(named(url, "postgres"), autocommit=True) as at:
        at.execute(_text("ALTER DATABASE {} ALLOW_CONNECTIONS false", database))

        def is_empty() -> bool:
            ended = at.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,)
            ).fetchall()
            return not ended

        until(is_empty, 10, "the database is not empty of connections")
        act(at, database)
    _let_in(url, database)


def _let_in(url: str, database: str) -> None:
    with psycopg.connect(named(url, "postgres"), autocommit=True) as at:
        at.execute(_text("ALTER DATABASE {} ALLOW_CONNECTIONS true", database))


def _text(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*(sql.Identifier(name) for name in names))  # type: ignore[arg-type]

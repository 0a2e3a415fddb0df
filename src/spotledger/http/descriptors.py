"""File descriptors: the limit is raised to what the connections need, or the connections are fitted to the limit."""

from __future__ import annotations

import logging
import resource
from typing import Final, NamedTuple

#: Descriptors for everything but connections: files of the ledger, backups, the database, Redis, threads.
RESERVED: Final = 256
#: Of a low limit, the share that is kept for that.
_RESERVED_SHARE: Final = 0.25
_log = logging.getLogger("spotledger.serve")


class Connections(NamedTuple):
    """How many connections each listener may have."""

    public: int
    operator: int

    @classmethod
    def of(cls, public: int) -> Connections:
        """Return how many belong to *public* ones: a tenth for operators, who are few."""
        return cls(public, max(1, public // 10))


def fitted_connections(wanted: int) -> Connections:
    """
    Raise the limit of file descriptors, as far as allowed, and return how many connections each listener may have.

    *wanted* is how many the public listener should have. A line in the log says what was raised or cut.
    """
    connections = Connections.of(wanted)
    needed = sum(connections) + RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _raised(soft, hard, needed)
    if limit is None or limit >= needed:
        level = logging.DEBUG if limit in (None, soft) else logging.INFO
        _log.log(level, "up to %d public and %d operator connections; file descriptors: %s", *connections, limit)
        return connections
    free = limit - min(RESERVED, int(limit * _RESERVED_SHARE))
    connections = Connections.of(max(1, free * 10 // 11))
    _log.warning(
        "up to %d public and %d operator connections: the process may have %d file descriptors; for %d it needs %d",
        *connections,
        limit,
        wanted,
        needed,
    )
    return connections


def _raised(soft: int, hard: int, needed: int) -> int | None:
    """Return the limit after raising it to *needed*, or as far as allowed; None if there is none."""
    if soft == resource.RLIM_INFINITY:
        return None
    if soft >= needed:
        return soft
    target = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):
        return soft
    return target

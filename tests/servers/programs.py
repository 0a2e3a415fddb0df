"""Programs that only Debian carries for us: HAProxy, etcd, Patroni, ip. Tests without them say why they are skipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from servers import debian
from servers.kept import program
from servers.missing import ServerMissing

PACKAGES: Final = {
    "haproxy": "haproxy",
    "etcd": "etcd-server",
    "patroni": "patroni",
    "ip": "iproute2",
    "pgbouncer": "pgbouncer",
}


@cache
def find_program(name: str) -> Path:
    """
    Return the path of *name*, installed from Debian's package if it is not there.

    Raises:
        ServerMissing: It is not there and could not be installed.
    """
    found = program(name)
    if found is None:
        problem = debian.install(PACKAGES[name])
        found = program(name)
        if found is None:
            raise ServerMissing(f"{name} is not installed; {problem}")
    return Path(found)

"""The hosts of an address, one at a time."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from spotledger.storage.postgres.right_server import RightServer


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("postgresql://db1/ledger", []),
        ("postgresql:///ledger?host=/run/postgresql", []),
        ("postgresql://db1,db2:6000/ledger", [("db1", "5432"), ("db2", "6000")]),
        ("host=db1,db2 hostaddr=,10.0.0.2 port=,6000", [("db1", "5432"), ("db2", "6000")]),
        ("host=db1,db2 port=6000 dbname=ledger", [("db1", "6000"), ("db2", "6000")]),
        ("hostaddr=10.0.0.1,10.0.0.2 port=6000,6001 dbname=ledger", [("10.0.0.1", "6000"), ("10.0.0.2", "6001")]),
    ],
)
def test_hosts_of_an_address_are_given_with_the_port_of_each(address: str, hosts: list[tuple[str, str]]) -> None:
    """Each comes with an address that leads to it alone, with all else that was asked; one host is none of several."""
    found = list(RightServer(address).hosts())
    assert [(host, port) for host, port, _ in found] == hosts
    for host, port, one in found:
        parts = conninfo_to_dict(one)
        assert parts.get("host", parts.get("hostaddr")) == host
        assert (parts.get("port") or "5432") == port
        assert parts.get("dbname", "ledger") == "ledger"

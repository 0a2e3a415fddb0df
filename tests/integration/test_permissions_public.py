"""Every call of the public listener with every credential: let in or refused as the table says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from permissions.public_rows import CREDENTIALS, PASSES, ROWS, Credential, Row, cell, issue_keys
from spotledger.security.access_keys import PERMISSIONS
from support_public import Service, service

#: Alice has money, and bob has none.
CUSTOMERS = ("alice", "bob")
UNLIMITED = {"asset_limit_per_second": 0, "account_limit_per_second": 0, "address_limit_per_minute": 0}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """Two services that differ in whose access keys there are; no limit gets in the way."""
    with (
        service(tmp_path_factory.mktemp("alices") / "data", **UNLIMITED) as alices,
        service(tmp_path_factory.mktemp("bobs") / "data", **UNLIMITED) as bobs,
    ):
        for made, customer in zip((alices, bobs), CUSTOMERS, strict=True):
            issue_keys(made, customer)
        yield [alices, bobs]


def state(made: Service) -> dict[str, Any]:
    """Return all that a refused call could have changed, with what would be stored about the use of access keys."""
    tables = ("access_keys", "operator_tokens", "kept_key_requests")
    rows = {name: made.tables.rows(f"SELECT * FROM {name} ORDER BY 1") for name in tables}
    return {"head": made.ledger.head, "rows": rows, "used": dict(made.key_ring.used)}


def test_every_call_of_the_public_listener_has_a_row(services: list[Service]) -> None:
    """The paths are those of the application: a call that is in no row of the table fails here."""
    there = set(services[0].app._calls)
    assert there == {row.path for row in ROWS} | {f"{row.path}/" for row in ROWS}


def test_every_permission_is_tried() -> None:
    """A permission that is added has a column of its own."""
    assert {credential.permission for credential in CREDENTIALS} - {""} == set(PERMISSIONS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_call_lets_in_whom_the_table_says(services: list[Service], row: Row) -> None:
    """Each credential passes or is refused with the code in its cell, however the call is sent."""
    found, expected = {}, {}
    for credential in CREDENTIALS:
        for way in row.ways:
            found[way, credential.name] = cell(credential.ask(services[0], row, way), row)
            expected[way, credential.name] = credential.expected(row)
    assert found == expected


@pytest.mark.parametrize("credential", [it for it in CREDENTIALS if it.refused], ids=lambda credential: credential.name)
def test_refused_call_changes_nothing_and_reveals_nothing(services: list[Service], credential: Credential) -> None:
    """Nothing is stored, no use is noted, and the answer is the same whoever the access key is of."""
    alices, bobs = services
    refused = [row for row in ROWS if credential.expected(row) != PASSES]
    assert bool(refused) == (credential.permission != "read")
    for row in refused:
        before = state(alices)
        answers = [credential.ask(made, row) for made in (alices, bobs)]
        assert answers[0].body == answers[1].body
        assert _told(answers[0].headers) == _told(answers[1].headers)
        assert not any(customer.encode() in answers[0].body for customer in CUSTOMERS)
        assert state(alices) == before


def _told(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in headers if pair[0] != "x-request-id"]


def test_comparison_would_notice_a_use_and_a_write(services: list[Service]) -> None:
    """A call that passes notes the use of its access key, and a write moves the head."""
    alices = services[0]
    passing = next(credential for credential in CREDENTIALS if credential.permission == "read")
    alices.key_ring.used.clear()
    before = state(alices)
    assert cell(passing.ask(alices, ROWS[0]), ROWS[0]) == PASSES
    after = state(alices)
    assert before["used"] != after["used"]
    alices.ledger.deposit("alice", "usdt", "1", key="seen")
    assert state(alices)["head"] != after["head"]

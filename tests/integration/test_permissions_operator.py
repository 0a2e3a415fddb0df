"""Every call of the operator listener with every credential: let in or refused as the table says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from permissions.operator_credentials import CREDENTIALS, PASSES, Credential
from permissions.operator_rows import ADMIN, MISSING, NO_TOKEN, ROWS, Row
from permissions.world import Told, World
from spotledger.errors import MethodNotAllowed, NotFound, ScopeMissing, TokenRefused
from spotledger.http import wire
from spotledger.security.tokens import SCOPES
from support_operator import operator_api

STATUSES = {error.code: wire.row_of(error).status for error in (TokenRefused, ScopeMissing)}


class Sent:
    """The credentials, made once, and requests with them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.headers = {credential.name: credential.make(world) for credential in CREDENTIALS}

    def call(self, row: Row, credential: Credential, names: dict[str, str], method: str = "") -> Told:
        """Make the call of *row* on what *names* name."""
        world = self.world
        body = row.body(world) if row.body else None
        key = world.fresh("permission-") if row.keyed else ""
        headers = {**row.headers, **self.headers[credential.name]}
        return world.call(method or row.method, row.path.format(**names), headers, body, row.query, key)

    def existing(self, row: Row) -> dict[str, str]:
        """Return names of things that are there, and that no call has used up."""
        return {name: str(make(self.world)) for name, make in row.names.items()}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sent]:
    """A ledger with everything in it, and every credential."""
    with operator_api(tmp_path_factory.mktemp("permissions") / "data") as api:
        yield Sent(World(api))


def methods(row: Row) -> list[str]:
    return ["GET", "HEAD"] if row.method == "GET" else [row.method]


def cell(told: Told, method: str, row: Row) -> str:
    """Return what an answer is as a cell of the table."""
    if told.status in row.answers:
        return PASSES
    refused = [code for code, status in STATUSES.items() if status == told.status]
    if refused and (told.code or method == "HEAD"):  # an answer to HEAD has no body that could name the code
        return told.code or refused[0]
    return f"{told.status} {told.body}"


def test_every_call_of_the_operator_api_has_a_row(sent: Sent) -> None:
    """The routes are those of the application: a call that is in no row of the table fails here."""
    there = {(method, route.path) for route in sent.world.api.app.routes for method in route.calls if method != "HEAD"}
    assert there == {(row.method, row.path) for row in ROWS}


def test_rows_need_scopes_that_exist_and_every_scope_is_needed_somewhere() -> None:
    """A scope that lets nobody in anywhere would be one that nobody has tried; one is for calls that are to come."""
    needed = set().union(*(row.scopes for row in ROWS)) - {NO_TOKEN}
    assert needed <= set(SCOPES)
    assert set(SCOPES) - needed <= {"ledger:control"}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_call_lets_in_whom_the_table_says(sent: Sent, row: Row) -> None:
    """Each credential passes, with the answer of a success, or is refused with the code in its cell."""
    found, expected = {}, {}
    for credential in CREDENTIALS:
        for method in methods(row):
            told = sent.call(row, credential, sent.existing(row), method)
            found[method, credential.name] = cell(told, method, row)
            expected[method, credential.name] = credential.expected(row)
    assert found == expected


@pytest.mark.parametrize("row", [row for row in ROWS if row.needs != NO_TOKEN], ids=str)
def test_refused_call_changes_nothing_and_reveals_nothing(sent: Sent, row: Row) -> None:
    """Journal and credentials stay as they are; the answer is the same whether or not the thing is there."""
    names = sent.existing(row)
    missing = {name: MISSING[name] for name in names}
    for credential in CREDENTIALS:
        if credential.expected(row) == PASSES:
            continue
        world = sent.world
        body, key = row.body(world) if row.body else None, world.fresh("refused-")
        headers = {**row.headers, **sent.headers[credential.name]}
        before = world.state()
        path = row.path.format(**names)
        answers = [
            world.call(row.method, path, headers, body, row.query, key),
            world.call(row.method, row.path.format(**missing), headers, body, row.query, key),
        ]
        if row.needs not in credential.scopes:  # what its body says does not matter
            answers.append(world.call(row.method, path, headers, None if body is None else b"{", "unknown=1"))
        if credential.expected(row) == TokenRefused.code:
            answers += [world.call("PUT", path, headers), world.call(row.method, "/v1/nothing", headers)]
        assert set(answers) == {answers[0]}, credential.name
        assert answers[0].status in (401, 403)
        assert world.state() == before, credential.name


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != ADMIN])
def test_token_in_use_learns_which_paths_there_are_and_no_more(sent: Sent, scope: str) -> None:
    """Whatever its scope, a token is told that a path is unknown or takes another method."""
    headers = sent.headers[scope]
    assert sent.world.call("GET", "/v1/nothing", headers).code == NotFound.code
    assert sent.world.call("PUT", "/v1/coins", headers).code == MethodNotAllowed.code


def test_refused_call_is_seen_as_a_change_if_it_changes_anything(sent: Sent) -> None:
    """The comparison above would notice: each kind of write makes another state."""
    world = sent.world
    states = [world.state()]
    for change in (world.deposit, world.access_key, lambda: world.token("ledger:read")):
        change()
        states.append(world.state())
    made = world.api.request(
        "POST", "/v1/backups", json={"file": world.fresh("seen") + ".backup"}, headers=world.api.headers()
    )
    assert made.status_code == 200
    states.append(world.state())
    assert all(before != after for before, after in pairwise(states))

"""The one table from errors to answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from spotledger import errors
from spotledger.http import wire

CLIENT_ONLY = {errors.TransportError, errors.ProtocolError}


def leaves(kind: type[errors.SpotledgerError]) -> Iterator[type[errors.SpotledgerError]]:
    """Return the classes of the tree in `spotledger.errors` that have no class below them there."""
    below = [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]
    if not below:
        yield kind
    for sub in below:
        yield from leaves(sub)


SAID = [kind for kind in leaves(errors.SpotledgerError) if not issubclass(kind, (errors.SetupError, *CLIENT_ONLY))]


@pytest.mark.parametrize("kind", SAID)
def test_every_leaf_has_a_row_of_its_own(kind: type[errors.SpotledgerError]) -> None:
    """Each error that a caller may see has its row: a true status and a v1 code."""
    row = wire.TABLE[kind]
    assert 400 <= row.status <= 599
    assert row.v1_code in (307, 308, 400, 404)


def test_no_row_is_for_nothing() -> None:
    """Beside the leaves the table has the root, and the two bases that are raised themselves."""
    raised_themselves = {errors.InvalidRequest, errors.Unavailable}
    assert set(wire.TABLE) - set(SAID) == {errors.SpotledgerError, *raised_themselves}


@pytest.mark.parametrize("kind", SAID)
def test_problem_has_the_members_of_rfc_9457(kind: type[errors.SpotledgerError]) -> None:
    """A problem says type, title, status, detail, our code and the request, and details can't replace these."""
    problem = wire.problem(kind(None, status=1, code="x", field="amount"), "r-1")
    assert problem["code"] == kind.code
    assert problem["status"] == wire.TABLE[kind].status
    assert (problem["field"], problem["request_id"], problem["type"]) == ("amount", "r-1", "about:blank")
    json.dumps(problem)


def test_kept_refusal_tells_its_position() -> None:
    """Where a refusal is kept in the journal, its seq is told."""
    refused = errors.InsufficientAvailable()
    assert "seq" not in wire.problem(refused, "r")
    refused.seq = 7
    assert wire.problem(refused, "r")["seq"] == 7

"""A request as applications see it: headers asked for once, and paths with parameters."""

from __future__ import annotations

import pytest

from spotledger.http.h1.request import Request, path_pattern


def test_header_that_came_twice_is_not_taken_for_one() -> None:
    """Where it matters that a header is unambiguous, two of them, even equal ones, are as good as none."""
    request = Request("GET", "/", "", [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")])
    assert (request.header(b"a"), request.header_once(b"a")) == (b"1", None)
    assert (request.header(b"b"), request.header_once(b"b")) == (b"2", b"2")
    assert (request.header(b"c"), request.header_once(b"c")) == (None, None)
    assert Request("GET", "/", "", [(b"a", b"")]).header_once(b"a") == b""


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/v1/holds/12", {"hold": "12"}),
        ("/v1/holds/a.b", {"hold": "a.b"}),
        ("/v1/holds/", None),
        ("/v1/holds/12/", None),
        ("/v1/holds/1/2", None),
        ("/v1/holds/12\n", {"hold": "12\n"}),
        ("/v1/holds/12/entries", None),
        ("/v1xholds/12", None),
        ("/x/v1/holds/12", None),
    ],
)
def test_path_parameter_is_one_part_and_not_empty(path: str, parameters: dict[str, str] | None) -> None:
    """A parameter is all between two slashes, and nothing before, after or like the path passes for it."""
    match = path_pattern("/v1/holds/{hold}").match(path)
    assert (match.groupdict() if match else None) == parameters


def test_path_with_a_dot_matches_only_a_dot() -> None:
    """What is written in a path is taken literally."""
    pattern = path_pattern("/openapi.json")
    assert pattern.match("/openapi.json")
    assert not pattern.match("/openapi_json")
    assert not pattern.match("/openapi.json\n")

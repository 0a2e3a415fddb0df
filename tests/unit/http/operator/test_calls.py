"""Reading the body of a request of the operator API: complete, with a maximum size, within a time limit."""

from __future__ import annotations

import asyncio
import time

import pytest

from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.h1.request import BadRequest, BodySource, ClientDisconnected, Request
from spotledger.http.operator import calls as operator_calls
from spotledger.http.operator.calls import path_pattern, query_of, read_body


class Source:
    """A body that arrives later, never, or incompletely."""

    def __init__(self, body: bytes | None = None, problem: Exception | None = None) -> None:
        self.body = body
        self.problem = problem

    async def read(self, limit: int) -> bytes:
        """Return the body."""
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        if self.body is None:
            await asyncio.Event().wait()
        return self.body or b""


def request(body: bytes | BodySource) -> Request:
    return Request("POST", "/v1/deposits", "", [], body)


def test_body_that_is_there_or_comes_is_read_whole() -> None:
    """It makes no difference whether the body arrived with the head."""
    assert asyncio.run(read_body(request(b"abc"))) == b"abc"
    assert asyncio.run(read_body(request(Source(b"abc")))) == b"abc"


@pytest.mark.parametrize("body", [b"abcde", Source(b"abcde")], ids=["there", "to come"])
def test_body_over_the_limit_is_refused(body: bytes | BodySource) -> None:
    """A body as long as the limit passes; one byte more does not."""
    assert asyncio.run(read_body(request(body), 5)) == b"abcde"
    with pytest.raises(BadRequest, match="longer than 4 bytes"):
        asyncio.run(read_body(request(body), 4))


def test_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops half-way is refused after the time limit, and the task is not left cancelled."""
    monkeypatch.setattr(operator_calls, "BODY_TIMEOUT_SECONDS", 0.01)

    async def read() -> int:
        with pytest.raises(MalformedRequest, match="was not complete"):
            await read_body(request(Source()))
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(read()) == 0


def test_body_of_a_caller_who_went_is_not_answered() -> None:
    """ClientDisconnected is passed on."""
    with pytest.raises(ClientDisconnected):
        asyncio.run(read_body(request(Source(problem=ClientDisconnected()))))


def test_cancelling_from_elsewhere_is_passed_on() -> None:
    """A task that is cancelled while it reads ends as cancelled, and so does its timer."""

    async def read() -> bool:
        task = asyncio.create_task(read_body(request(Source())))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(read())


def test_header_asked_for_once_is_none_where_it_is_given_twice() -> None:
    """Of two headers with the same name neither is chosen; similar names are other headers."""
    found = Request("GET", "/", "", [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert (found.header_once(b"a"), found.header_once(b"b"), found.header_once(b"c")) == (None, b"2", None)
    assert (found.header(b"a"), found.header(b"c")) == (b"1", None)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/v1/holds/7/release", {"hold": "7"}),
        ("/v1/holds/a b%/release", {"hold": "a b%"}),
        ("/v1/holds//release", None),
        ("/v1/holds/7/8/release", None),
        ("/v1/holds/7/release/", None),
        ("/v1/holds/7/release\n", None),
        ("/v1xholds/7/release", None),
    ],
)
def test_path_with_a_parameter_matches_one_part(path: str, parameters: dict[str, str] | None) -> None:
    """A parameter is one part of a path: any text without a slash, not empty."""
    match = path_pattern("/v1/holds/{hold}/release").match(path)
    assert (match and match.groupdict()) == parameters


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


@pytest.mark.parametrize("query", ["a&" * 30_000, "%=&" * 20_000, "&" * 60_000], ids=["names", "percents", "nothing"])
def test_query_of_thousands_of_parameters_is_refused_at_once(query: str) -> None:
    """It is not decoded first: that takes a tenth of a second, and anyone may ask for ``/docs``."""
    began = time.process_time()
    with pytest.raises(InvalidRequest) as refusal:
        query_of(Request("GET", "/docs", query, []), "a")
    assert time.process_time() - began < 0.01
    assert "more than 32 parameters" in refusal.value.message

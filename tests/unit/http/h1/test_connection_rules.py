"""A connection over a transport that notes what is done to it: what is answered, when, and in which bytes."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest, ClientDisconnected, Reply, StreamWriter
from support_connection import HEAD_END, Line, Seen, get, post, run

CHUNKED = "Transfer-Encoding: chunked"


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    """Return the head of an answer."""
    return b"".join(line + b"\r\n" for line in (b"HTTP/1.1 " + status, *lines)) + HEAD_END


# --- the bytes of an answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (get("/a"), head(b"content-length: 2") + b"/a"),
        (get("/a", method="HEAD"), head(b"content-length: 2")),
        (get("/a", "Connection: close"), head(b"content-length: 2", b"connection: close") + b"/a"),
        (get("/a", version="1.0"), head(b"content-length: 2", b"connection: close") + b"/a"),
        (
            get("/a", "Connection: keep-alive", version="1.0"),
            head(b"content-length: 2", b"connection: keep-alive") + b"/a",
        ),
        (
            get("/later", "Connection: keep-alive", version="1.0"),
            head(b"content-length: 6", b"connection: keep-alive") + b"/later",
        ),
        (b"\r\n", head(b"content-length: 7", b"connection: close", status=b"400 Bad Request") + b"refused"),
    ],
    ids=["get", "head", "close", "old", "kept", "kept later", "refused"],
)
def test_answer_is_written_in_one_form(asked: bytes, answered: bytes) -> None:
    """Its length, what becomes of the connection where that is not the usual, the date, and the body."""

    async def talk() -> None:
        line = Line()
        line.receive(asked)
        await line.settle()
        for path in [*line.app.waiting]:
            line.app.let_go(path)
        await line.settle()
        assert line.sent() == answered

    run(talk)


@pytest.mark.parametrize("path", ["/a", "/stream"])
def test_headers_of_an_answer_are_written_in_order(path: str) -> None:
    """Those that are ready as lines, then the others; of a stream, too."""

    async def stream(writer: StreamWriter) -> bool:
        return True

    async def talk() -> None:
        line = Line()
        line.app.lines, line.app.headers, line.app.stream = b"a: 1\r\n", [(b"b", b"2"), (b"c", b"3")], stream
        line.receive(get(path))
        await line.settle()
        own = b"content-length: 2" if path == "/a" else b"transfer-encoding: chunked"
        assert line.sent().startswith(head(b"a: 1", b"b: 2", b"c: 3", own))

    run(talk)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("version", "header", "said", "pieces", "end"),
    [
        ("1.1", "X: y", [b"transfer-encoding: chunked"], b"3\r\nabc\r\nb\r\nhello world\r\n0\r\n\r\n", "open"),
        (
            "1.1",
            "Connection: close",
            [b"transfer-encoding: chunked", b"connection: close"],
            b"3\r\nabc\r\nb\r\nhello world\r\n0\r\n\r\n",
            "ended",
        ),
        ("1.0", "Connection: keep-alive", [b"connection: close"], b"abchello world", "ended"),
    ],
)
def test_stream_is_written_in_pieces(
    version: str, header: str, said: list[bytes], pieces: bytes, end: str, at_once: bool
) -> None:
    """In chunks where the client knows them; where it does not, the end of the connection is the end of the answer."""

    async def stream(writer: StreamWriter) -> bool:
        await writer.send(b"abc")
        await writer.send(b"hello world")
        return True

    async def talk() -> None:
        line = Line()
        line.app.stream, line.app.streams_at_once = stream, at_once
        line.receive(get("/stream", header, version=version) + get("/after"))
        await line.settle()
        begun = head(*said) + pieces
        sent = line.sent()
        assert sent[: len(begun)] == begun
        assert sent[len(begun) :] == (head(b"content-length: 6") + b"/after" if end == "open" else b"")
        assert line.state_of_transport == end
        assert [seen.path for seen in line.app.seen] == ["/stream", "/after"][: 2 if end == "open" else 1]

    run(talk)


def test_stream_that_breaks_off_ends_the_connection() -> None:
    """The last chunk is missing, so the client knows; one that has not read enough is not waited for."""

    async def stream(writer: StreamWriter) -> bool:
        return False

    async def talk() -> None:
        for is_slow in (False, True):
            line = Line()
            line.app.stream = stream
            line.receive(get("/stream") + get("/after"))
            if is_slow:
                line.stop_reading(100_000)
            await line.settle()
            assert line.sent() == head(b"transfer-encoding: chunked")
            assert line.transport.is_aborted is is_slow
            assert line.transport.has_ended
            assert line.app.seen == [Seen("GET", "/stream", b"")]

    run(talk)


def test_stream_that_ends_while_the_server_stops_closes_the_connection() -> None:
    """It was begun as one that goes on."""

    async def talk() -> None:
        line = Line()

        async def stream(writer: StreamWriter) -> bool:
            line.state.stopping = True
            return True

        line.app.stream = stream
        line.receive(get("/stream"))
        await line.settle()
        assert line.sent() == head(b"transfer-encoding: chunked") + b"0\r\n\r\n"
        assert line.state_of_transport == "closed"

    run(talk)


def test_stream_waits_while_its_client_does_not_read() -> None:
    """And goes on when it reads again; once it has gone, sending is an error."""
    sent: list[str] = []

    async def stream(writer: StreamWriter) -> bool:
        for name in "abc":
            await writer.send(name.encode())
            sent.append(name)
        return True

    async def talk() -> None:
        line = Line()
        line.app.stream = stream
        line.receive(get("/stream"))
        line.stop_reading(1)
        await line.settle()
        assert sent == []
        line.read_all()
        line.stop_reading(1)
        await line.settle()
        assert sent == ["a"]
        line.lose()
        await line.settle()
        assert sent == ["a", "b"]
        assert line.sent().endswith(b"1\r\nb\r\n")
        with pytest.raises(OSError, match=r"^the client has disconnected$"):
            await line.connection.send(b"x")
        line.connection.write(b"x")
        assert line.sent() == b""
        assert line.state_of_transport == "open" or line.transport.is_aborted

    run(talk)


@pytest.mark.parametrize("end", ["lost", "half closed", "lost before", "half closed before", "both"])
def test_stream_learns_that_its_client_has_gone(end: str) -> None:
    """Or that it sends no more, also if that was before it asked."""
    found: list[bool] = []

    async def stream(writer: StreamWriter) -> bool:
        await writer.gone()
        found.append(True)
        return False

    async def talk() -> None:
        line = Line()
        line.app.stream = stream
        line.receive(get("/later"))
        line.receive(get("/stream"))
        await line.settle()
        if "before" not in end:
            line.app.let_go("/later")
            await line.settle()
            assert found == []
        if end != "lost" and end != "lost before":
            assert line.connection.eof_received()
        if end.startswith("lost") or end == "both":
            line.lose()
        if end == "half closed before":
            line.app.let_go("/later")
        await line.settle()
        assert found == ([] if end == "lost before" else [True])

    run(talk)


# --- order and turns -----------------------------------------------------------------------------------------


def test_quick_answer_is_written_while_its_request_arrives() -> None:
    """Without a turn of the loop; the next one only after others had a turn."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/1") + get("/2") + get("/3"))
        assert line.answers() == [(200, b"/1")]
        line.receive(get("/4"))
        assert line.answers() == []
        for path in (b"/2", b"/3", b"/4"):
            await asyncio.sleep(0)
            assert line.answers() == [(200, path)]
        await line.settle()
        line.receive(get("/5"))
        assert line.answers() == [(200, b"/5")]
        assert line.transport.pauses == 0

    run(talk)


def test_answers_come_in_the_order_of_the_requests() -> None:
    """A quick one waits for a slow one before it, which is asked for when all before it are answered."""

    async def talk() -> None:
        line = Line()
        assert await line.talk(get("/1") + get("/later-1") + get("/2") + get("/later-2") + get("/3")) == [(200, b"/1")]
        assert [*line.app.waiting] == ["/later-1"]
        assert await line.talk(get("/4")) == []
        line.app.let_go("/later-1")
        await line.settle()
        assert line.answers() == [(200, b"/later-1"), (200, b"/2")]
        assert [*line.app.waiting] == ["/later-2"]
        line.app.let_go("/later-2")
        await line.settle()
        assert line.answers() == [(200, b"/later-2"), (200, b"/3"), (200, b"/4")]

    run(talk)


def test_requests_wait_here_up_to_the_bound() -> None:
    """Beyond it nothing more is read from the client, until one of them is answered."""

    async def talk() -> None:
        line = Line(Limits(pipelined=3))
        await line.talk(get("/later"))
        for number in range(3):
            line.receive(get(f"/{number}"))
            assert line.transport.is_reading_now
        line.receive(get("/more"))
        assert not line.transport.is_reading_now
        assert line.connection._reader.unread == len(get("/more"))
        line.receive(get("/much") + b"GET /half")
        assert line.connection._reader.unread == len(get("/more") + get("/much") + b"GET /half")
        line.app.let_go("/later")
        await line.settle()
        assert [path for _, path in line.answers()] == [b"/later", b"/0", b"/1", b"/2", b"/more", b"/much"]
        assert line.transport.is_reading_now
        assert line.transport.pauses == 1
        assert line.app.peers == {"192.0.2.7:9"}

    run(talk)


def test_client_is_read_from_again_as_soon_as_all_that_it_sent_waits() -> None:
    """Although no more may wait: what comes next is not here yet."""

    async def talk() -> None:
        line = Line(Limits(pipelined=3))
        await line.talk(get("/later-1"))
        line.receive(get("/later-2") + get("/later-3") + get("/1") + get("/more"))
        assert not line.transport.is_reading_now
        line.app.let_go("/later-1")
        await line.settle()
        assert not line.transport.is_reading_now
        line.app.let_go("/later-2")
        await line.settle()
        assert line.transport.is_reading_now
        assert len(line.connection._waiting) == 2

    run(talk)


@pytest.mark.parametrize("spare", [0, 1])
def test_bytes_of_requests_wait_here_up_to_the_bound(spare: int) -> None:
    """Those of the first do not count; what is at the bound keeps the next one out, a byte less does not."""
    more = get("/" + "x" * 100)

    async def talk() -> None:
        line = Line(Limits(pipelined_bytes=2 * len(more) + spare))
        await line.talk(get("/later"))
        line.receive(get("/" + "y" * 5_000) + more + more + get("/z"))
        assert len(line.connection._waiting) == 3 + spare
        assert line.transport.is_reading_now is bool(spare)
        line.app.let_go("/later")
        await line.settle()
        assert len(line.answers()) == 5
        assert line.transport.is_reading_now

    run(talk)


def test_heads_are_read_a_bounded_number_at_a_time() -> None:
    """Then others have a turn, and meanwhile nothing more is read from the client."""

    async def talk() -> None:
        line = Line(Limits(pipelined=100))
        await line.talk(get("/later"))
        line.receive(get("/1") * 60)
        assert len(line.connection._waiting) == 16
        assert not line.transport.is_reading_now
        line.receive(get("/2"))
        assert len(line.connection._waiting) == 32
        for waiting in (48, 61):
            await asyncio.sleep(0)
            assert len(line.connection._waiting) == waiting
        assert line.transport.is_reading_now
        line.app.let_go("/later")
        await line.settle()
        await line.settle()
        assert len(line.answers()) == 62

    run(talk)


def test_requests_wait_while_a_client_does_not_read() -> None:
    """They are answered when it reads again, and what waits counts as unread."""

    async def talk() -> None:
        line = Line()
        assert await line.talk(get("/1")) == [(200, b"/1")]
        line.stop_reading(20_000)
        assert not line.transport.is_reading_now
        assert await line.talk(get("/2") + get("/3")) == []
        assert line.state.unread.total_bytes == 20_000
        line.read_all()
        assert line.state.unread.total_bytes == 0
        await line.settle()
        assert line.answers() == [(200, b"/2"), (200, b"/3")]
        assert line.transport.is_reading_now

    run(talk)


@pytest.mark.parametrize(("waiting", "counted"), [([], 0), (["/1"], 0), (["/1", "/22"], 1), (["/1", "/22", "/333"], 2)])
def test_requests_sent_ahead_count_as_unread(waiting: list[str], counted: int) -> None:
    """Those beyond the first, and what is not read yet of the next one."""

    async def talk() -> None:
        line = Line()
        await line.talk(get("/later"))
        sent = [get(path) for path in waiting]
        ahead = sum(len(one) for one in sent[len(sent) - counted :])
        for half in (b"", b"GET /half"):
            line.receive(half or b"".join(sent))
            line.stop_reading(1_000)
            assert line.state.unread.total_bytes == 1_000 + len(half) + ahead
            line.read_all()

    run(talk)


# --- bodies --------------------------------------------------------------------------------------------------


def test_short_body_is_whole_before_the_application_is_asked() -> None:
    """Wherever its bytes are cut, and with chunks as without."""
    chunked = get("/2", CHUNKED, method="POST") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    async def talk() -> None:
        for sent, path in ((post("/1", b"abcde"), "/1"), (chunked, "/2")):
            for cut in range(1, len(sent)):
                line = Line()
                line.receive(sent[:cut])
                await line.settle()
                assert line.app.seen == []
                assert line.transport.sent == b""
                assert line.transport.pauses == 0
                assert await line.talk(sent[cut:] + get("/3")) == [(200, path.encode()), (200, b"/3")]
                assert line.app.seen[0] == Seen("POST", path, b"abcde")
                assert line.transport.is_reading_now

    run(talk)


def test_long_body_is_read_as_far_as_the_application_wants_it() -> None:
    """Up to the bound before it asks, and all of it then; the next request is answered after it."""

    async def talk() -> None:
        line = Line(Limits(body_ahead_bytes=1_000))
        line.receive(get("/later"))
        await line.settle()
        line.receive(post("/body", b"x" * 1_000, length=3_000))
        assert line.transport.is_reading_now
        line.receive(b"y")
        assert line.transport.is_reading_now
        line.receive(b"y" * 499)
        assert not line.transport.is_reading_now
        assert line.connection._reader.unread == 499
        line.app.let_go("/later")
        await line.settle()
        assert line.answers() == [(200, b"/later")]
        assert line.transport.is_reading_now
        assert line.connection._reader.unread == 0
        assert await line.talk(b"z" * 1_499) == []
        assert await line.talk(b"z" + get("/after")) == [(200, b"/body"), (200, b"/after")]
        assert line.app.seen[1] == Seen("POST", "/body", b"x" * 1_000 + b"y" * 500 + b"z" * 1_500)

    run(talk)


def test_chunks_are_read_a_bounded_number_at_a_time() -> None:
    """Others have a turn after 16 times 64 of them."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/body", CHUNKED, method="POST"))
        line.receive(b"1\r\nx\r\n" * 9_000 + b"0\r\n\r\n" + get("/after"))
        sizes = []
        while not line.transport.is_reading_now:
            sizes.append(line.connection._reader.unread)
            await asyncio.sleep(0)
        assert max(before - after for before, after in pairwise(sizes)) == 16 * 64 * len(b"1\r\nx\r\n")
        await line.settle()
        assert line.answers() == [(200, b"/body"), (200, b"/after")]
        assert line.app.seen[0] == Seen("POST", "/body", b"x" * 9_000)
        assert line.transport.is_reading_now

    run(talk)


def test_offered_body_is_asked_for_when_the_application_wants_it() -> None:
    """A client that waits for a word is told to send; one that is refused is not."""

    async def talk() -> None:
        line = Line()
        assert await line.talk(b"") == []
        line.receive(post("/body", b"", "Expect: 100-continue", length=5))
        await line.settle()
        assert line.sent() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await line.talk(b"abcde" + get("/2")) == [(200, b"/body"), (200, b"/2")]
        line = Line()
        line.receive(post("/unread", b"abcde", "Expect: 100-continue"))
        await line.settle()
        assert line.sent() == head(b"content-length: 7", b"connection: close") + b"/unread"
        assert line.state_of_transport == "ended"

    run(talk)


def test_long_body_that_nobody_reads_ends_the_connection() -> None:
    """What follows it is not read as a request."""

    async def talk() -> None:
        line = Line(Limits(body_ahead_bytes=10))
        assert await line.talk(post("/unread", b"x" * 11) + get("/after")) == [(200, b"/unread")]
        assert line.state_of_transport == "ended"
        assert [seen.path for seen in line.app.seen] == ["/unread"]

    run(talk)


def test_client_that_goes_leaves_a_body_that_ends_in_an_error() -> None:
    """The application that waits for it learns that the client has gone; nobody is answered."""

    async def talk() -> None:
        line = Line(Limits(body_ahead_bytes=10))
        await line.talk(post("/body", b"x" * 11, length=20))
        line.lose()
        line.pass_time(1_000)
        await line.settle()
        assert [type(problem) for problem in line.app.problems] == [ClientDisconnected]
        assert line.sent() == b""
        assert line.state_of_transport == "open"
        assert line.state.connections == set()
        assert line.state.open == 0
        assert line.state._by_address == {}

    run(talk)


def test_what_follows_a_body_is_read_with_its_end() -> None:
    """It waits behind the request of the body."""

    async def talk() -> None:
        line = Line()
        await line.talk(get("/later"))
        line.receive(post("/1", b"abc", length=4))
        line.receive(b"d" + get("/2"))
        assert len(line.connection._waiting) == 2
        assert line.connection._reader.unread == 0

    run(talk)


def test_last_request_ends_what_is_read() -> None:
    """Nothing that follows is answered: after its head, after its body in one piece, and after one in pieces."""

    async def talk() -> None:
        for sent in (get("/1", "Connection: close"), post("/1", b"abc", "Connection: close")):
            for cut in (len(sent), len(sent) - 1):
                line = Line()
                line.receive(sent[:cut])
                assert await line.talk(sent[cut:] + get("/2")) == [(200, b"/1")]
                assert await line.talk(get("/3")) == []
                assert [seen.path for seen in line.app.seen] == ["/1"]
                assert line.state_of_transport == "ended"
        for cut in (0, 1):
            line = Line(Limits(linger_bytes=100))
            sent = post("/later", b"abc", "Connection: close")
            line.receive(sent[: len(sent) - cut])
            line.receive(sent[len(sent) - cut :])
            await line.settle()
            line.receive(b"x" * 100)
            assert line.state_of_transport == "open"
            line.receive(b"x")
            assert line.state_of_transport == "aborted"
        line = Line()
        await line.talk(get("/later") + get("/1", "Connection: close") + get("/2") + b"\0")
        line.app.let_go("/later")
        await line.settle()
        assert line.answers() == [(200, b"/later"), (200, b"/1")]
        assert line.app.refused == []

    run(talk)


# --- what cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_later", [False, True])
def test_what_cannot_be_read_is_refused_after_what_was_asked_before(is_later: bool) -> None:
    """Once; nothing that follows is read, and the client is told who it is to the application."""

    async def talk() -> None:
        line = Line()
        path = "/later" if is_later else "/1"
        line.receive(get(path) + get("/2") + b"\0\r\n\r\n" + get("/3"))
        await line.settle()
        if is_later:
            assert line.answers() == []
            kept = line.connection._reader.unread
            line.receive(get("/3"))
            assert line.connection._reader.unread == kept
            line.app.let_go("/later")
            await line.settle()
        assert line.answers() == [(200, path.encode()), (200, b"/2"), (400, b"refused")]
        assert await line.talk(get("/4")) == []
        assert line.app.refused == [
            ("The request does not begin with a method; one such as GET would pass.", "192.0.2.7:9")
        ]
        assert line.state_of_transport == "ended"
        assert line.transport.pauses == 0

    run(talk)


def test_body_that_breaks_is_refused_by_the_application_that_reads_it() -> None:
    """Why, is the same as in the refusal; the connection ends."""

    async def talk() -> None:
        for ahead_bytes in (10, 1_000):
            line = Line(Limits(body_ahead_bytes=ahead_bytes))
            line.receive(get("/body", CHUNKED, method="POST") + b"f\r\n" + b"x" * 15 + b"\r\n")
            await line.settle()
            assert await line.talk(b"what?\r\n" + get("/2")) == [(400, b"refused")]
            [problem] = line.app.problems
            assert isinstance(problem, BadRequest)
            assert problem.reason == ("The length of a chunk of the body is malformed; hexadecimal digits would pass.")
            assert line.app.refused == [(problem.reason, "192.0.2.7:9")]
            assert line.app.seen == []
            assert line.state_of_transport == "ended"
            line.lose()

    run(talk)


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/error", "/later-error"])
def test_error_of_the_application_ends_this_connection(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is answered, and the log says where it happened but not what was sent."""

    async def talk() -> None:
        line = Line()
        line.receive(get(path) + get("/2"))
        await line.settle()
        if line.app.waiting:
            line.app.let_go(path)
            await line.settle()
        assert line.sent() == b""
        assert line.state_of_transport == "aborted"

    run(talk)
    [record] = caplog.records
    assert "unexpected ValueError" in record.getMessage()
    assert ("in at_once" if path == "/error" else "in answer") in record.getMessage()
    assert path not in caplog.text


def test_client_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """The application says so while it answers; nothing is written and nothing is logged."""

    async def talk() -> None:
        line = Line()
        await line.talk(get("/gone"))
        assert line.sent() == b""
        assert line.state_of_transport == "open"

    run(talk)
    assert caplog.records == []


def test_answer_to_a_client_that_has_gone_is_dropped() -> None:
    """It may come while or after the client goes; a stream is not begun."""
    begun: list[bool] = []

    async def stream(writer: StreamWriter) -> bool:
        begun.append(True)
        return True

    async def talk() -> None:
        for path in ("/later", "/stream"):
            line = Line()
            line.app.stream = stream
            line.receive(get("/later") + get("/2"))
            await line.settle()
            line.lose()
            line.app.let_go("/later")
            await line.settle()
            assert line.sent() == b""
            assert [seen.path for seen in line.app.seen] == ["/later"]
            line = Line()
            line.app.stream = stream
            line.receive(get(path))
            line.lose()
            await line.settle()
            assert (line.sent(), begun) == (b"", [])
            assert line.state_of_transport == "open"

    run(talk)


def test_answer_that_is_cancelled_ends_the_connection() -> None:
    """Its task ends as cancelled, so that whoever cancelled it knows."""

    async def talk() -> None:
        line = Line()
        await line.talk(get("/later"))
        task = line.connection._task
        assert task is not None
        task.cancel()
        await line.settle()
        assert task.cancelled()
        assert line.state_of_transport == "aborted"
        assert line.connection._task is None

    run(talk)


def test_reply_is_of_the_application() -> None:
    """A status of any kind is written with its phrase."""

    async def talk() -> None:
        line = Line()
        line.app.refusal = lambda problem, peer: Reply(429, b"")  # type: ignore[method-assign]
        line.receive(b"\0\r\n\r\n")
        assert line.sent() == head(b"content-length: 0", b"connection: close", status=b"429 Too Many Requests")

    run(talk)


# --- answers that wait for a future, and need no task ----------------------------------------------------------


@pytest.mark.parametrize("path", ["/soon", "/soon-task"])
def test_answer_that_waits_for_a_future_is_given_when_it_is_done_and_in_order(path: str) -> None:
    """What was sent behind it waits; then it is answered, and the connection goes on as with any other."""

    async def talk() -> None:
        line = Line()
        line.receive(get(path, method="HEAD") + get("/next") + post(f"{path}-2", b"body"))
        await line.settle()
        assert line.sent() == b""
        assert not line.connection.is_idle
        line.app.let_go(path)
        await line.settle()
        length = f"content-length: {len(path)}".encode()
        assert line.sent() == head(length) + head(b"content-length: 5") + b"/next"
        line.app.let_go(f"{path}-2")
        assert await line.talk(get("/last")) == [(200, f"{path}-2".encode()), (200, b"/last")]
        assert [seen.body for seen in line.app.seen] == [b"", b"", b"body", b""]
        assert line.connection.is_idle

    run(talk)


def test_connection_has_no_time_limit_while_an_answer_waits_for_a_future() -> None:
    """The client waits for the server then, not the server for the client."""

    async def talk() -> None:
        limits = Limits()
        line = Line(limits)
        line.receive(get("/soon"))
        line.pass_time(100 * max(limits.idle_seconds, limits.head_seconds))
        assert line.state_of_transport == "open"
        line.app.let_go("/soon")
        await line.settle()
        assert line.answers() == [(200, b"/soon")]

    run(talk)


def test_answer_to_a_client_that_was_lost_is_made_and_dropped() -> None:
    """What was asked for is done, and counted; only nobody is there to be told."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/soon"))
        line.lose()
        line.app.let_go("/soon")
        await line.settle()
        assert [seen.path for seen in line.app.seen] == ["/soon"]
        assert line.sent() == b""

    run(talk)


def test_answer_of_a_connection_that_is_cut_off_is_not_made() -> None:
    """Its future is cancelled, so whoever works for it can stop."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/soon"))
        future = line.app.waiting["/soon"]
        line.connection.abort()
        await line.settle()
        assert future.cancelled()
        assert (line.app.seen, line.sent()) == ([], b"")

    run(talk)


def test_error_in_making_an_answer_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is answered, and the log says where it happened but not what was sent."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/soon-error"))
        line.app.let_go("/soon-error")
        await line.settle()
        assert line.state_of_transport == "aborted"
        assert line.sent() == b""

    run(talk)
    [record] = caplog.records
    assert "unexpected ValueError" in record.getMessage()
    assert "in _made" in record.getMessage()
    assert "/soon-error" not in record.getMessage()

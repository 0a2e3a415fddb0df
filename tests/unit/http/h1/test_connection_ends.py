"""How a connection ends over a transport that notes what is done to it: its client, silence, slow readers and stops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import StreamWriter
from support_connection import BEGIN, DROP, Line, Seen, get, post, run

LIMITS = Limits(
    head_seconds=3,
    idle_seconds=7,
    body_seconds=5,
    slow_reader_seconds=11,
    slow_reader_bytes=1_000,
    linger_seconds=2,
    linger_bytes=100,
    body_ahead_bytes=1_000,
    unread_bytes=4_321,
)


class RecordedHandshake(socket.socket):
    """The socket of a handshake, that notes how it was shut down."""

    def __init__(self, *, is_gone: bool = False) -> None:
        super().__init__()
        self.shut: list[int] = []
        self._is_gone = is_gone

    def shutdown(self, how: int, /) -> None:
        """Note it, or say that the client has gone."""
        self.shut.append(how)
        if self._is_gone:
            raise OSError("gone")


# --- the beginning -------------------------------------------------------------------------------------------


def test_connection_that_begins_is_bounded() -> None:
    """So much may be unread before an answer waits; the handshake is over."""

    async def talk() -> None:
        line = Line(LIMITS, is_made=False)
        assert not line.connection.was_made
        with RecordedHandshake() as handshake:
            line.connection.handshake = handshake
            line.connection.connection_made(line.transport)
        assert line.connection.was_made
        assert line.connection.handshake is None
        assert line.transport.high == 4_321
        assert line.state_of_transport == "open"

    run(talk)


def test_connection_that_begins_while_the_server_stops_is_closed() -> None:
    """It was accepted before, and no request of it was read."""

    async def talk() -> None:
        line = Line(is_made=False)
        line.state.stopping = True
        line.connection.connection_made(line.transport)
        assert line.state_of_transport == "closed"

    run(talk)


# --- the client's end ----------------------------------------------------------------------------------------


def test_client_that_sends_no_more_is_answered_and_then_closed() -> None:
    """All that it asked; an idle one is closed by the transport at once."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/later") + get("/2"))
        await line.settle()
        assert line.connection.eof_received() is True
        await line.settle()
        assert line.state_of_transport == "open"
        line.app.let_go("/later")
        await line.settle()
        assert line.answers() == [(200, b"/later"), (200, b"/2")]
        assert line.state_of_transport == "closed"
        assert Line().connection.eof_received() is False

    run(talk)


def test_client_that_sends_no_more_after_quick_requests_is_answered() -> None:
    """They are answered a turn of the loop each."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/1") + get("/2"))
        assert line.connection.eof_received() is True
        await line.settle()
        assert line.answers() == [(200, b"/1"), (200, b"/2")]
        assert line.state_of_transport == "closed"

    run(talk)


def test_client_that_leaves_a_head_unfinished_is_closed() -> None:
    """There is nothing to answer."""

    async def talk() -> None:
        line = Line()
        line.receive(b"GET /half")
        assert line.connection.eof_received() is True
        await line.settle()
        assert line.answers() == []
        assert line.state_of_transport == "closed"

    run(talk)


@pytest.mark.parametrize("size", [10, 2_000])
def test_client_that_leaves_a_body_unfinished_is_refused(size: int) -> None:
    """A short body as well as a long one, of which the application was asked before."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.receive(get("/1") + post("/body", b"x" * (size - 1), length=size))
        await line.settle()
        assert line.connection.eof_received() is True
        await line.settle()
        assert line.answers() == [(200, b"/1"), (400, b"refused")]
        assert [reason for reason, _ in line.app.refused] == [
            "The connection ended before the body was complete; a complete body would pass."
        ]
        assert line.state_of_transport == "closed"

    run(talk)


def test_client_that_ends_tls_is_not_answered() -> None:
    """TLS has no connections with one side closed, and the transport closes it."""

    async def talk() -> None:
        line = Line(is_tls=True)
        line.receive(get("/later"))
        await line.settle()
        assert line.connection.eof_received() is False

    run(talk)


def test_client_that_sends_no_more_while_it_reads_nothing_is_answered_when_it_reads() -> None:
    """Its requests were paused; what has arrived is answered, and nothing is read after it."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/later"))
        await line.settle()
        line.stop_reading(9)
        line.receive(get("/2"))
        assert line.connection.eof_received() is True
        line.app.let_go("/later")
        await line.settle()
        assert line.answers() == [(200, b"/later")]
        line.read_all()
        await line.settle()
        assert line.answers() == [(200, b"/2")]
        assert line.state_of_transport == "closed"

    run(talk)


# --- the server's end ----------------------------------------------------------------------------------------


def test_last_answer_is_given_time_to_arrive() -> None:
    """One side is closed; the other is read from for a while, up to a bound."""

    async def talk() -> None:
        line = Line(LIMITS)
        assert len(await line.talk(get("/1", "Connection: close"))) == 1
        assert line.transport.has_ended
        assert line.connection.is_idle
        line.pass_time(2)
        assert not line.transport.is_closed
        line.pass_time(0.01)
        assert line.transport.is_closed
        assert not line.transport.is_aborted

    run(talk)


def test_what_a_client_sends_after_its_last_answer_is_bounded() -> None:
    """So many bytes are read and dropped; one more ends the connection at once."""

    async def talk() -> None:
        line = Line(LIMITS)
        await line.talk(get("/1", "Connection: close"))
        line.receive(b"x" * 60)
        line.receive(b"x" * 40)
        assert not line.transport.is_aborted
        line.receive(b"x")
        assert line.transport.is_aborted

    run(talk)


def test_connection_that_cannot_end_one_side_is_closed() -> None:
    """With TLS both end together."""

    async def talk() -> None:
        line = Line(LIMITS, is_tls=True)
        assert len(await line.talk(get("/1", "Connection: close"))) == 1
        assert line.state_of_transport == "closed"
        assert not line.connection.is_idle or line.connection.is_settled
        line.pass_time(11)
        assert not line.transport.is_aborted
        line.pass_time(0.01)
        assert line.transport.is_aborted

    run(talk)


def test_connection_that_lingers_is_read_from_again() -> None:
    """Reading was paused because the application did not want the body; what comes now is dropped."""

    async def talk() -> None:
        line = Line(LIMITS)
        await line.talk(get("/later"))
        line.receive(post("/unread", b"x" * 2_000, length=3_000))
        line.receive(b"x")
        assert not line.transport.is_reading_now
        line.app.let_go("/later")
        await line.settle()
        assert line.answers() == [(200, b"/later"), (200, b"/unread")]
        assert line.transport.has_ended
        assert line.transport.is_reading_now

    run(talk)


def test_answer_is_the_last_one_while_the_server_stops() -> None:
    """It says so, and the connection is closed after it, as is one that is between two requests."""

    async def talk() -> None:
        line = Line()
        await line.talk(get("/later") + get("/2"))
        line.state.stopping = True
        line.app.let_go("/later")
        await line.settle()
        assert b"connection: close\r\n" in line.transport.sent
        assert line.answers() == [(200, b"/later")]
        assert line.state_of_transport == "closed"
        line = Line()
        await line.talk(get("/later") + get("/2"))
        line.state.stopping = True
        line.stop_reading(9)
        line.app.let_go("/later")
        line.read_all()
        await line.settle()
        assert line.answers() == [(200, b"/later")]
        line = Line()
        line.receive(get("/1") + b"GET /ha")
        line.state.stopping = True
        await line.settle()
        assert line.state_of_transport == "closed"

    run(talk)


# --- silence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"", 7),
        (get("/1"), 7),
        (get("/1") + get("/2"), 7),
        (b"GET /ha", 3),
        (get("/1") + b"GET /ha", 3),
        (post("/1", b"abc") + b"GET /ha", 3),
    ],
    ids=["nothing", "one answered", "two answered", "half a head", "half a head after one", "half a head after a body"],
)
def test_silent_connection_is_closed_in_time(sent: bytes, seconds: float) -> None:
    """An idle one later than one whose head is not complete; at the very bound it is not."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.state.now += 1
        if sent:
            line.receive(sent)
            await line.settle()
        else:
            line.state.now -= 1
        line.pass_time(seconds)
        assert line.state_of_transport == "open"
        line.pass_time(0.01)
        assert line.state_of_transport == "closed"
        assert not line.transport.is_aborted

    run(talk)


def test_time_for_a_head_counts_from_its_first_byte() -> None:
    """Whatever comes meanwhile; the time before it does not count."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.pass_time(6)
        for byte in b"GET /h":
            line.receive(bytes([byte]))
            line.pass_time(0.5)
        assert line.state_of_transport == "open"
        line.receive(b"h")
        line.pass_time(0.01)
        assert line.state_of_transport == "closed"

    run(talk)


def test_time_between_two_requests_counts_from_the_answer() -> None:
    """Each answer gives the whole time again, also one that took long."""

    async def talk() -> None:
        line = Line(LIMITS)
        for _ in range(3):
            line.receive(get("/1"))
            line.pass_time(6)
        line.receive(get("/later"))
        await line.settle()
        line.pass_time(1_000)
        line.app.let_go("/later")
        await line.settle()
        line.pass_time(7)
        assert line.state_of_transport == "open"
        line.pass_time(0.01)
        assert line.state_of_transport == "closed"

    run(talk)


def test_body_that_does_not_come_is_given_up() -> None:
    """The application refuses it in its own form, in the time for a body; then the connection ends."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.state.now += 4
        line.receive(post("/body", b"abc", length=10))
        line.receive(b"def")
        line.pass_time(5)
        await line.settle()
        assert line.answers() == []
        line.pass_time(0.01)
        line.receive(b"x" * 100)
        await line.settle()
        assert line.answers() == [(400, b"refused")]
        assert [reason for reason, _ in line.app.refused] == [
            "The body was not complete after 5 seconds; sooner would pass."
        ]
        assert line.app.seen == []
        assert line.state_of_transport == "ended"
        line.receive(b"x")
        assert line.state_of_transport == "aborted"

    run(talk)


def test_time_for_a_body_does_not_count_while_the_application_reads_it() -> None:
    """The application has a bound of its own for that."""

    async def talk() -> None:
        line = Line(LIMITS)
        await line.talk(post("/body", b"x" * 1_500, length=2_000))
        line.pass_time(1_000)
        await line.settle()
        assert await line.talk(b"x" * 500) == [(200, b"/body")]

    run(talk)


def test_bytes_that_were_read_are_let_go_when_time_passes() -> None:
    """An idle connection keeps nothing of what its client sent."""

    async def talk() -> None:
        line = Line(LIMITS)
        await line.talk(get("/1"))
        assert line.connection._reader._data
        line.pass_time(1)
        assert line.connection._reader._data == b""

    run(talk)


def test_handshake_has_a_timeout_of_its_own() -> None:
    """A connection that has not begun is not looked at."""

    async def talk() -> None:
        line = Line(LIMITS, is_made=False)
        line.pass_time(1_000)
        assert line.state_of_transport == "open"

    run(talk)


# --- slow readers --------------------------------------------------------------------------------------------


def test_client_that_reads_too_slowly_is_cut_off() -> None:
    """It has to take so many bytes in each period; one byte less is too little, and the very end is in time."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.state.now += 5
        line.stop_reading(50_000)
        line.transport.unread_bytes = 49_001
        line.pass_time(11)
        assert line.state_of_transport == "open"
        line.transport.unread_bytes = 49_000
        line.pass_time(0.01)
        assert line.state_of_transport == "open"
        line.transport.unread_bytes = 48_001
        line.pass_time(11)
        assert line.state_of_transport == "open"
        line.pass_time(0.01)
        assert line.state_of_transport == "aborted"

    run(talk)


def test_client_that_reads_slowly_is_not_taken_for_a_silent_one() -> None:
    """While it has not read enough, no other time counts."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.receive(get("/1"))
        line.stop_reading(50_000)
        for left in range(45_000, 0, -5_000):
            line.transport.unread_bytes = left
            line.pass_time(10)
        line.read_all()
        await line.settle()
        line.pass_time(7)
        assert line.state_of_transport == "open"
        line.pass_time(0.01)
        assert line.state_of_transport == "closed"

    run(talk)


def test_request_that_is_next_is_not_taken_for_silence() -> None:
    """Time that passed before it does not count while others have a turn."""

    async def talk() -> None:
        line = Line(LIMITS)
        line.receive(get("/1") + get("/2"))
        line.pass_time(1_000)
        await line.settle()
        assert line.answers() == [(200, b"/1"), (200, b"/2")]
        assert line.state_of_transport == "open"

    run(talk)


def test_stream_that_is_cancelled_while_its_client_does_not_read_ends_the_connection() -> None:
    """What waited for the client has ended when the client reads again."""

    async def stream(writer: StreamWriter) -> bool:
        await writer.send(b"a")
        return True

    async def talk() -> None:
        line = Line()
        line.app.stream = stream
        line.receive(get("/stream"))
        line.stop_reading(9)
        await line.settle()
        task = line.connection._task
        assert task is not None
        task.cancel()
        await line.settle()
        line.read_all()
        assert line.state_of_transport == "aborted"

    run(talk)


@pytest.mark.parametrize("silent", [False, True])
def test_client_that_does_not_read_its_last_answer_is_cut_off(silent: bool) -> None:
    """After the time for slow readers, since closing waits for it."""

    async def talk() -> None:
        line = Line(LIMITS)
        await line.talk(get("/1", "Connection: close"))
        if silent:
            line.pass_time(2.5)
            assert line.transport.is_closed
            line.pass_time(8.5)
            assert not line.transport.is_aborted
            line.pass_time(0.01)
            assert line.transport.is_aborted
        else:
            line.stop_reading(9)
            line.pass_time(11)
            assert line.state_of_transport == "ended"
            line.pass_time(0.01)
            assert line.transport.is_aborted

    run(talk)


# --- closing from outside ------------------------------------------------------------------------------------


def test_abort_drops_what_the_client_has_not_read() -> None:
    """Also what the system holds for it; what is being answered is cancelled, and nothing is written any more."""

    async def talk() -> None:
        for has_socket in (True, False):
            line = Line(has_socket=has_socket)
            await line.talk(get("/later"))
            task = line.connection._task
            assert task is not None
            line.connection.abort()
            assert line.transport.is_aborted
            options = [(socket.SOL_SOCKET, socket.SO_LINGER, DROP)] if has_socket else []
            assert line.transport.socket.options == options
            line.connection.write(b"x")
            await line.settle()
            assert line.sent() == b""
            assert task.cancelled()

    run(talk)


def test_abort_of_a_connection_that_has_not_begun_ends_its_handshake() -> None:
    """Without a handshake there is nothing to end; a client that has gone meanwhile is no error."""

    async def talk() -> None:
        for is_gone in (False, True):
            line = Line(is_made=False, is_tls=True)
            line.connection.abort()
            with RecordedHandshake(is_gone=is_gone) as handshake:
                line.connection.handshake = handshake
                line.connection.abort()
                line.connection.close_when_idle()
                assert handshake.shut == [socket.SHUT_RDWR] * 2
            assert line.state_of_transport == "open"

    run(talk)


def test_connection_is_closed_when_idle() -> None:
    """One that has not begun, is being answered or has something to answer is not."""

    async def talk() -> None:
        line = Line(is_made=False)
        line.connection.close_when_idle()
        assert line.state_of_transport == "open"
        line = Line()
        line.connection.close_when_idle()
        assert line.state_of_transport == "closed"
        line = Line()
        await line.talk(get("/later"))
        line.connection.close_when_idle()
        assert line.state_of_transport == "open"

    run(talk)


async def begun(what: str) -> Line:
    """Return a connection in a state."""
    line = Line(LIMITS, is_made=what != "not begun")
    line.state.now = BEGIN + 50
    if what == "being answered":
        await line.talk(get("/later"))
    elif what == "a request waits":
        line.stop_reading(0)
        line.receive(get("/1") + get("/2"))
        line.transport.unread_bytes = 0
    elif what == "a turn is due":
        line.receive(get("/1") + get("/2"))
    elif what == "half a head":
        await line.talk(b"GET /ha")
    elif what == "half a body":
        await line.talk(post("/1", b"", length=5))
    elif what == "reads nothing":
        line.stop_reading(9)
    elif what == "lingers":
        await line.talk(get("/1", "Connection: close"))
    elif what == "answered":
        await line.talk(get("/1"))
    elif what == "answered, unread":
        await line.talk(get("/1"))
        line.transport.unread_bytes = 1
    elif what == "in a handshake":
        line.connection.was_made = False
        line.connection.handshake = socket.socket()
        line.connection.handshake.close()
    return line


@pytest.mark.parametrize(
    ("what", "is_idle", "is_settled", "waits_since"),
    [
        ("new", True, True, 0),
        ("not begun", True, True, None),
        ("in a handshake", True, True, 0),
        ("being answered", False, False, None),
        ("a request waits", False, False, 50),
        ("a turn is due", False, False, None),
        ("half a head", False, False, 50),
        ("half a body", False, False, 50),
        ("reads nothing", False, False, 50),
        ("lingers", True, True, 50),
        ("answered", True, True, 50),
        ("answered, unread", True, False, 50),
    ],
)
def test_connection_is_idle_as_long_as_nothing_is_received_or_answered(
    what: str, is_idle: bool, is_settled: bool, waits_since: float | None
) -> None:
    """It is settled once its client has read everything; since when it waits for its client is known."""

    async def talk() -> None:
        line = await begun(what)
        connection = line.connection
        assert (connection.is_idle, connection.is_settled) == (is_idle, is_settled)
        assert connection.waits_since == (None if waits_since is None else BEGIN + waits_since)

    run(talk)


def test_connection_that_has_ended_does_nothing_more() -> None:
    """Whatever was due; who waits for it to be read is let go."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/1") + get("/2"))
        line.stop_reading(9)
        line.lose()
        line.connection.read_on()
        await line.settle()
        assert line.app.seen == [Seen("GET", "/1", b"")]
        assert line.state.unread.total_bytes == 0
        assert line.state.open == 0
        assert line.state_of_transport == "open"
        for sent in (get("/1") + b"\0", post("/1", b"abc", length=5)):
            line = Line(LIMITS)
            line.receive(sent)
            line.sent()
            line.lose()
            line.pass_time(1_000)
            await line.settle()
            line.pass_time(1_000)
            assert line.sent() == b""

    run(talk)


def test_stream_of_a_client_that_goes_is_not_ended_twice() -> None:
    """It learns that the client has gone, and the connection is left alone."""

    async def stream(writer: StreamWriter) -> bool:
        await writer.send(b"a")
        return False

    async def talk() -> None:
        line = Line()
        line.app.stream = stream
        line.receive(get("/stream"))
        line.stop_reading(9)
        await line.settle()
        line.lose()
        await line.settle()
        assert line.state_of_transport == "open"

    run(talk)


def test_turn_that_is_due_twice_answers_once() -> None:
    """A client that reads again while a turn is due gets each answer once, and others a turn between them."""

    async def talk() -> None:
        line = Line()
        line.receive(get("/1") + get("/2") + get("/3"))
        line.stop_reading(9)
        line.read_all()
        await asyncio.sleep(0)
        assert line.answers() == [(200, b"/1"), (200, b"/2")]
        await line.settle()
        assert line.answers() == [(200, b"/3")]

    run(talk)

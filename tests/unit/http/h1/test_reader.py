"""From bytes to requests: what is refused, and that the cuts between the pieces do not matter."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings, strategies as st

from spotledger.http.h1.head import KNOWN_FIELDS_BYTES, KNOWN_LINE_BYTES, KNOWN_LINES, Head, HeadParser
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.reader import CHUNK_LINE_BYTES, CHUNKS_AT_ONCE, RequestReader
from spotledger.http.h1.request import BadRequest
from support_framing import REFUSED, Llhttp, cuts, judged, read_all, requests

LIMITS = Limits(head_bytes=2_000, headers=20)
HEAD = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n"


def test_head_says_what_was_sent() -> None:
    """Method, target and headers are those that were sent, with names in lower case and values without blanks."""
    reader = RequestReader(LIMITS)
    reader.receive(HEAD + b"X-A: \t b c \t\r\n\r\n")
    head = reader.head()
    assert head is not None
    assert (head.line.method, head.line.target, head.length, head.keep_alive) == ("GET", b"/a?b=c", 0, True)
    assert head.headers == [(b"host", b"x"), (b"x-a", b"b c")]
    assert reader.head() is None


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in REFUSED.items()])
def test_what_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    """No version, another version, no host or two, two lengths, other codings, folded lines, control characters."""
    requests_read, reason = read_all([raw], LIMITS)
    assert not requests_read
    assert reason is not None
    assert reason[0].isupper()
    assert reason.endswith(" would pass.")


@pytest.mark.parametrize(
    ("options", "version", "stays_open"),
    [
        (b"", b"1.1", True),
        (b"Connection: close\r\n", b"1.1", False),
        (b"Connection: keep-alive, close\r\n", b"1.1", False),
        (b"Connection: keep-alive\r\nConnection: close\r\n", b"1.1", False),
        (b"Connection: close\r\nConnection: keep-alive\r\n", b"1.1", False),
        (b"Proxy-Connection: close\r\n", b"1.1", True),
        (b"", b"1.0", False),
        (b"Connection: Keep-Alive\r\n", b"1.0", True),
    ],
)
def test_connection_says_whether_it_stays_open(options: bytes, version: bytes, stays_open: bool) -> None:
    """The parser's own idea of that does not count, so the next request is read where it may come."""
    reader = RequestReader(LIMITS)
    head = b"GET / HTTP/" + version + b"\r\nHost: x\r\n" + options + b"\r\n"
    reader.receive(head)
    found = reader.head()
    assert found is not None
    assert found.keep_alive is stays_open
    if stays_open:
        reader.receive(head)
        assert reader.head() is not None


def test_head_at_its_limit_passes_and_one_byte_more_does_not() -> None:
    """The limit counts the bytes of the head, wherever they are cut."""
    for size, passes in ((2_000, True), (2_001, False)):
        raw = HEAD + b"X: " + b"y" * (size - len(HEAD) - 7) + b"\r\n\r\n"
        assert len(raw) == size
        for pieces in ([raw], [raw[:1_999], raw[1_999:]], [bytes([byte]) for byte in raw]):
            found, reason = read_all(pieces, LIMITS)
            assert (len(found), reason is None) == ((1, True) if passes else (0, False))


def test_garbage_is_refused_at_its_first_byte() -> None:
    """What cannot begin a request is not waited for, such as a TLS handshake."""
    reader = RequestReader(LIMITS)
    reader.receive(b"\x16\x03\x01")
    with pytest.raises(BadRequest):
        reader.head()


@settings(max_examples=150, deadline=None)
@given(sent=requests(), data=st.data())
@example(sent=b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na\r\n" + HEAD + b"\r\n", data=None)
def test_any_cut_gives_the_same_requests(sent: bytes, data: st.DataObject | None) -> None:
    """However the bytes are cut, the same requests come out in the same order, and the same end."""
    pieces = [bytes([byte]) for byte in sent] if data is None else data.draw(cuts(sent))
    assert read_all(pieces, LIMITS) == read_all([sent], LIMITS)


@settings(max_examples=400, deadline=None)
@given(sent=requests())
def test_what_is_accepted_means_the_same_to_a_second_parser(sent: bytes) -> None:
    """Every request that is accepted, h11 accepts too, with the same method, target, headers, body and order."""
    found, _ = read_all([sent], LIMITS)
    assert judged(sent, len(found)) == found


@settings(max_examples=300, deadline=None)
@given(sent=requests())
def test_what_is_accepted_means_the_same_to_llhttp(sent: bytes) -> None:
    """The parser of Node.js reads an accepted request alike, for the methods that it knows."""
    found, _ = read_all([sent], LIMITS)
    if not found or found[0].method not in ("GET", "HEAD", "POST", "PUT"):
        return
    first = found[0]
    end = next(end for end in range(len(sent) + 1) if read_all([sent[:end]], LIMITS)[0])
    judge = Llhttp(sent[:end])
    assert (judge.method, judge.target, judge.is_complete) == (first.method, first.target, True)
    named = {name for name, _ in first.headers}
    if b"transfer-encoding" not in named:
        assert (_lower_coding(judge.headers), judge.body) == (first.headers, first.body)


def _lower_coding(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers]


@settings(max_examples=300, deadline=None)
@given(sent=st.lists(requests(), max_size=4), repeats=st.integers(1, 3))
def test_lines_that_were_seen_before_mean_the_same(sent: list[bytes], repeats: int) -> None:
    """Each request is read as by a reader that has seen none, however often its lines were there before."""
    parsed = HeadParser(LIMITS.headers)
    for raw in sent * repeats:
        head = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert _parsed(parsed, head) == _parsed(HeadParser(LIMITS.headers), head)


def _parsed(parser: HeadParser, head: bytes) -> Head | str:
    try:
        return parser.parse(head)
    except BadRequest as problem:
        return problem.reason


@pytest.mark.parametrize("fields", [b"A-%d: b\r\n", b"X: %d\r\n", b"X: " + b"y" * 3_000 + b"%d\r\n"])
def test_what_is_remembered_of_heads_is_bounded(fields: bytes) -> None:
    """A client whose lines are all different, or long, makes a connection keep few of them."""
    parser = HeadParser(100)
    for number in range(200):
        parser.parse(b"GET /%d HTTP/1.1\r\nHost: x\r\n" % number + fields % number + b"\r\n")
        kept = [*parser._lines]
        assert len(kept) <= KNOWN_LINES
        assert max(map(len, kept)) <= KNOWN_LINE_BYTES
        assert len(parser._last_fields) + sum(map(len, parser._last_lines)) <= 2 * KNOWN_FIELDS_BYTES
        assert (parser._last is None) == (b"yyy" in fields)


@settings(max_examples=300, deadline=None)
@given(line=st.binary(max_size=12), first=st.sampled_from([b"1.0", b"1.1"]), second=st.sampled_from([b"1.0", b"1.1"]))
@example(line=b"/a\tb", first=b"1.1", second=b"1.1")
@example(line=b"/a b", first=b"1.1", second=b"1.1")
@example(line=b"/\x80", first=b"1.1", second=b"1.1")
@example(line=b"*", first=b"1.1", second=b"1.1")
def test_headers_that_are_repeated_change_nothing(line: bytes, first: bytes, second: bytes) -> None:
    """What is read the short way, because the headers are those of the request before, is what is read otherwise."""
    headers = b"Host: x\r\nConnection: keep-alive\r\n\r\n"
    before = b"GET /a HTTP/" + first + b"\r\n" + headers
    for method in (b"GET ", b"CONNECT ", b"BREW ", b"", b"G\tT "):
        raw = method + line + b" HTTP/" + second + b"\r\n" + headers
        alone, reason = read_all([raw], LIMITS)
        both, other_reason = read_all([before + raw], LIMITS)
        assert (both[1:], other_reason) == (alone, reason)


def in_chunks(rest: bytes) -> bytes:
    """Return a request whose body in chunks is *rest*."""
    return HEAD.replace(b"GET", b"POST", 1) + b"Transfer-Encoding: chunked\r\n\r\n" + rest


@pytest.mark.parametrize("cut", [True, False], ids=["byte by byte", "in one piece"])
@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nabcde\r\n0\r\n\r\n", b"abcde"),
        (b"0000000000000001\r\na\r\nA\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n", b"a" + b"0123456789" * 2),
        (b"10\r\n0123456789abcdef\r\n0\r\n\r\n", b"0123456789abcdef"),
        (b"2;a=b;c\r\n\r\n\r\n0;last\r\n\r\n", b"\r\n"),
        (b"1;" + b"x" * 254 + b"\r\na\r\n0\r\n\r\n", b"a"),
        (b"1;\t \x80\xff\r\na\r\n0\r\n\r\n", b"a"),
        (b"1\r\na\r\n" * 200 + b"0\r\n\r\n", b"a" * 200),
        (b"0\r\nT: u\r\nX-Y_z:\r\n\r\n", b""),
        (b"0\r\nT:" + b"x" * 1_996 + b"\r\n\r\n", b""),
        (b"0\r\nT:" + b"x" * 996 + b"\r\nT:" + b"x" * 996 + b"\r\n\r\n", b""),
    ],
)
def test_body_in_chunks_is_read_to_its_end(rest: bytes, body: bytes, cut: bool) -> None:
    """Extensions and trailers mean nothing, up to their limits; the next request follows."""
    sent = in_chunks(rest) + HEAD + b"\r\n"
    found, reason = read_all([bytes([byte]) for byte in sent] if cut else [sent], LIMITS)
    assert reason is None
    assert [(one.method, one.body) for one in found] == [("POST", body), ("GET", b"")]


@pytest.mark.parametrize("cut", [True, False], ids=["byte by byte", "in one piece"])
@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b"\r\n", "length of a chunk"),
        (b"g\r\n", "length of a chunk"),
        (b"-1\r\n", "length of a chunk"),
        (b"0x1\r\n", "length of a chunk"),
        (b"1 \r\na\r\n", "length of a chunk"),
        (b"00000000000000001\r\na\r\n", "length of a chunk"),
        (b"1;\x00\r\na\r\n", "length of a chunk"),
        (b"1\na\n0\n\n\r\n", "length of a chunk"),
        (b"1\r\nab\r\n", "longer than announced"),
        (b"1;" + b"x" * 255 + b"\r\na\r\n", "line between the chunks"),
        (b"1\r\na" + b"x" * 258, "line between the chunks"),
        (b"0\r\nno colon\r\n\r\n", "follows the last chunk"),
        (b"0\r\n: u\r\n\r\n", "follows the last chunk"),
        (b"0\r\nT: \x00\r\n\r\n", "follows the last chunk"),
        (b"0\r\n folded: u\r\n\r\n", "follows the last chunk"),
        (b"0\r\nContent-Length: 1\r\n\r\n", "follows the last chunk"),
        (b"0\r\nTRANSFER-ENCODING: chunked\r\n\r\n", "follows the last chunk"),
        (b"0\r\nHost: y\r\n\r\n", "follows the last chunk"),
        (b"0\r\nT:" + b"x" * 997 + b"\r\nT:" + b"x" * 996 + b"\r\n\r\n", "follows the last chunk"),
        (b"0\r\nT:" + b"x" * 1_997 + b"\r\n\r\n", "follows the last chunk"),
        (b"0\r\nT:" + b"x" * 2_000, "line between the chunks"),
    ],
)
def test_body_in_malformed_chunks_is_refused(rest: bytes, reason: str, cut: bool) -> None:
    """Each has a reason that says what was found and what would pass; no body comes of it."""
    sent = in_chunks(rest)
    found, refused = read_all([bytes([byte]) for byte in sent] if cut else [sent], LIMITS)
    assert found == []
    assert refused is not None
    assert refused[0].isupper()
    assert reason in refused
    assert refused.endswith(" would pass.")


def test_line_that_may_still_end_in_time_is_waited_for() -> None:
    """A line of just its limit, whose end has not arrived, is not too long yet; one byte more is."""
    for start, most in ((b"", CHUNK_LINE_BYTES), (b"0\r\n", LIMITS.head_bytes)):
        line = b"1;" + b"x" * (most - 2) if not start else b"T:" + b"x" * (most - 2)
        for more, passes in ((b"\r", True), (b"xx", False)):
            found, reason = read_all([in_chunks(start + line + more)], LIMITS)
            assert found == []
            assert (reason is None) is passes


def test_chunks_are_read_so_many_at_once() -> None:
    """A piece of a body holds a bounded number of chunks, so that others may run between the pieces."""
    reader = RequestReader(LIMITS)
    reader.receive(in_chunks(b"1\r\na\r\n" * 1_000 + b"0\r\n\r\n"))
    assert reader.head() is not None
    pieces = []
    while reader.in_body:
        pieces.append(reader.body())
        assert len(pieces[-1]) <= CHUNKS_AT_ONCE
    assert b"".join(pieces) == b"a" * 1_000
    assert max(map(len, pieces)) >= CHUNKS_AT_ONCE // 3
    assert reader.in_body is False
    assert reader.body() == b""


def test_short_body_is_given_whole_once_it_is_here() -> None:
    """Only one that has a length, has arrived, and is no longer than asked for; otherwise it is read in pieces."""
    sent = HEAD.replace(b"GET", b"POST", 1) + b"Content-Length: 5\r\n\r\n"
    for arrived, limit, body in (
        (b"abcdef", 5, b"abcde"),
        (b"abcde", 9, b"abcde"),
        (b"abcd", 9, None),
        (b"abcde", 4, None),
    ):
        reader = RequestReader(LIMITS)
        reader.receive(sent + arrived)
        assert reader.head() is not None
        assert reader.in_body
        assert reader.short_body(limit) == body
        assert reader.in_body is (body is None)
        if body is None:
            assert reader.body() == arrived
            assert reader.in_body is (len(arrived) < 5)
        else:
            assert reader.unread == len(arrived) - 5
    for other in (in_chunks(b"5\r\nabcde\r\n0\r\n\r\n"), HEAD + b"\r\n", HEAD + b"\r\nGET / HTTP/1.1"):
        reader = RequestReader(LIMITS)
        reader.receive(other)
        assert reader.head() is not None
        assert reader.short_body(100) is None


def test_reader_says_what_it_has_not_read() -> None:
    """Bytes are counted that arrived and that no head or body took."""
    reader = RequestReader(LIMITS)
    assert (reader.has_data, reader.unread, reader.in_body, reader.head()) == (False, 0, False, None)
    reader.receive(b"GET ")
    assert (reader.has_data, reader.unread, reader.head()) == (True, 4, None)
    reader.receive(HEAD[4:] + b"\r\nGE")
    assert reader.head() is not None
    assert (reader.has_data, reader.unread) == (True, 2)
    reader.receive(b"T")
    assert (reader.has_data, reader.unread) == (True, 3)


@pytest.mark.parametrize("step", [1, 3, 50, 1_000])
def test_what_was_read_and_what_was_not_is_all_that_arrived(step: int) -> None:
    """However it was cut, and whether what was read was released or not."""
    reader, arrived = RequestReader(LIMITS), 0
    one = HEAD + b"Content-Length: 4\r\n\r\nbody" + HEAD + b"\r\n"
    sent = one * 3
    for start in range(0, len(sent), step):
        piece = sent[start : start + step]
        reader.receive(piece)
        arrived += len(piece)
        assert reader.consumed + reader.unread == arrived
        while reader.in_body or reader.head() is not None:
            assert reader.consumed + reader.unread == arrived
            if reader.in_body and not reader.body():
                break
        if start // step % 2 == 0:
            reader.release()
        assert reader.consumed + reader.unread == arrived
    assert (reader.consumed, reader.unread) == (len(sent), 0)


def test_bytes_that_were_read_are_released_and_others_kept() -> None:
    """An idle connection holds no bytes; what has not been read stays."""
    reader = RequestReader(LIMITS)
    for begun in (b"", b"GET", b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r"):
        reader.receive(HEAD + b"\r\n" + begun)
        assert reader.head() is not None
        reader.release()
        assert (reader.unread, reader.has_data) == (len(begun), bool(begun))
        assert begun or not reader._data
        reader.receive((HEAD + b"\r\n")[len(begun) :])
        assert reader.head() is not None
        assert reader.unread == 0


@pytest.mark.parametrize("cut", [True, False], ids=["byte by byte", "in one piece"])
def test_empty_line_may_follow_a_body_and_nothing_else(cut: bool) -> None:
    """Some clients end a body with one; two, or one before any other request, are refused."""
    post = HEAD.replace(b"GET", b"POST", 1) + b"Content-Length: 1\r\n\r\na"
    get = HEAD + b"\r\n"
    for sent, count in (
        (post + b"\r\n" + get, 2),
        (post + get, 2),
        (in_chunks(b"0\r\n\r\n") + b"\r\n" + get, 2),
        (post + b"\r\n\r\n" + get, 1),
        (get + b"\r\n" + get, 1),
        (post + b"\r" + get, 1),
    ):
        found, reason = read_all([bytes([byte]) for byte in sent] if cut else [sent], LIMITS)
        assert (len(found), reason is None) == (count, count == 2), sent

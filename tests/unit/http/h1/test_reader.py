"""From bytes to requests: what is refused, and that the cuts between the pieces do not matter."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings, strategies as st

from spotledger.http.h1.head import KNOWN_FIELDS_BYTES, KNOWN_LINE_BYTES, KNOWN_LINES, Head, HeadParser
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.reader import RequestReader
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
    assert reason.endswith(".")


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
        kept = [*parser._lines, *parser._known]
        assert len(kept) <= 2 * KNOWN_LINES
        assert max(map(len, kept)) <= KNOWN_LINE_BYTES
        assert parser._last is None or len(parser._last.fields) <= KNOWN_FIELDS_BYTES


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

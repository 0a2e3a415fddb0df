"""
A lean load for HTTP: raw requests over kept connections, as fast as answers come or at an even pace.

Run in a process of its own, on a core of its own: ``python -m bench.http_load PLAN.json``; prints one line of JSON.
What is answered in the first seconds is not counted: a server that has just started reads accounts from its file
first. At a pace, the time of a request counts from when it was due, so a server that stalls is not spared the waiting.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

HEAD_END: Final = b"\r\n\r\n"
#: How often what is due is sent. uvloop counts in milliseconds: less would keep the core busy all the time.
TICK_SECONDS: Final = 0.001


@dataclass
class Stream:
    """Requests of one kind to one port, and what came of them."""

    name: str
    port: int
    connections: int
    requests: deque[bytes]
    #: Requests a second; None for as many as can be.
    pace: float | None
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    idle: deque[Connection] = field(default_factory=deque)
    overdue: deque[float] = field(default_factory=deque)
    running: bool = True
    worst: bytes = b""

    def next(self, connection: Connection) -> None:
        """Give *connection* its next request, or let it rest."""
        if not self.running or not self.requests:
            return
        if self.pace is None:
            connection.send(self.requests.popleft(), time.perf_counter())
        elif self.overdue:
            connection.send(self.requests.popleft(), self.overdue.popleft())
        else:
            self.idle.append(connection)

    def count_anew(self) -> None:
        """Forget what was counted so far."""
        self.statuses.clear()
        self.seconds.clear()

    def due(self, moment: float) -> None:
        """Send a request that is due at *moment*, now or when a connection is free."""
        if self.idle and self.requests:
            self.idle.popleft().send(self.requests.popleft(), moment)
        else:
            self.overdue.append(moment)


class Connection(asyncio.Protocol):
    """One kept connection: a request, its whole answer, the next request."""

    def __init__(self, stream: Stream) -> None:
        """Serve *stream*."""
        self.stream = stream
        self.buffer = b""
        self.begun = 0.0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Take the first request."""
        self.transport = transport
        self.stream.next(self)

    def send(self, request: bytes, begun: float) -> None:
        """Send *request*, whose time counts from *begun*."""
        self.begun = begun
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collect the answer; count it when it is whole."""
        self.buffer += data
        if not is_whole(self.buffer):
            return
        stream = self.stream
        status = int(self.buffer[9:12])
        stream.statuses[status] = stream.statuses.get(status, 0) + 1
        stream.seconds.append(time.perf_counter() - self.begun)
        if status not in (200, 201, 422):
            stream.worst = self.buffer[:600]
        self.buffer = b""
        stream.next(self)


def is_whole(answer: bytes) -> bool:
    """Say whether *answer* is complete, by its length or its last chunk."""
    end = answer.find(HEAD_END)
    if end < 0:
        return False
    head = answer[:end].lower()
    place = head.find(b"content-length:")
    if place >= 0:
        return len(answer) >= end + 4 + int(head[place + 15 :].split(b"\r\n", 1)[0])
    return answer.endswith(b"0\r\n\r\n")


def raw_request(method: str, path: str, headers: dict[str, str], body: str) -> bytes:
    """Put a request together."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def run(streams: list[Stream], warm_up: float, seconds: float) -> tuple[float, float]:
    """Run all *streams* and count what is answered after *warm_up*, for *seconds*; return both, as they came to be."""
    loop = asyncio.get_running_loop()
    for stream in streams:
        for _ in range(stream.connections):
            await loop.create_connection(lambda stream=stream: Connection(stream), "127.0.0.1", stream.port)  # type: ignore[misc]
    started = time.perf_counter()
    paced = {stream.name: (stream, 1 / stream.pace, started) for stream in streams if stream.pace}
    counted: float | None = None
    while (now := time.perf_counter()) < started + warm_up + seconds and any(stream.requests for stream in streams):
        if counted is None and now >= started + warm_up:
            counted = now
            for stream in streams:
                stream.count_anew()
        for name, (stream, apart, moment) in paced.items():
            while moment <= now:
                stream.due(moment)
                moment += apart
            paced[name] = (stream, apart, moment)
        await asyncio.sleep(TICK_SECONDS if paced else 0.01)
    ended = time.perf_counter()
    for stream in streams:
        stream.running = False
    return (counted or started) - started, ended - (counted or started)


def figures(stream: Stream, passed: float) -> dict[str, Any]:
    """Sum up one stream; times in ms."""
    each = sorted(stream.seconds) or [0.0]
    return {
        "answers": len(stream.seconds),
        "per_second": len(stream.seconds) / passed,
        "statuses": stream.statuses,
        "p50_ms": each[len(each) // 2] * 1000,
        "p99_ms": each[len(each) * 99 // 100] * 1000,
        "longest_ms": each[-1] * 1000,
        "exhausted": not stream.requests,
        "never_sent": len(stream.overdue),
        "worst": stream.worst.decode("utf-8", "replace"),
    }


def main() -> None:
    """Read the plan, run it, print what came of it."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    streams = []
    for each in plan["streams"]:
        requests = deque(raw_request(*line) for line in each["requests"])
        streams.append(Stream(each["name"], each["port"], each["connections"], requests, each["pace"]))
    gc.collect()
    gc.freeze()
    gc.disable()
    processor = time.process_time()
    warm_up, passed = uvloop.run(run(streams, plan["warm_up"], plan["seconds"]))
    processor = time.process_time() - processor
    found = {stream.name: figures(stream, passed) for stream in streams}
    whole = warm_up + passed
    print(json.dumps({"seconds": whole, "load_core_share": processor / whole, "streams": found}))


if __name__ == "__main__":
    main()

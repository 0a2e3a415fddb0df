"""The load: signed requests written down before a round, wrk to send them, and a check that they were answered."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Cores, busy_seconds, pinned, processor_seconds

PATH = "/trade/api/v1/getBalance"
CONNECTIONS = 64
#: Nonces lie this far around the moment of signing: with the seconds that reading the file and the round take, all of
#: them stay within the 30 s into the past and 5 s into the future that the server takes.
OLDEST_NONCE_MS = 15_000
NEWEST_NONCE_MS = 4_000
SCRIPT = Path(__file__).with_name("signed.lua")


@dataclass(frozen=True)
class Credentials:
    """What one trader signs with."""

    accesskey: str
    secretkey: str
    customer: str


@dataclass(frozen=True)
class Round:
    """What one round of load came to."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    errors: int
    bytes_per_answer: float
    load_core_share: float
    server_core_share: float
    others_cores: float
    distinct_requests: int
    sent: int


@dataclass(frozen=True)
class Target:
    """A server under measurement: where it listens, and its process."""

    port: int
    pid: int


def sign(credentials: Sequence[Credentials], count: int) -> list[str]:
    """Sign *count* requests, every pair of access key and nonce used once, as paths with their query."""
    now_ms = int(time.time() * 1000)
    each = -(-count // len(credentials))
    span = OLDEST_NONCE_MS + NEWEST_NONCE_MS
    if each > span:
        raise ValueError(f"{count} requests need more than {len(credentials)} access keys")
    step = span // each
    keyed = [
        (f"accesskey={one.accesskey}&nonce=", hmac.new(one.secretkey.encode(), digestmod=hashlib.sha256))
        for one in credentials
    ]
    lines = []
    for number in range(count):
        turn, which = divmod(number, len(keyed))
        start, ready = keyed[which]
        text = f"{start}{now_ms - OLDEST_NONCE_MS + turn * step + which % step}"
        state = ready.copy()
        state.update(text.encode())
        lines.append(f"{PATH}?{text}&signature={state.hexdigest()}")
    return lines


def ask(port: int, line: str) -> tuple[list[tuple[str, str]], bytes]:
    """Send one signed request; return headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", line)
        answer = connection.getresponse()
        return list(answer.getheaders()), answer.read()
    finally:
        connection.close()


def check_answers(port: int, credentials: Sequence[Credentials], expected: bytes | None = None) -> int:
    """
    Send a hundred signed requests and check that each is a success with the expected balances.

    Returns the size of an answer with its headers, in bytes. Raises RuntimeError for any other answer.
    """
    size = 0
    for line in sign(credentials, len(credentials))[-100:]:
        headers, body = ask(port, line)
        document = json.loads(body)
        if document.get("code") != 200 or (expected is not None and document != json.loads(expected)):
            raise RuntimeError(f"not the answer that was expected: {body[:300]!r}")
        head = sum(len(name) + len(value) + 4 for name, value in headers) + len("HTTP/1.1 200 OK\r\n\r\n")
        size = max(size, head + len(body))
    return size


def run_round(
    target: Target, credentials: Sequence[Credentials], count: int, seconds: int, cores: Cores, folder: Path
) -> Round:
    """
    Sign *count* requests and send them to *target* for *seconds*, again from the first when all are sent.

    wrk reads every answer; one that is no success counts as an error. With a *count* of 0 one signed request is sent
    again and again and only its status looked at, for a peer that is quicker than wrk can be.
    """
    lines = sign(credentials, max(count, 1))
    requests = folder / "requests.txt"
    requests.write_text("\n".join(lines) + "\n")
    url = f"http://127.0.0.1:{target.port}{lines[0]}"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    if count:
        command += ["--", str(requests)]
    busy_before, started = busy_seconds(), time.perf_counter()
    server_before = processor_seconds(target.pid)
    load_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        pinned(command, cores.load), capture_output=True, text=True, timeout=seconds + 60, check=True
    )
    load_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    server_seconds = processor_seconds(target.pid) - server_before
    load_seconds = load_after.ru_utime + load_after.ru_stime - load_before.ru_utime - load_before.ru_stime
    others_seconds = busy_seconds() - busy_before - server_seconds - load_seconds
    others_cores = max(0.0, others_seconds / (time.perf_counter() - started))
    found = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(f"wrk said:\n{result.stdout}{result.stderr}")
    figures = json.loads(found[0].removeprefix("RESULT "))
    lasted = figures["microseconds"] / 1e6
    return Round(
        requests_per_second=figures["requests"] / lasted,
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        errors=figures["errors"] + figures["refused"],
        bytes_per_answer=figures["bytes"] / max(figures["requests"], 1),
        # What wrk uses before the round, to read the requests, is in this; so it may be a little over 1.
        load_core_share=load_seconds / lasted,
        server_core_share=server_seconds / lasted,
        others_cores=others_cores,
        distinct_requests=len(lines) if count else 1,
        sent=figures["requests"],
    )

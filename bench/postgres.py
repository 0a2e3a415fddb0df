"""How many operations of an exchange a ledger on PostgreSQL books, from one node and from four; peers beside it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import spotledger
from bench import books
from bench.exchange import checked
from bench.exchange_work import AnyOrderWork, Work, opening
from bench.harness import (
    QUICK,
    ROOT,
    ROUNDS,
    SPARE_ROUNDS,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    busy_seconds,
    conditions,
    processor_seconds,
    sealing_on,
    tell,
    wait_for_sealing,
)
from bench.peers import postgres_rows
from bench.postgres_server import Server, alone
from bench.rounds import Round, Row, ratio_aims, ratio_table, run_groups, table_of
from spotledger.ledger.ledger import Ledger

CUSTOMERS: Final = 1_000 if QUICK else 10_000
#: Operations in a round by size of the group: a whole segment, so that each round has its share of the sealing.
COUNTS: Final = {10: 5_000, 100: 10_000, 1_000: 20_000} if QUICK else {10: 66_000, 100: 66_000, 1_000: 66_000}
NODES: Final = (1, 4)
NODE_COUNTS: Final = {10: 4_000, 100: 8_000, 1_000: 16_000} if QUICK else {10: 16_000, 100: 32_000, 1_000: 48_000}
EMBEDDED_AIMS: Final = {10: 0.4, 100: 0.6, 1_000: 0.7}
WARM_UP_GROUPS: Final = 10
PLAIN_AIM: Final = 10


@dataclass(frozen=True)
class NodesRound:
    """What several nodes that write at once came to, in all."""

    operations_per_second: float
    processor_microseconds: float
    others_cores: float


def round_of(ledger: Ledger, work: Work, servers: Sequence[int], row: Row) -> Round:
    """Do a round of the mix, one group after the other."""
    groups = [work.group(row.group) for _ in range(row.operations // row.group)]
    return checked(ledger, work, run_groups(ledger, groups, servers))


class Nodes:
    """Processes that write to one ledger at once."""

    def __init__(self, url: str, server: Server, ledger: Ledger, folder: Path) -> None:
        """Write to the ledger at *url*, which *ledger* has open."""
        self.url = url
        self.server = server
        self.ledger = ledger
        self.folder = folder
        self.seed = 100

    def round(self, count: int, group: int) -> NodesRound:
        """Have *count* nodes share the operations of a round; holds are opened before."""
        paths = [self.make(NODE_COUNTS[group] // count + group, number) for number in range(count)]
        command = [sys.executable, "-m", "bench.postgres_node", self.url]
        started = [
            subprocess.Popen(
                [*command, str(path), str(group)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for path in paths
        ]
        try:
            for process in started:
                if process.stdout is None or process.stdout.readline() != "ready\n":
                    raise RuntimeError("a node did not get ready")
            busy, own = busy_seconds(), processor_seconds(self.server.pid)
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            found = [json.loads(process.communicate(timeout=120)[0]) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        passed = max(each["ended"] for each in found) - min(each["started"] for each in found)
        used = sum(each["processor"] for each in found)
        done = sum(each["operations"] for each in found)
        others = busy_seconds() - busy - (processor_seconds(self.server.pid) - own) - used
        return NodesRound(done / passed, used / done * 1e6, max(0.0, others / passed))

    def make(self, operations: int, number: int) -> Path:
        """Write down the operations of one node, after opening the holds that they need."""
        self.seed += 1
        self.ledger.execute([])
        work = AnyOrderWork(self.seed, self.ledger.head.seq + 1, CUSTOMERS)
        books.book(self.ledger, work.prepare(operations))
        path = self.folder / f"node-{number}.pickle"
        path.write_bytes(pickle.dumps(work.operations(operations)))
        return path


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("postgres", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        server = stack.enter_context(alone(cores))
        report.conditions["postgresql"] = server.settings()
        if cores.server is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, {cores.server})
        stack.enter_context(sealing_on(cores.load))
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
        url = server.database()
        ledger = stack.enter_context(spotledger.open(url))
        embedded = stack.enter_context(spotledger.open(folder / "data"))
        one = {name: [Row(name, group, count, []) for group, count in COUNTS.items()] for name in TITLES}
        groups(server, quiet, {"postgresql": ledger, "embedded": embedded}, one)
        nodes = nodes_of(Nodes(url, server, ledger, folder), quiet, allowed)
        peers = postgres_rows.measure(folder, cores, server)
        report.notes.append(f"The ledger on PostgreSQL grew to {ledger.head.seq:,} entries.")
    summarise(report, one, nodes, peers)
    quiet.report(report)
    return report


TITLES: Final = {"postgresql": "One node on PostgreSQL", "embedded": "The embedded ledger"}


def groups(server: Server, quiet: Quiet, ledgers: dict[str, Ledger], rows: dict[str, list[Row]]) -> None:
    """Fill both ledgers and take the rounds of one node, in turn."""
    works = {}
    for name, ledger in ledgers.items():
        tell(f"  fill a ledger with {CUSTOMERS:,} customers of 20 coins: {name}")
        books.book(ledger, opening(CUSTOMERS))
        works[name] = Work(1, ledger.head.seq + 1, CUSTOMERS)
        run_groups(ledger, [works[name].group(1_000) for _ in range(WARM_UP_GROUPS)])
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  round {number + 1}")
        for name, ledger in ledgers.items():
            wait_for_sealing()
            server.checkpoint()
            for row in rows[name]:
                row.rounds.append(quiet.round(partial(round_of, ledger, works[name], [server.pid], row)))


def nodes_of(nodes: Nodes, quiet: Quiet, allowed: set[int]) -> dict[tuple[int, int], list[NodesRound]]:
    """Take the rounds of one and of four nodes, in turn; nodes and server share all cores."""
    own = os.sched_getaffinity(0)
    taken: dict[tuple[int, int], list[NodesRound]] = {(count, group): [] for count in NODES for group in COUNTS}
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  nodes, round {number + 1}")
        for (count, group), rounds in taken.items():
            os.sched_setaffinity(0, allowed)
            rounds.append(quiet.round(partial(nodes.round, count, group)))
    os.sched_setaffinity(0, own)
    return taken


def summarise(
    report: Report,
    one: dict[str, list[Row]],
    nodes: dict[tuple[int, int], list[NodesRound]],
    peers: Sequence[postgres_rows.PeerRow],
) -> None:
    """Put tables, aims and raw figures into *report*."""
    report.tables += [table_of(TITLES[name], rows) for name, rows in one.items()]
    beside_embedded = ("PostgreSQL", "embedded")
    report.tables.append(ratio_table("PostgreSQL beside the embedded ledger", beside_embedded, *one.values()))
    rates = {row.group: row.median("operations_per_second") for row in one["postgresql"]}
    table = Table("Nodes that write at once", ["nodes", "operations in a group", "operations/s in all", "processor µs"])
    totals: dict[tuple[int, int], float] = {}
    for (count, group), rounds in nodes.items():
        totals[count, group] = median(each.operations_per_second for each in rounds)
        used = round(median(each.processor_microseconds for each in rounds), 1)
        table.rows.append([count, group, round(totals[count, group]), used])
    report.tables.append(table)
    beside = Table("Peers on the same server", ["", "operations/s", "groups of 1,000 are", "of 100", "why not"])
    for peer in peers:
        ratios = [f"× {rates[group] / peer.rate:,.1f}" if peer.rate else None for group in (1_000, 100)]
        beside.rows.append([peer.name, round(peer.rate) if peer.rate else None, *ratios, peer.missing or ""])
    report.tables.append(beside)
    report.aims = ratio_aims("PostgreSQL ÷ embedded", EMBEDDED_AIMS, one["postgresql"], one["embedded"])
    report.aims += [
        Aim(f"four nodes ÷ one, groups of {group:,}", round(totals[4, group] / totals[1, group], 2), 1)
        for group in COUNTS
    ]
    plain = next((peer.rate for peer in peers if peer.name == postgres_rows.PLAIN_EIGHT), None)
    ratio = round(rates[1_000] / plain, 1) if plain else None
    report.aims.append(Aim("groups of 1,000 ÷ plain statements, eight connections", ratio, PLAIN_AIM))
    report.notes += [
        "PostgreSQL has the second core; one node with the process that seals for it, and each peer's processes "
        "together, the first. The embedded ledger has the first core, and what seals for it the second, as in the "
        "exchange bench. Where nodes write at once, all of them share both cores with the server: a node of a fleet "
        "has cores of its own.",
        "÷ is the median of the ratios, round by round. Written is what the node's processes wrote to the disk; what "
        "PostgreSQL wrote is not in it.",
        "Four nodes do as many operations as one, on holds opened before, so that no node waits for another.",
    ]
    raw: dict[str, Any] = {
        f"{n}-{row.group}": [asdict(r) for r in row.rounds] for n, rows in one.items() for row in rows
    }
    raw |= {f"nodes-{count}-{group}": [asdict(each) for each in rounds] for (count, group), rounds in nodes.items()}
    report.raw = {**raw, "peers": [asdict(each) for each in peers]}

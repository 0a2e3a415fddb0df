"""What every bench needs: the conditions, pinning, processes that surely end, medians, and the report."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")
ROUNDS = 3
#: A round is quiet while everything else on the machine uses no more than this many cores.
QUIET_CORES = 0.1
#: Beyond this the figures say nothing, and the report says so.
SPOILT_CORES = 0.3
SPARE_ROUNDS = 4 if QUICK else 10
STOP_SECONDS_LIMIT = 20
#: The packages whose programs a ledger starts for its sealing: of any store, and of the embedded one.
STORES, EMBEDDED = "spotledger.storage.", "spotledger.storage.sqlite."
#: How long a segment that is being sealed is waited for before somebody else's round, and how often that is looked at.
SEALING_SECONDS_LIMIT = 15.0
LOOK_SECONDS = 0.3
STILL_LOOKS = 2
READY_SECONDS_LIMIT = 60
MEASURED_PACKAGES = ("granian", "uvloop", "fastapi", "pydantic", "uvicorn", "httptools")


#: The columns of a table of aims.
AIM_COLUMNS = ("", "measured", "aim", "")


@dataclass(frozen=True)
class Cores:
    """Which core the measured side runs on, and which the load; ``None`` where there are not two."""

    server: int | None
    load: int | None

    @classmethod
    def choose(cls) -> Cores:
        """Take the first two cores that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1]) if len(allowed) > 1 else cls(None, None)


def pinned(command: Sequence[str], core: int | None) -> list[str]:
    """Return *command* bound to *core*, or as it is where no core is named or taskset is missing."""
    if core is None or shutil.which("taskset") is None:
        return list(command)
    return ["taskset", "-c", str(core), *command]


def free_port() -> int:
    """Find a port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], core: int | None, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* on *core* for the length of the block; what it says goes to a file in *folder*."""
    log = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(command, core),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            cwd=folder,
        )
    process.log = log  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End *process* with SIGTERM, and with SIGKILL where that does not do."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> float:
    """Ask *url* until it answers 200; return the seconds that this took. Raises RuntimeError if it never does."""
    started = time.perf_counter()
    while time.perf_counter() - started < READY_SECONDS_LIMIT:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return time.perf_counter() - started
        except (urllib.error.URLError, OSError):
            time.sleep(0.002)
    said = process.log.read_text(errors="replace")[-2000:]  # type: ignore[attr-defined]
    raise RuntimeError(f"{process.args!r} did not get ready; it said:\n{said}")


def resident_mib(pid: int) -> float:
    """Return the resident memory of *pid* and its children in MiB."""
    return _status_mib("VmRSS:", [pid, *children(pid)])


def most_resident_mib(*pids: int) -> float:
    """Return the most memory that each of *pids* had resident so far, added up, in MiB."""
    return _status_mib("VmHWM:", pids)


def _status_mib(name: str, pids: Sequence[int]) -> float:
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def children(pid: int) -> list[int]:
    """List the processes below *pid*."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def processor_seconds(*pids: int) -> float:
    """Return the processor time that *pids* and their children, ended ones too, have used, in seconds."""
    ticks = 0
    for each in {process for pid in pids for process in (pid, *children(pid))}:
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def written_bytes(*pids: int) -> int | None:
    """Return what *pids* have caused to be written to disk so far, in bytes; None where the system does not say."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        except OSError:
            return None
        total += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
    return total


def sealing_processes(pid: int, package: str = STORES) -> list[int]:
    """List the processes below *pid* that seal for a ledger: those that run a module of *package*."""
    found = []
    for child in children(pid):
        with suppress(OSError):
            arguments = Path(f"/proc/{child}/cmdline").read_text(errors="replace").split("\0")
            if any(argument.startswith(package) for argument in arguments):
                found.append(child)
    return found


@contextmanager
def sealing_on(core: int | None, *, yields: bool = False) -> Iterator[None]:
    """
    Bind what seals for an embedded ledger, in any process below this one, to *core* for the length of the block.

    Such a process is started in the midst of a round, so a thread looks for it. With *yields* it only gets what others
    leave of the core.
    """
    ended = threading.Event()

    def watch() -> None:
        bound: set[int] = set()
        while not ended.wait(LOOK_SECONDS):
            with suppress(OSError):
                for pid in set(sealing_processes(os.getpid(), EMBEDDED)) - bound:
                    os.sched_setaffinity(pid, {core or 0})
                    if yields:
                        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
                    bound.add(pid)

    thread = threading.Thread(target=watch, daemon=True)
    if core is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if core is not None:
            thread.join()


def wait_for_sealing() -> None:
    """Wait until nothing below this process is sealing, within limits, so that it does not disturb another's round."""
    deadline = time.monotonic() + SEALING_SECONDS_LIMIT
    before, still = -1.0, 0
    while still < STILL_LOOKS and time.monotonic() < deadline:
        used = processor_seconds(*sealing_processes(os.getpid()))
        still = still + 1 if used == before else 0
        before = used
        time.sleep(LOOK_SECONDS)


def sync_microseconds(folder: Path, count: int = 200) -> float:
    """Measure the median cost of one synced write of 4 KiB in *folder*, in microseconds."""
    path = folder / "sync-probe"
    durations = []
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            started = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter_ns() - started)
    path.unlink()
    return statistics.median(durations) / 1000


def busy_seconds() -> float:
    """Return the processor time that the whole machine has used so far, what was taken from it included, in seconds."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def busy_cores(seconds: float = 1.0) -> float:
    """Measure how many cores the rest of the machine keeps busy: more than a little spoils the figures."""
    before = busy_seconds()
    time.sleep(seconds)
    return round((busy_seconds() - before) / seconds, 2)


class Disturbed(Protocol):
    """A round that knows how many cores others kept busy while it ran."""

    @property
    def others_cores(self) -> float: ...


R = TypeVar("R", bound=Disturbed)


class Quiet:
    """Takes a round again while others disturb it, a bounded number of times in all, and keeps the quietest."""

    def __init__(self, spare_rounds: int) -> None:
        self.spare_rounds = spare_rounds
        self.taken_again = 0
        self.most_cores = 0.0

    def round(self, take: Callable[[], R]) -> R:
        """Run *take* until a round was quiet or no spare round is left."""
        best = take()
        while best.others_cores > QUIET_CORES and self.taken_again < self.spare_rounds:
            self.taken_again += 1
            time.sleep(1)
            best = min(best, take(), key=lambda each: each.others_cores)
        self.most_cores = max(self.most_cores, best.others_cores)
        return best

    def report(self, report: Report) -> None:
        """Say in *report* what was done about disturbed rounds."""
        report.others_cores = self.most_cores
        report.notes.append(
            f"A round in which others kept more than {QUIET_CORES} cores busy is taken again, {self.spare_rounds} "
            f"times in all, and the quietest counts. {self.taken_again} were; in those that count, others kept "
            f"{self.most_cores:.2f} cores busy at the most."
        )


def said_by(*command: str) -> str:
    """Return the first line that *command* prints, or an empty text."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return (result.stdout + result.stderr).strip().split("\n")[0].strip()


def conditions(folder: Path, cores: Cores) -> dict[str, Any]:
    """Describe the machine and the versions that the figures were measured with."""
    information = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    versions = {}
    for name in MEASURED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    changed = bool(said_by("git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "bench", ":!bench/results"))
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": QUICK,
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": apsw.sqlite_lib_version(),
        "packages": versions,
        "nginx": said_by("nginx", "-v").removeprefix("nginx version: "),
        "wrk": " ".join(said_by("wrk", "-v").split()[:2]),
        "commit": said_by("git", "-C", str(ROOT), "rev-parse", "HEAD") + (" with changes" if changed else ""),
        "synced_write_microseconds": round(sync_microseconds(folder), 1),
        "busy_cores_before": busy_cores(),
    }


@dataclass
class Table:
    """One table of a report: *columns* name the cells, each row is a list of them."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)


@dataclass
class Aim:
    """A figure with what it should reach; *at_most* tells which side is good."""

    name: str
    value: float | None
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Tell whether the figure is on the good side; ``None`` if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def row(self) -> list[Any]:
        """Set the aim for a table: name, figure, limit, and whether it was met."""
        return [self.name, self.value, ("≤ " if self.at_most else "≥ ") + shown(self.limit), said(self.met)]


@dataclass
class Report:
    """Everything that one bench found out."""

    name: str
    about: str
    conditions: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    #: The most cores that others kept busy in a round that counts.
    others_cores: float = 0.0

    def write(self) -> Path:
        """Write the report as JSON and as Markdown; return the path of the latter."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        stem = f"{self.conditions['date'][:10]}-{self.name}{'-quick' if QUICK else ''}"
        document = {
            "name": self.name,
            "about": self.about,
            "conditions": self.conditions,
            "aims": [{"name": a.name, "value": a.value, "limit": a.limit, "met": a.met} for a in self.aims],
            "others_cores": round(self.others_cores, 3),
            "tables": [{"title": t.title, "columns": list(t.columns), "rows": t.rows} for t in self.tables],
            "notes": self.notes,
            "raw": self.raw,
        }
        (RESULTS / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        path = RESULTS / f"{stem}.md"
        path.write_text(self.markdown(), encoding="utf-8")
        return path

    def markdown(self) -> str:
        """Set the report in Markdown."""
        lines = [f"# {self.name}", "", self.about, ""]
        if self.others_cores > SPOILT_CORES:
            lines += [f"**Spoilt: others kept {self.others_cores:.2f} cores busy meanwhile. Measure again.**", ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", *markdown_table(table.columns, table.rows), ""]
        if self.aims:
            lines += ["## Aims", "", *markdown_table(AIM_COLUMNS, [aim.row() for aim in self.aims]), ""]
        if self.notes:
            lines += ["## Notes", "", *(f"- {note}" for note in self.notes), ""]
        rows = [[name.replace("_", " "), value] for name, value in self.conditions.items()]
        lines += ["## Conditions", "", *markdown_table(["", ""], rows), ""]
        return "\n".join(lines)


def aims_of(reports: Sequence[Report]) -> list[str]:
    """Set the aims of all *reports* as one Markdown table."""
    rows = [[report.name, *aim.row()] for report in reports for aim in report.aims]
    return ["# All aims", "", *markdown_table(["", *AIM_COLUMNS], rows), ""]


def said(met: bool | None) -> str:
    """Say whether an aim was met."""
    return {True: "met", False: "missed", None: "not measured"}[met]


def shown(value: Any) -> str:
    """Write one cell: big numbers with separators, small ones with three digits that count."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Set *rows* as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in rows]
    return lines


def install_packages(commands: Mapping[str, str]) -> list[str]:
    """Install with apt what is missing of *commands* (command → package), as root; return what is missing still."""
    missing = [package for command, package in commands.items() if shutil.which(command) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(
                ["apt-get", "-qq", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=240,
                check=False,
            )
    return [command for command in commands if shutil.which(command) is None]


def tell(text: str) -> None:
    """Say what is being measured."""
    print(text, file=sys.stderr, flush=True)

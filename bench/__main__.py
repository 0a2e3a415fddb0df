"""Run the benches that are named, or all of them: ``python -m bench [NAME …]``."""

from __future__ import annotations

import argparse
import importlib
import time

from bench.harness import QUICK, ROOT, aims_of, tell

BENCHES = (
    "library",
    "exchange",
    "http_writes",
    "http_cost",
    "growth",
    "audit",
    "walks",
    "start",
    "loop",
    "h1",
    "crowd",
    "read",
    "postgres",
    "postgres_callers",
    "postgres_growth",
    "postgres_read",
    "postgres_snapshot",
)


def main() -> None:
    """Run benches one after the other; print each report, say where it was written, and print all aims at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], metavar="NAME", help=", ".join(BENCHES))
    names = parser.parse_args().names or BENCHES
    reports = []
    for name in names:
        tell(f"{name}{' (quick)' if QUICK else ''}")
        started = time.perf_counter()
        report = importlib.import_module(f"bench.{name}").run()
        path = report.write()
        print(report.markdown())
        tell(f"{name}: {time.perf_counter() - started:.0f} s, written to {path.relative_to(ROOT)}")
        reports.append(report)
    if len(reports) > 1:
        print("\n".join(aims_of(reports)))


if __name__ == "__main__":
    main()

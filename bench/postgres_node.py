"""
One of several nodes that write at once: ``python -m bench.postgres_node URL OPERATIONS GROUP``.

Says "ready" when it has done one group to warm up, waits for a line, does the rest, and prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import pickle
import sys
import time
from pathlib import Path

import spotledger
from bench.rounds import check


def main() -> None:
    """Do what the arguments say."""
    url, path, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    operations = pickle.loads(path.read_bytes())  # noqa: S301 - written by the bench a moment ago
    first, *groups = [operations[start : start + size] for start in range(0, len(operations), size)]
    with spotledger.open(url) as ledger:
        ledger.execute(first)
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        sys.stdin.readline()
        started, processor = time.monotonic(), time.process_time()
        for group in groups:
            check(ledger.execute(group))
        ended, processor = time.monotonic(), time.process_time() - processor
    done = sum(map(len, groups))
    print(json.dumps({"operations": done, "started": started, "ended": ended, "processor": processor}))


if __name__ == "__main__":
    main()

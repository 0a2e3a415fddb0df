"""The program of a process that reads ranges of a ledger's files ahead: ``python -m … PATH DESCRIPTOR``."""

from __future__ import annotations

import sys

from spotledger.audit.embedded.source import EmbeddedSource
from spotledger.audit.ranges import NoFindings
from spotledger.audit.workers import serve

if __name__ == "__main__":
    serve(EmbeddedSource(sys.argv[1], NoFindings()), int(sys.argv[2]))

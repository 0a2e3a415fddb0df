"""
The audit of a ledger's files.

Open ``source.py`` first: it reads the journal and the books. ``tables.py`` compares what only the books have, and
``files.py`` looks at the files as files, the noted head, and the rows of access keys.
"""

from spotledger.audit.embedded.source import audit_file

__all__ = ["audit_file"]

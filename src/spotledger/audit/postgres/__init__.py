"""
The audit of a ledger on PostgreSQL.

Open ``database.py`` first: it reads the journal. ``tables.py`` compares what is derived from it, ``credentials.py``
looks at access keys and tokens, and ``definitions.py`` compares the schema with what the migrations make.
"""

from spotledger.audit.postgres.database import audit_database

__all__ = ["audit_database"]

"""
The audit of a ledger on PostgreSQL.

Open ``source.py`` first: it reads the journal and the derived tables. ``definitions.py`` compares the schema with what
the migrations make, and ``credentials.py`` looks at access keys and tokens.
"""

from spotledger.audit.postgres.source import audit_database

__all__ = ["audit_database"]

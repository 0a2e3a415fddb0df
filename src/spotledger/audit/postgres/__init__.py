"""
The audit of a ledger on PostgreSQL.

Open ``source.py`` first: it reads the journal and the derived tables. ``one_row.py`` checks the rows that say which
ledger it is and how far it is sealed, ``credentials.py`` looks at access keys and tokens, and ``definitions.py``
compares the schema with what the migrations make.
"""

from spotledger.audit.postgres.source import audit_database

__all__ = ["audit_database"]

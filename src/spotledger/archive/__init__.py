"""
Move whole ledgers: backup, restore, copy to PostgreSQL, export, import.

Open ``backup.py`` first, then ``restore.py``, which audits the restored ledger before it gets its name.
"""

"""
Carry a ledger elsewhere and back: backup, restore, copy, export, import.

Open ``backup.py`` first, then ``restore.py``, which audits what it made before it gets its name.
"""

"""
The embedded store: a ledger in SQLite, owned by one process.

Open ``store.py`` first: it implements the port of ``storage/base.py``. ``file.py`` opens the file and translates
SQLite's errors.
"""

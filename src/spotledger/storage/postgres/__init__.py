"""
The store on PostgreSQL: one ledger, many nodes. The node that holds the lock of its row writes.

Open ``store.py`` first: it implements the port of ``storage/base.py``. ``connection.py`` connects and translates
PostgreSQL's errors.
"""

"""
The store on PostgreSQL: one ledger, many nodes; the node that holds the lock on the head row writes.

Open ``store.py`` first: it implements the port of ``storage/base.py``. ``connection.py`` connects and translates
errors.
"""

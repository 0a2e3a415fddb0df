"""
The ledger: decide what operations do to the books, commit it, and answer reads.

Open ``ledger.py`` first: one method per operation. ``writer.py`` is the queue in front of it in a server.
"""

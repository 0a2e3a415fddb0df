"""
The ledger: decides what operations do to the books, commits it, and answers reads.

Open ``ledger.py`` first: one method per operation. ``writer.py`` is the queue in front of it in a server.
"""

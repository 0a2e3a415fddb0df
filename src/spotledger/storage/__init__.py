"""
Storage: the port that the ledger writes to, the two stores behind it, and the data folder.

Open ``base.py`` first: it is the port. ``sqlite/`` and ``postgres/`` implement it.
"""

"""
The audit: derive everything from the journal again, and compare it with what the store says. It never asks the ledger.

Open ``driver.py`` first: it decides what is checked in which order. It reads from a ``source.py``, of which there are
two: ``embedded`` (a ledger's files) and ``postgres`` (a database).
"""

"""
The audit: derive everything from the journal again, and compare it with what the store says.

Open ``embedded.py`` first: one audit of a ledger file, from start to verdict. ``postgres.py`` is its twin for a
database.
"""

"""
The audit: derive everything from the journal again, and compare it with what the store says. It never asks the ledger.

Open ``driver.py`` first, then ``embedded.py`` (a ledger file) and ``postgres/database.py`` (a database), which are its
sources.
"""

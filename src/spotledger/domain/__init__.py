"""
The rules of the ledger, pure: no clock, no randomness, no I/O, the standard library alone.

Open ``rules.py`` first: what each operation does to the books. ``operations.py`` has the operations.
"""

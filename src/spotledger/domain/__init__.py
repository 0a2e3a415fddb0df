"""
The rules of the ledger, as pure functions: no clock, no randomness, no I/O, nothing but the standard library.

Open ``operations.py`` first, which has what a caller can ask for, and then ``rules.py``, which decides it.
"""

"""The rules of the ledger, pure: no clock, no randomness, no I/O, the standard library alone."""

"""
The files beside the ledger that are about credentials: those of the master key, and the log of who used which.

Open ``master_key_files.py`` first; ``access_log.py`` is the file of the log.
"""

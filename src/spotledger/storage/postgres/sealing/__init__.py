"""
Sealing: what is derived from the entries is written to the tables behind them, a segment at a time.

Open ``sealer.py`` first. ``duty.py`` decides when a node seals, and ``process.py`` is the process that does it.
"""

"""
The operator's listener: the JSON API through which the exchange's own systems move money.

Open ``app.py`` first: its routes. ``calls.py`` is what every call passes; ``ledger.py`` writes, ``reads.py`` reads.
"""

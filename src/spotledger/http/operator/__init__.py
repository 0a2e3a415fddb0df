"""
The operator's listener: the JSON API through which the exchange's own systems move money.

Open ``app.py`` first, which has the routes. Every call goes through ``calls.py``; ``ledger.py`` has the writes and
``reads.py`` the reads.
"""

"""
The operator's client: the operator API as typed methods.

Open ``async_ledger.py`` first: one method per call. ``core.py`` has the calls without I/O, ``*_answers.py`` what comes
back.
"""

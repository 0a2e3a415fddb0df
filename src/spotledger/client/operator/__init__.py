"""
The operator client: the operator API as typed methods.

Open ``async_ledger.py`` first: one method per call. ``ledger.py`` is generated from it. ``core.py`` decides what is
sent again, ``operations.py`` has the writes, and ``*_answers.py`` the types of the answers.
"""

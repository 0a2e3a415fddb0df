"""
Keep the journal and what is derived from it: one port, two stores, and what they share.

Open ``base.py`` first: the port. ``sqlite/store.py`` and ``postgres/store.py`` implement it.
"""

"""
How a node's memory follows the journal in the database.

Open ``memory.py`` first: it brings memory to the head. ``head_cache.py`` is that memory, ``follower.py`` the thread
that keeps it there, and ``foreign_entries.py`` checks the chain of what other nodes wrote.
"""

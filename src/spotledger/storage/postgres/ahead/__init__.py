"""
How a group is decided before its node has the write lock.

Open ``groups.py`` first: it says when, and compares under the lock. ``books.py`` is what the rules read meanwhile.
"""

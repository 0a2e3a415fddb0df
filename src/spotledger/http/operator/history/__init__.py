"""
What was booked: the search for entries, and the statements of a period.

Open ``statement.py`` first.
"""
